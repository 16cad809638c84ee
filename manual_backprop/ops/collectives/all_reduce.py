"""All-reduce and its mirror image: where devices' paths come together, and where they part.

n devices along an axis, x⁽ᵈ⁾ what device d holds:

    all_reduce         y = Σ_d x⁽ᵈ⁾, the same on every device;  ∂y/∂x⁽ᵈ⁾ = 1 for each d:
                       dx⁽ᵈ⁾ = dy                                        nothing is sent
    copy_to_devices    y⁽ᵈ⁾ = x, which all hold alike; x reaches C by n paths, one through each copy:
                       dx = Σ_d ∂C/∂y⁽ᵈ⁾ · ∂y⁽ᵈ⁾/∂x = Σ_d dy⁽ᵈ⁾          an all-reduce

The first wants the same dy on every device: ∂C/∂y, C counted once. (Count C once on each device, as jax.grad of a psum
under vmap does, and dy is n terms, still to be summed: for equal ones n times too much.) The second takes of each
device what came by its own path. They are g and f of Megatron-LM: between f and g, a matrix cut by columns and one cut
by rows.

Source: Shoeybi, Patwary, Puri, LeGresley, Casper & Catanzaro 2019, arXiv:1909.08053, section 3.
Saved: nothing.
"""

from __future__ import annotations

from manual_backprop.contract import op
from manual_backprop.ops.arrays import Nothing, want_float, wide
from manual_backprop.ops.collectives.devices import Axes, devices, summed, varying


@op
def all_reduce(*, axis: str | tuple[str, ...]):
    """x, a term on each device → y = Σ x over the devices of the axis, whole;  dx = dy.

    The sum runs in at least float32. Raises InputError for an axis that is not there. Derivation: the module.
    """

    def forward(x):
        return total("all_reduce", x, axis), Nothing()

    def backward(residuals, dy):
        return (varying(dy, axis),)

    return forward, backward


@op
def copy_to_devices(*, axis: str | tuple[str, ...]):
    """x, whole → y = x, of which each device makes something else;  dx = Σ dy over the devices of the axis.

    The sum runs in at least float32. Raises InputError for an axis that is not there. Derivation: the module.
    """

    def forward(x):
        want_float("copy_to_devices", x=x)
        devices("copy_to_devices", axis)
        return varying(x, axis), Nothing()

    def backward(residuals, dy):
        return (total("copy_to_devices", dy, axis),)

    return forward, backward


def total(op: str, x, axis: Axes):
    want_float(op, x=x)
    devices(op, axis)
    return summed(wide(x), axis).astype(x.dtype)
