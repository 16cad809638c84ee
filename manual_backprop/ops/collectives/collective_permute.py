"""From device to device: each sends what it holds to at most one other, and gets from at most one.

With pairs (e, d), "e sends to d", in which no device is twice a source or twice a target:

    y⁽ᵈ⁾ = x⁽ᵉ⁾ for the pair (e, d);  0 where no pair has the target d

x⁽ᵉ⁾ is y⁽ᵈ⁾ and nothing else, with the slope 1; of a device that sends to nobody nothing reaches C:

    dx⁽ᵉ⁾ = dy⁽ᵈ⁾ for the pair (e, d);  0 where no pair has the source e        the pairs turned round

What was sent onwards comes back as a cotangent the same way: of a pipeline's stages, and of keys and values on a ring.

Source: Huang et al. 2019 (GPipe), arXiv:1811.06965, section 2 (activations to the next stage, gradients to the one
before); Liu, Zaharia & Abbeel 2023 (ring attention), arXiv:2310.01889.
Saved: nothing.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from manual_backprop.contract import op
from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import Nothing, want_float
from manual_backprop.ops.collectives.devices import devices, is_of_mesh


@op
def collective_permute(*, axis: str, pairs: tuple[tuple[int, int], ...]):
    """x on each device → y, what the device's source sent, 0 for a device that has none;  dx = dy of its target, or 0.

    pairs: (source, target) of devices, counted along the axis from 0.
    Raises InputError for an axis or a device that is not there, and for a device that is a source or a target twice.
    Derivation: the module.
    """
    for what, ends in (("source", [e for e, _ in pairs]), ("target", [d for _, d in pairs])):
        if len(set(ends)) < len(ends):
            raise InputError(f"collective_permute: pairs are {pairs}; wants each device at most once as a {what}")

    def forward(x):
        want_float("collective_permute", x=x)
        n = devices("collective_permute", axis)
        if any(not 0 <= device < n for pair in pairs for device in pair):
            raise InputError(f"collective_permute: pairs are {pairs}; wants devices 0 … {n - 1} of {axis!r}")
        return sent(x, pairs), Nothing()

    def backward(residuals, dy):
        return (sent(dy, tuple((d, e) for e, d in pairs)),)

    def sent(x, pairs):
        if is_of_mesh(axis):
            return lax.ppermute(x, axis, pairs)
        # Under vmap every device is to have a source and a target: those that are left get each other's, to be zeros.
        n = lax.axis_size(axis)
        sources, targets = (sorted(set(range(n)) - {pair[i] for pair in pairs}) for i in (0, 1))
        y = lax.ppermute(x, axis, (*pairs, *zip(sources, targets, strict=True)))
        gets = jnp.isin(lax.axis_index(axis), jnp.array([target for _, target in pairs], jnp.int32))
        return jnp.where(gets, y, jnp.zeros_like(y))

    return forward, backward
