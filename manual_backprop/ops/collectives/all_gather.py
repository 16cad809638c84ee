"""All-gather and reduce-scatter, each the other's backward pass.

n devices along an axis; [·]_d is part d of an array that is cut in n along one dim:

    all_gather        y⁽ᵈ⁾ = (x⁽¹⁾, …, x⁽ⁿ⁾), a copy for each device's own path. Part e is in each, so it has n paths:
                      dx⁽ᵉ⁾ = Σ_d [dy⁽ᵈ⁾]_e                    the sum of what devices give back, cut: reduce-scatter
    reduce_scatter    y⁽ᵉ⁾ = Σ_d [x⁽ᵈ⁾]_e. Part e of each device's term is in y⁽ᵉ⁾ alone, with the slope 1:
                      [dx⁽ᵈ⁾]_e = dy⁽ᵉ⁾,  dx⁽ᵈ⁾ = (dy⁽¹⁾, …, dy⁽ⁿ⁾)    the same on each: all-gather

With the gathered value used alike on every device there is one path, and nothing to sum: that is `gather_parts`.
Parameters that are cut over devices and gathered where they are used, gradients summed and cut again, are ZeRO's third
stage; activations cut along the sequence between the products of a tensor-parallel block are sequence parallelism.

Source: Rajbhandari, Rasley, Ruwase & He 2020, arXiv:1910.02054, section 5; Korthikanti et al. 2022, arXiv:2205.05198,
section 4.2.2, where the two are called g and its conjugate.
Saved: nothing.
"""

from __future__ import annotations

from manual_backprop.contract import op
from manual_backprop.ops.arrays import Nothing, wide
from manual_backprop.ops.collectives.devices import devices, gathered, scattered, want_dim, want_parts


@op
def all_gather(*, axis: str, dim: int = 0):
    """x, a device's part along dim → y, all parts in the order of the devices, a copy on each;

    dx = the device's part of Σ dy over the devices, a sum in at least float32.
    Raises InputError for an axis or a dim that is not there. Derivation: the module.
    """

    def forward(x):
        where = want_dim("all_gather", x, dim)
        devices("all_gather", axis)
        return gathered(x, axis, where), Nothing()

    def backward(residuals, dy):
        return (cut_sum("all_gather", dy, axis, dim),)

    return forward, backward


@op
def reduce_scatter(*, axis: str, dim: int = 0):
    """x, a term on each device → y = the device's part along dim of Σ x over the devices, in at least float32;

    dx = dy of all devices, joined along dim.
    Raises InputError for an axis or a dim that is not there, or a dim that the devices do not divide.
    Derivation: the module.
    """

    def forward(x):
        return cut_sum("reduce_scatter", x, axis, dim), Nothing()

    def backward(residuals, dy):
        return (gathered(dy, axis, dim % dy.ndim),)

    return forward, backward


def cut_sum(op: str, x, axis: str, dim: int):
    where, _ = want_parts(op, x, dim, axis)
    return scattered(wide(x), axis, where).astype(x.dtype)
