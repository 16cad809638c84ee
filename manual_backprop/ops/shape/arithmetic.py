"""Sums and products of arrays, entry by entry, with numpy's broadcasting.

An entry that was broadcast reaches y once a copy, and paths add up: `sum_to` takes a cotangent of y's shape back to an
argument's. With Σ for that sum, over nothing where nothing was broadcast:

    y = Σᵢ xᵢ:    dxᵢ = Σ dy                     y = a - b:    da = Σ dy,        db = -Σ dy
    y = Πᵢ xᵢ:    dxᵢ = Σ dy · Π_(j≠i) xⱼ        y = a / b:    da = Σ dy · r,    db = -Σ dy · r · a r,   r = 1 / b

The product of the others is that of those before times that of those behind, never y / xᵢ: xᵢ may be 0.
An integer argument counts as a constant: it has no cotangent.
Source: Griewank & Walther 2008, "Evaluating Derivatives", section 3.2; the sum over copies is their rule of fan-out.
Saved: for sums shapes alone, for products and quotients the arguments.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from manual_backprop.contract import op
from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import OfXs, is_float, spec, sum_to, wide_dtype


class Factors(NamedTuple):
    xs: tuple[jax.Array, ...]  # each [...]


class Quotient(NamedTuple):
    a: jax.Array  # [...]
    b: jax.Array  # [...]


@op
def add():
    """y = Σᵢ xᵢ of any number of arrays;  dxᵢ = Σ dy.  Saved: shapes.  (Griewank & Walther 2008.)

    Raises InputError for shapes that do not broadcast.
    """

    def forward(*xs):
        dtype = check("add", xs)
        y = functools.reduce(operator.add, widened(xs, dtype))
        return y.astype(dtype), OfXs(tuple(map(spec, xs)))

    def backward(residuals, dy):
        return tuple(cotangent(dy, x) for x in residuals.of_xs)

    return forward, backward


@op
def subtract():
    """y = a - b;  da = Σ dy, db = -Σ dy.  Saved: shapes.  (Griewank & Walther 2008.)

    Raises InputError for shapes that do not broadcast.
    """

    def forward(a, b):
        dtype = check("subtract", (a, b))
        a_, b_ = widened((a, b), dtype)
        return (a_ - b_).astype(dtype), OfXs((spec(a), spec(b)))

    def backward(residuals, dy):
        a, b = residuals.of_xs
        return cotangent(dy, a), cotangent(-dy, b)

    return forward, backward


@op
def multiply():
    """y = Πᵢ xᵢ of any number of arrays;  dxᵢ = Σ dy · Π_(j≠i) xⱼ.  Saved: the factors.  (Griewank & Walther 2008.)

    Raises InputError for shapes that do not broadcast.
    """

    def forward(*xs):
        dtype = check("multiply", xs)
        y = functools.reduce(operator.mul, widened(xs, dtype))
        return y.astype(dtype), Factors(xs)

    def backward(residuals, dy):
        xs = residuals.xs
        x_ = widened(xs, dy.dtype)
        before, behind = [1], [1]
        for x in x_[:-1]:
            before.append(before[-1] * x)
        for x in reversed(x_[1:]):
            behind.append(behind[-1] * x)
        dy = dy.astype(wide_dtype(dy.dtype))
        return tuple(cotangent(dy * (p * q), x) for p, q, x in zip(before, reversed(behind), xs, strict=True))

    return forward, backward


@op
def divide():
    """y = a / b;  da = Σ dy · r, db = -Σ dy · r · a r, r = 1 / b.  Saved: a and b.  (Griewank & Walther 2008.)

    Raises InputError for shapes that do not broadcast.
    """

    def forward(a, b):
        dtype = check("divide", (a, b))
        a_, b_ = widened((a, b), dtype)
        return (a_ / b_).astype(dtype), Quotient(a, b)

    def backward(residuals, dy):
        a, b = residuals
        a_, b_ = widened((a, b), dy.dtype)
        r = 1 / b_  # of b's own shape: few divisions where b was broadcast
        da = dy.astype(b_.dtype) * r
        return cotangent(da, a), cotangent(-da * (a_ * r), b)

    return forward, backward


def widened(xs: Sequence, dtype) -> list[jax.Array]:
    """Each x in at least float32: in the dtype that y, of `dtype`, is computed in."""
    return [x.astype(wide_dtype(dtype)) for x in xs]


def cotangent(dy, x) -> jax.Array | None:
    """dy summed to the shape of x, an array or its Spec, and in its dtype; None where x is an integer."""
    return sum_to(dy, x.shape).astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else None


def check(op: str, xs: Sequence) -> jnp.dtype:
    """The dtype of y. Raises InputError for no arguments, none of floating point, or shapes that do not broadcast."""
    if not any(is_float(x) for x in xs):
        got = ", ".join(str(x.dtype) for x in xs) or "nothing"
        raise InputError(f"{op}: got {got}; wants at least one argument of floating point")
    try:
        jnp.broadcast_shapes(*(x.shape for x in xs))
    except ValueError:
        shapes = ", ".join(str(x.shape) for x in xs)
        raise InputError(f"{op}: shapes {shapes} do not broadcast; wants each axis alike, or 1") from None
    return jnp.result_type(*xs)
