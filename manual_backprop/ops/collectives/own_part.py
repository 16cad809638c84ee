"""From a value that all devices hold to a part on each, and back: no device has a path that another has not.

n devices along an axis; [·]_d is part d of an array that is cut in n along one dim:

    own_part       y⁽ᵈ⁾ = [x]_d of an x that all hold alike. Each entry of x is in one part, and has one path:
                   dx = (dy⁽¹⁾, …, dy⁽ⁿ⁾), the same on every device      an all-gather
    gather_parts   y = (x⁽¹⁾, …, x⁽ⁿ⁾), the same on every device, which all do the same with:
                   dx⁽ᵈ⁾ = [dy]_d                                        nothing is sent

`gather_parts` wants the same dy on every device, ∂C/∂y with C counted once; where each device goes on by a path of its
own, and dy differs, it is `all_gather`.

Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3 (the output of a layer cut by columns, gathered);
Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.2.
Saved: nothing.
"""

from __future__ import annotations

from manual_backprop.contract import op
from manual_backprop.ops.arrays import Nothing
from manual_backprop.ops.collectives.devices import devices, gathered_whole, part, varying, want_dim, want_parts


@op
def own_part(*, axis: str, dim: int = 0):
    """x, whole → y, the device's part along dim;  dx = dy of all devices, joined along dim.

    Raises InputError for an axis or a dim that is not there, or a dim that the devices do not divide.
    Derivation: the module.
    """

    def forward(x):
        where, _ = want_parts("own_part", x, dim, axis)
        return part(x, axis, where), Nothing()

    def backward(residuals, dy):
        return (gathered_whole(dy, axis, dim % dy.ndim),)

    return forward, backward


@op
def gather_parts(*, axis: str, dim: int = 0):
    """x, a device's part along dim → y, all parts in the order of the devices, whole;  dx = the device's part of dy.

    Raises InputError for an axis or a dim that is not there. Derivation: the module.
    """

    def forward(x):
        where = want_dim("gather_parts", x, dim)
        devices("gather_parts", axis)
        return gathered_whole(x, axis, where), Nothing()

    def backward(residuals, dy):
        return (part(varying(dy, axis), axis, dim % dy.ndim),)

    return forward, backward
