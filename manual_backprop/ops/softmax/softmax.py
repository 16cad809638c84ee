"""Softmax: a distribution over the axes from numbers of any size (Bridle 1990, "Probabilistic interpretation …").

    yⱼ = e^(xⱼ/T) / Σₖ e^(xₖ/T)

T is the temperature. xₖ reaches yₖ by its own term and, through the sum, every yⱼ: ∂yⱼ/∂xₖ = yⱼ (δⱼₖ - yₖ) / T. The
paths add up to

    dx = y · (dy - Σ y · dy) / T

Where the mask is False the entry takes no part: y and dx are 0. So they are in a row of which no entry takes part, all
masked or all -∞.
Saved: y alone.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from manual_backprop.contract import op
from manual_backprop.ops.arrays import want_axes, wide, wide_dtype
from manual_backprop.ops.softmax.shifted import check, exponents, masked_or_not, taking_part
from manual_backprop.options import want_positive


class Residuals(NamedTuple):
    y: jax.Array  # [...]


@op
def softmax(*, axis: int | tuple[int, ...] | None = -1, temperature: float = 1.0, mask: bool = False):
    """x [...] → y [...], which sums to 1 over the axis, or axes, or None for all.

    `mask=True` takes (x, mask): booleans that broadcast to x, True where x takes part. Raises InputError for a mask
    that does not. Derivation: the module.
    """
    want_positive("softmax", temperature=temperature)

    def forward(x, mask):
        axes = check("softmax", x, mask, axis)
        least = jnp.maximum(taking_part(x, mask), jnp.finfo(wide_dtype(x.dtype)).min)  # m > -∞, for ∞ - ∞ is no number
        m = jnp.max(least, axes, keepdims=True, initial=-jnp.inf)  # not changed after, so that one loop takes m and e
        e = jnp.exp(exponents(x, mask, m, temperature))
        Z = jnp.sum(e, axes, keepdims=True)
        y = (e / jnp.maximum(Z, 1)).astype(x.dtype)
        return y, Residuals(y)

    def backward(residuals, dy):
        y, dy = wide(residuals.y), wide(dy)
        axes = want_axes("softmax", axis, y.ndim)
        dx = y * (dy - jnp.sum(y * dy, axes, keepdims=True)) / temperature
        dx = dx.astype(residuals.y.dtype)
        return (dx, None) if mask else (dx,)

    return masked_or_not(forward, mask), backward
