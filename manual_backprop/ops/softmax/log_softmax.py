"""The logarithm of softmax: ln p of a distribution over the axes (Bridle 1990, "Probabilistic interpretation …").

    yⱼ = xⱼ/T - ln Σₖ e^(xₖ/T) = a - s,    a = (x - m) / T,    s = ln Σ eᵃ

xₖ reaches yₖ by its own term and, through the sum, every yⱼ: ∂yⱼ/∂xₖ = (δⱼₖ - pₖ) / T with p = e^y. The paths add up to

    dx = (dy - p Σ dy) / T

Where the mask is False, y is -∞, its dy leads nowhere, and dx is 0.
Saved: y alone, and the mask; p is recomputed.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from manual_backprop.contract import op
from manual_backprop.ops.arrays import want_axes, wide
from manual_backprop.ops.softmax.shifted import check, exponents, log_of_sum, masked_or_not, maximum, want_options


class Residuals(NamedTuple):
    y: jax.Array  # [...]
    mask: jax.Array | None  # broadcasts to y's shape


@op
def log_softmax(*, axis: int | tuple[int, ...] | None = -1, temperature: float = 1.0, mask: bool = False):
    """x [...] → y [...], whose e^y sums to 1 over the axis, or axes, or None for all.

    `mask=True` takes (x, mask): booleans that broadcast to x, True where x takes part. Raises InputError for a mask
    that does not. Derivation: the module.
    """
    want_options("log_softmax", axis, temperature, mask)

    def forward(x, mask):
        axes = check("log_softmax", x, mask, axis)
        a = exponents(x, mask, maximum(x, mask, axes), temperature)
        s, _ = log_of_sum(a, axes)
        y = (a - s).astype(x.dtype)
        return y, Residuals(y, mask)

    def backward(residuals, dy):
        y, mask = residuals
        axes = want_axes("log_softmax", axis, y.ndim)
        dy = wide(dy) if mask is None else jnp.where(mask, wide(dy), 0)
        p = jnp.exp(wide(y))
        dx = (dy - p * jnp.sum(dy, axes, keepdims=True)) / temperature
        dx = dx.astype(y.dtype)
        return (dx,) if mask is None else (dx, None)

    return masked_or_not(forward, mask), backward
