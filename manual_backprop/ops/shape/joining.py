"""Joining arrays, and cutting one: every entry keeps its value and gets another place.

    y = [x₁ … xₙ] along an axis:    dxᵢ = the part of dy where xᵢ lies
    y₁ … yₙ = x cut along an axis:    dx = [dy₁ … dyₙ]

Each map is a permutation of the entries, P, and its transpose is its inverse: dx = Pᵀ dy.
Source: Magnus & Neudecker 1988, "Matrix Differential Calculus", section 3.7 (permutations of entries).
Saved: shapes alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from manual_backprop.contract import op
from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import Nothing, OfXs, Spec, is_float, spec, want_axis, want_float


@op
def concatenate(*, axis: int = -1):
    """y = the arrays one behind another along an axis that they have;  dxᵢ = the part of dy where xᵢ lies.

    Saved: shapes.  (Magnus & Neudecker 1988.)
    """

    def forward(*xs):
        check_joined("concatenate", xs, axis, but_axis=True)
        return jnp.concatenate(xs, axis), OfXs(tuple(map(spec, xs)))

    def backward(residuals, dy):
        xs = residuals.of_xs
        ends = list(itertools.accumulate((x.shape[axis] for x in xs), initial=0))
        parts = (lax.slice_in_dim(dy, i, j, axis=axis) for i, j in itertools.pairwise(ends))
        return tuple(cotangent(part, x) for part, x in zip(parts, xs, strict=True))

    return forward, backward


@op
def stack(*, axis: int = 0):
    """y = arrays of one shape side by side along a new axis;  dxᵢ = dy at place i of it.  Saved: shapes.

    (Magnus & Neudecker 1988.)
    """

    def forward(*xs):
        check_joined("stack", xs, axis, but_axis=False)
        return jnp.stack(xs, axis), OfXs(tuple(map(spec, xs)))

    def backward(residuals, dy):
        xs = residuals.of_xs
        return tuple(cotangent(lax.index_in_dim(dy, i, axis, keepdims=False), x) for i, x in enumerate(xs))

    return forward, backward


@op
def split(*, sections: int | tuple[int, ...], axis: int = -1):
    """y = the parts of x along the axis, a tuple: so many equal ones, or parts of these sizes;  dx = [dy₁ … dyₙ].

    Saved: nothing.  (Magnus & Neudecker 1988.)
    Raises InputError for sizes that do not add up to the axis, and for a number that does not divide it.
    """
    many = isinstance(sections, int)
    if not all(n >= many for n in ((sections,) if many else sections)):
        raise InputError(f"split: sections is {sections}; wants a number of parts, at least 1, or a tuple of sizes")

    def forward(x):
        want_float("split", x=x)
        dimension = want_axis("split", axis, x.ndim)
        size = x.shape[dimension]
        if size % sections if many else size != sum(sections):
            raise InputError(
                f"split: x has shape {x.shape}, {size} along axis {axis}; sections {sections} do not fit it"
            )
        sizes = [size // sections] * sections if many else sections
        return tuple(lax.split(x, sizes, dimension)), Nothing()

    def backward(residuals, dy):
        return (jnp.concatenate(dy, axis),)

    return forward, backward


def cotangent(dx, x: Spec):
    """dx in the dtype of x; None where x is an integer."""
    return dx.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else None


def check_joined(op: str, xs: Sequence, axis: int, but_axis: bool) -> None:
    if not any(is_float(x) for x in xs):
        got = ", ".join(str(x.dtype) for x in xs) or "nothing"
        raise InputError(f"{op}: got {got}; wants at least one array of floating point")
    dimension = want_axis(op, axis, xs[0].ndim + (not but_axis))

    def fixed(x):
        return (*x.shape[:dimension], *x.shape[dimension + but_axis :])

    if any(x.ndim != xs[0].ndim or fixed(x) != fixed(xs[0]) for x in xs):
        shapes = ", ".join(str(x.shape) for x in xs)
        raise InputError(f"{op}: shapes {shapes} do not fit; wants them alike{f' but for axis {axis}' * but_axis}")
