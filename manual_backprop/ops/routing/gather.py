"""Gathering: entries of x, named by integer indices along an axis, each any number of times.

Whole slices by one list of indices, or each line of x by indices of its own; with i for the place along the axis:

    gather:         yᵢ = x_n(i)            (`jnp.take`)
    gather_along:   yᵢⱼ = x_n(i,j) j       (`jnp.take_along_axis`; j counts the other axes)

An entry reaches C once for each time that it was chosen, so the cotangents of its copies add up:

    dx_m = Σ dyᵢ over the i with n(i) = m

which is scattering, the adjoint of gathering. Indices are integers and have no cotangent.
Source: Bengio, Ducharme, Vincent & Jauvin 2003, "A Neural Probabilistic Language Model": a table, looked up by words.
Saved: the indices, and x's shape.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from manual_backprop.contract import op
from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import Spec, spec, sum_to, want_axis, want_float, wide
from manual_backprop.ops.routing.indices import counting, slices, want_indices


class Residuals(NamedTuple):
    of_x: Spec  # [..., size, ...]
    indices: jax.Array  # gather: any shape; gather_along: [..., n, ...]


@op
def gather(*, axis: int = 0):
    """x [..., size, ...], indices of any shape → y, in which that shape stands for the axis;  dx = Σ dy of the copies.

    Saved: the indices.  (Bengio et al. 2003.)
    Raises InputError for indices that are no integers, and in an eager call for one out of range. Inside jit values are
    not known: as with `jnp.take`, such an index gives NaN, and no gradient. A negative index counts from the end.
    """

    def forward(x, indices):
        dimension = check("gather", x, indices, axis)
        return jnp.take(x, counting(indices), dimension), Residuals(spec(x), indices)

    def backward(residuals, dy):
        x, indices = residuals
        dx = jnp.zeros(x.shape, wide(dy).dtype).at[slices(axis % len(x.shape), indices)].add(wide(dy))
        return dx.astype(x.dtype), None

    return forward, backward


@op
def gather_along(*, axis: int = -1):
    """x [..., size, ...], indices [..., n, ...] → y [..., n, ...];  dx = Σ dy of the copies.  Saved: the indices.

    (Bengio et al. 2003.)
    The other axes of x and of indices are alike, or 1. What fits no index: as `gather`.
    """

    def forward(x, indices):
        dimension = check("gather_along", x, indices, axis)
        pairs = zip(x.shape, indices.shape, strict=False)
        fits = [1 in (n, m) or n == m or i == dimension for i, (n, m) in enumerate(pairs)]
        if x.ndim != indices.ndim or not all(fits):
            raise InputError(
                f"gather_along: x has shape {x.shape}, indices {indices.shape}; wants them alike but for axis {axis}"
            )
        return jnp.take_along_axis(x, counting(indices), dimension), Residuals(spec(x), indices)

    def backward(residuals, dy):
        x, indices = residuals
        dimension = axis % dy.ndim
        grid = list(jnp.indices(dy.shape, sparse=True))
        grid[dimension] = counting(indices)
        shape = (*dy.shape[:dimension], x.shape[dimension], *dy.shape[dimension + 1 :])
        dx = sum_to(jnp.zeros(shape, wide(dy).dtype).at[tuple(grid)].add(wide(dy)), x.shape)
        return dx.astype(x.dtype), None

    return forward, backward


def check(op: str, x, indices, axis: int) -> int:
    """The axis, counted from 0."""
    want_float(op, x=x)
    dimension = want_axis(op, axis, x.ndim)
    want_indices(op, indices, x.shape[dimension])
    return dimension
