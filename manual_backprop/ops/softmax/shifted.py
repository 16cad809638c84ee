"""What the softmax family shares: exponents of which none is above 0, so that no eᵃ overflows, and masks.

    a = (x - m) / T,    m = max x,    Z = Σ eᵃ

Any m would do: eᵃ / Z does not depend on it. m is a number even where max x is infinite, for ∞ - ∞ is none. x / T is
not formed: it would round at the size of x. A masked entry counts as -∞, so its eᵃ is 0. Z is at least 1, for the
largest entry alone gives 1, or 0 in a row of which no entry takes part.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import want_axes, want_float, wide


def maximum(x, mask, axes: tuple[int, ...]) -> jax.Array:
    """m, of size 1 along the axes; finite, for ∞ - ∞ is no number."""
    m = jnp.max(taking_part(x, mask), axes, keepdims=True, initial=-jnp.inf)
    finite = jnp.finfo(m.dtype)
    return lax.clamp(finite.min, m, finite.max)


def exponents(x, mask, m, temperature: float) -> jax.Array:
    """a [...]."""
    return (taking_part(x, mask) - m) / temperature


def taking_part(x, mask) -> jax.Array:
    return wide(x) if mask is None else jnp.where(mask, wide(x), -jnp.inf)


def check(op: str, x, mask, axis) -> tuple[int, ...]:
    """The axes, counted from 0. Raises InputError for arguments that do not fit."""
    want_float(op, x=x)
    if mask is not None:
        if mask.dtype != bool:
            raise InputError(f"{op}: mask is {mask.dtype}; wants booleans, True where x takes part")
        extra = x.ndim - mask.ndim
        if extra < 0 or any(one not in (1, size) for one, size in zip(mask.shape, x.shape[extra:], strict=True)):
            raise InputError(f"{op}: mask has shape {mask.shape}, x {x.shape}; mask must broadcast to x")
    return want_axes(op, axis, x.ndim)


def masked_or_not(forward: Callable, mask: bool) -> Callable:
    """forward(x, mask), or of x alone."""
    return forward if mask else lambda x: forward(x, None)
