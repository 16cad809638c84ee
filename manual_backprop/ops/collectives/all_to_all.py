"""All-to-all: cut along one dim before, along another after.

Device e cuts what it holds in n along `split`, [·]_d part d, and sends part d to device d, which joins what it gets
along `join`:

    y⁽ᵈ⁾ = ([x⁽¹⁾]_d, …, [x⁽ⁿ⁾]_d)    so part d of x⁽ᵉ⁾ is part e of y⁽ᵈ⁾ and nothing else:
    part d of dx⁽ᵉ⁾ = part e of dy⁽ᵈ⁾    dx = the all-to-all of dy that cuts along `join` and joins along `split`

Every entry of x lies on one device and goes to one: a permutation, whose transpose is its inverse. Of an array cut
along `join` it makes the same array cut along `split`.

Source: Lepikhin et al. 2020 (GShard), arXiv:2006.16668, section 3.2 (tokens to their experts and back); Jacobs et al.
2023 (DeepSpeed Ulysses), arXiv:2309.14509 (from a part of the sequence to a part of the heads and back).
Saved: nothing.
"""

from __future__ import annotations

from jax import lax

from manual_backprop.contract import op
from manual_backprop.ops.arrays import Nothing
from manual_backprop.ops.collectives.devices import want_dim, want_parts


@op
def all_to_all(*, axis: str, split: int = 0, join: int = 0):
    """x, cut along `join` → y, cut along `split`, dims of a device's array;  dx = the all-to-all of dy, turned round.

    Raises InputError for an axis or a dim that is not there, or a `split` that the devices do not divide.
    Derivation: the module.
    """

    def forward(x):
        return exchanged(x, split, join), Nothing()

    def backward(residuals, dy):
        return (exchanged(dy, join, split),)

    def exchanged(x, split, join):
        cut, _ = want_parts("all_to_all", x, split, axis)
        return lax.all_to_all(x, axis, cut, want_dim("all_to_all", x, join), tiled=True)

    return forward, backward
