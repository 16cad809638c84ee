"""What the softmax family shares: exponents of which the largest is 0, so that none overflows, and masks.

    a = (x - m) / T,    m = max x

m takes nothing from the result. x / T is never formed: it would round at the size of x. A masked entry counts as -∞, so
its eᵃ is 0; where no entry of a row takes part, m is 0 instead, for -∞ - (-∞) is no number.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from manual_backprop.contract import InputError
from manual_backprop.ops.arrays import want_axes, want_float, wide


def maximum(x, mask, axes: tuple[int, ...]) -> jax.Array:
    """m, of size 1 along the axes."""
    m = jnp.max(taking_part(x, mask), axes, keepdims=True, initial=-jnp.inf)
    return jnp.where(m == -jnp.inf, 0, m)


def exponents(x, mask, m, temperature: float) -> jax.Array:
    """a [...]."""
    return (taking_part(x, mask) - m) / temperature


def taking_part(x, mask) -> jax.Array:
    return wide(x) if mask is None else jnp.where(mask, wide(x), -jnp.inf)


def log_of_sum(a, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """s = ln Σ eᵃ, of size 1 along the axes, and whether any entry takes part; s is 0 where none does."""
    total = jnp.sum(jnp.exp(a), axes, keepdims=True)
    some = total > 0
    return jnp.log(jnp.where(some, total, 1)), some


def want_options(op: str, axis, temperature: float, mask: bool) -> None:
    """Raises InputError for options that are no axis or axes, no number above 0, no truth."""
    axes = axis if isinstance(axis, tuple) else (axis,)
    if axis is not None and not all(isinstance(one, int) and not isinstance(one, bool) for one in axes):
        raise InputError(f"{op}: axis is {axis!r}; wants a whole number, a tuple of them, or None for all")
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not temperature > 0:
        raise InputError(f"{op}: temperature is {temperature!r}; wants a number above 0")
    if not isinstance(mask, bool):
        raise InputError(f"{op}: mask is {mask!r}; wants True or False: the mask itself is the second argument")


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
