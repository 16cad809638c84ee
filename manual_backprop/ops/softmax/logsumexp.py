"""The logarithm of a sum of exponentials, a smooth maximum, and the normaliser of softmax (Bridle 1990).

    y = ln Σₖ e^(xₖ/T) = m/T + ln Z,    Z = Σ eᵃ,    a = (x - m) / T,    m = max x

∂y/∂xₖ = e^(xₖ/T - y) / T = pₖ / T, and p = eᵃ / Z: y is not used for it, which is rounded at the size of x.

    dx = dy · p / T

Where the mask is False, dx is 0. A row of which no entry takes part, all masked or all -∞, has y = -∞ and dx = 0.
Saved: the arguments and two numbers a row (m and Z); p is recomputed.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from manual_backprop.contract import op
from manual_backprop.ops.arrays import want_axes, wide
from manual_backprop.ops.softmax.shifted import check, exponents, masked_or_not, maximum
from manual_backprop.options import want_positive


class Residuals(NamedTuple):
    x: jax.Array  # [...]
    mask: jax.Array | None  # broadcasts to x's shape
    m: jax.Array  # as x, 1 for each axis
    Z: jax.Array  # as m


@op
def logsumexp(
    *,
    axis: int | tuple[int, ...] | None = -1,
    temperature: float = 1.0,
    mask: bool = False,
    keepdims: bool = False,
):
    """x [...] → y, without the axis, or axes, or None for all; `keepdims=True` leaves 1 for each.

    `mask=True` takes (x, mask): booleans that broadcast to x, True where x takes part. Raises InputError for a mask
    that does not. Derivation: the module.
    """
    want_positive("logsumexp", temperature=temperature)

    def forward(x, mask):
        axes = check("logsumexp", x, mask, axis)
        m = maximum(x, mask, axes)
        Z = jnp.sum(jnp.exp(exponents(x, mask, m, temperature)), axes, keepdims=True)
        y = (m / temperature + jnp.log(Z)).astype(x.dtype)
        return y if keepdims else jnp.squeeze(y, axes), Residuals(x, mask, m, jnp.maximum(Z, 1))

    def backward(residuals, dy):
        x, mask, m, Z = residuals
        axes = want_axes("logsumexp", axis, x.ndim)
        dy = wide(dy) if keepdims else jnp.expand_dims(wide(dy), axes)
        e = jnp.exp(exponents(x, mask, m, temperature))
        dx = (e * (dy / (Z * temperature))).astype(x.dtype)
        return (dx,) if mask is None else (dx, None)

    return masked_or_not(forward, mask), backward
