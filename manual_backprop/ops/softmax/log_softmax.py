"""The logarithm of softmax: ln p of a distribution over the axes (Bridle 1990, "Probabilistic interpretation …").

    yⱼ = xⱼ/T - ln Σₖ e^(xₖ/T) = aⱼ - ln Z,    a = (x - m) / T,    Z = Σ eᵃ,    m = max x

xₖ reaches yₖ by its own term and, through the sum, every yⱼ: ∂yⱼ/∂xₖ = (δⱼₖ - pₖ) / T with p = eᵃ / Z. The paths add
up to

    dx = (dy - p Σ dy) / T

Where the mask is False, y is -∞, its dy leads nowhere, and dx is 0.
Saved: the arguments and two numbers a row (m and Z). p is recomputed from x, which is exact where y is rounded, and eᵃ
of one forward and backward pass in one program is computed once.
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
def log_softmax(*, axis: int | tuple[int, ...] | None = -1, temperature: float = 1.0, mask: bool = False):
    """x [...] → y [...], whose e^y sums to 1 over the axis, or axes, or None for all.

    `mask=True` takes (x, mask): booleans that broadcast to x, True where x takes part. Raises InputError for a mask
    that does not. Derivation: the module.
    """
    want_positive("log_softmax", temperature=temperature)

    def forward(x, mask):
        axes = check("log_softmax", x, mask, axis)
        m = maximum(x, mask, axes)
        a = exponents(x, mask, m, temperature)
        Z = jnp.maximum(jnp.sum(jnp.exp(a), axes, keepdims=True), 1)
        y = (a - jnp.log(Z)).astype(x.dtype)
        return y, Residuals(x, mask, m, Z)

    def backward(residuals, dy):
        x, mask, m, Z = residuals
        axes = want_axes("log_softmax", axis, x.ndim)
        dy = wide(dy) if mask is None else jnp.where(mask, wide(dy), 0)
        e = jnp.exp(exponents(x, mask, m, temperature))
        dx = (dy - e * (jnp.sum(dy, axes, keepdims=True) / Z)) / temperature
        dx = dx.astype(x.dtype)
        return (dx,) if mask is None else (dx, None)

    return masked_or_not(forward, mask), backward
