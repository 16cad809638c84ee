"""Reductions along axes, and the running sum: many entries of x, one number of y.

Over the axes that are reduced, n entries to a number of y, and dy repeated along them:

    y = Σ x:           dx = dy
    y = 1/n Σ x:       dx = dy / n
    y = max x:         dx = dy / m for the m entries that are the largest, else 0; min likewise
    yᵢ = Σ_(j≤i) xⱼ:   dxⱼ = Σ_(i≥j) dyᵢ, the running sum from the other end

Where entries tie for the largest, max has a kink, and any split of dy among them is a subgradient; the even one is that
of `jnp.max` (Clarke 1983, "Optimization and Nonsmooth Analysis", section 2.3). For dy a NaN counts as ∞, for min as -∞.
Sums: Griewank & Walther 2008, "Evaluating Derivatives", section 3.2.
Saved: shapes alone; for max and min where the largest are, one byte an entry.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.contract import op
from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import Nothing, OfX, spec, want_axes, want_float, wide, wide_dtype


class Chosen(NamedTuple):
    chosen: jax.Array  # [...], bool: which entries are the largest, or the smallest


@op
def sum(*, axis: int | tuple[int, ...] | None = None, keepdims: bool = False):
    """y = Σ x over the axes, None: all, in at least float32;  dx = dy, repeated.

    Saved: x's shape.  (Griewank & Walther 2008.)
    """

    def forward(x):
        axes = check("sum", x, axis)
        y = jnp.sum(x, axes, dtype=wide_dtype(x.dtype), keepdims=keepdims)
        return y.astype(x.dtype), OfX(spec(x))

    def backward(residuals, dy):
        return (repeated(dy, residuals.of_x.shape, axis, keepdims),)

    return forward, backward


@op
def mean(*, axis: int | tuple[int, ...] | None = None, keepdims: bool = False):
    """y = 1/n Σ x over the axes, None: all, in at least float32;  dx = dy / n, repeated.

    Saved: x's shape.  (Griewank & Walther 2008.)
    """

    def forward(x):
        axes = check("mean", x, axis)
        y = jnp.mean(x, axes, dtype=wide_dtype(x.dtype), keepdims=keepdims)
        return y.astype(x.dtype), OfX(spec(x))

    def backward(residuals, dy):
        shape = residuals.of_x.shape
        n = math.prod(shape[i] for i in want_axes("mean", axis, len(shape)))
        dx = (wide(dy) / n).astype(dy.dtype)
        return (repeated(dx, shape, axis, keepdims),)

    return forward, backward


@op
def max(*, axis: int | tuple[int, ...] | None = None, keepdims: bool = False):
    """y = the largest x along the axes, None: all;  dx = dy / m for the m largest, which tie, else 0.

    Saved: where they are, one byte an entry.  (Clarke 1983.)
    """
    return extreme("max", jnp.max, jnp.inf, axis, keepdims)


@op
def min(*, axis: int | tuple[int, ...] | None = None, keepdims: bool = False):
    """y = the smallest x along the axes, None: all;  dx = dy / m for the m smallest, which tie, else 0.

    Saved: where they are, one byte an entry.  (Clarke 1983.)
    """
    return extreme("min", jnp.min, -jnp.inf, axis, keepdims)


@op
def cumsum(*, axis: int, reverse: bool = False):
    """yᵢ = Σ_(j≤i) xⱼ along the axis, in at least float32; `reverse`: Σ_(j≥i);  dxⱼ = Σ_(i≥j) dyᵢ.

    Saved: nothing.  (Griewank & Walther 2008.)
    """

    def running(x, reverse):
        return lax.cumsum(wide(x), axis % x.ndim, reverse).astype(x.dtype)

    def forward(x):
        check("cumsum", x, axis)
        return running(x, reverse), Nothing()

    def backward(residuals, dy):
        return (running(dy, not reverse),)

    return forward, backward


def extreme(op: str, reduce, end: float, axis, keepdims: bool):
    def rank(x):
        return jnp.where(jnp.isnan(x), end, x)

    def forward(x):
        axes = check(op, x, axis)
        if 0 in (x.shape[i] for i in axes):
            raise InputError(f"{op}: x has shape {x.shape}; wants at least one entry along axis {axis}")
        y = reduce(x, axes, keepdims=True)
        return y if keepdims else lax.squeeze(y, axes), Chosen(rank(x) == rank(y))

    def backward(residuals, dy):
        (chosen,) = residuals
        axes = want_axes(op, axis, chosen.ndim)
        m = jnp.sum(chosen, axes, dtype=wide_dtype(dy.dtype), keepdims=keepdims)
        dx = (wide(dy) / m).astype(dy.dtype)
        return (jnp.where(chosen, repeated(dx, chosen.shape, axis, keepdims), 0),)

    return forward, backward


def repeated(dy, shape: tuple[int, ...], axis, keepdims: bool) -> jax.Array:
    """dy along the axes that were reduced."""
    if not keepdims:
        dy = jnp.expand_dims(dy, want_axes("repeated", axis, len(shape)))
    return jnp.broadcast_to(dy, shape)


def check(op: str, x, axis) -> tuple[int, ...]:
    want_float(op, x=x)
    return want_axes(op, axis, x.ndim)
