"""Scattering: updates brought to the places of x that integer indices name along an axis.

Update i, a slice of x's shape but for the axis, goes to place n(i):

    scatter_add:   y_m = x_m + Σ uᵢ over the i with n(i) = m        (`x.at[indices].add(updates)`)
    scatter:       y_m = uᵢ for the last i with n(i) = m, or x_m where there is none        (`….set(updates)`)

Each update that is in y reaches C by the place where it lies, x by the places that kept it:

    scatter_add:   dx = dy,    duᵢ = dy_n(i)
    scatter:       dx = dy where x was kept, else 0,    duᵢ = dy_n(i) where uᵢ was the last, else 0

JAX leaves open which of several updates stays; here it is the last, on every device, since all write its value.
Source: Griewank & Walther 2008, "Evaluating Derivatives", section 3.2: addition and assignment in reverse.
Saved: the indices; of `scatter` also one byte a place and one an update: which were overwritten.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from manual_backprop.contract import op
from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import Spec, spec, want_axis, want_float, wide_dtype
from manual_backprop.ops.routing.indices import counting, slices, want_indices


class Added(NamedTuple):
    of_x: Spec  # [..., size, ...]
    indices: jax.Array  # any shape
    of_updates: Spec  # [..., *indices' shape, ...]


class Written(NamedTuple):
    of_x: Spec  # [..., size, ...]
    indices: jax.Array  # any shape
    of_updates: Spec  # [..., *indices' shape, ...]
    kept: jax.Array  # [size], bool: where x is in y
    last: jax.Array  # indices' shape, bool: which updates are in y


@op
def scatter_add(*, axis: int = 0):
    """x [..., size, ...], indices of any shape, updates with that shape for the axis → y of x's shape.

    dx = dy, dupdates = dy at the indices.  Saved: the indices.  (Griewank & Walther 2008.)
    Raises InputError for shapes that do not fit, for indices that are no
    integers, and in an eager call for one out of range; inside jit such an update is dropped, as JAX does.
    """

    def forward(x, indices, updates):
        dimension = check("scatter_add", x, indices, updates, axis)
        dtype = jnp.result_type(x, updates)
        y = x.astype(wide_dtype(dtype)).at[slices(dimension, indices)].add(updates.astype(wide_dtype(dtype)))
        return y.astype(dtype), Added(spec(x), indices, spec(updates))

    def backward(residuals, dy):
        x, indices, updates = residuals
        dupdates = taken(dy, indices, axis % dy.ndim)
        return dy.astype(x.dtype), None, dupdates.astype(updates.dtype)

    return forward, backward


@op
def scatter(*, axis: int = 0):
    """x [..., size, ...], indices of any shape, updates with that shape for the axis → y of x's shape.

    dx = dy where x was kept, dupdates = dy at the indices of the updates that stayed, else 0.
    Saved: the indices, and which places and updates those are.  (Griewank & Walther 2008.)  Mistakes: as `scatter_add`.
    """

    def forward(x, indices, updates):
        dimension = check("scatter", x, indices, updates, axis)
        dtype = jnp.result_type(x, updates)
        place = jnp.arange(indices.size).reshape(indices.shape)
        latest = jnp.full(x.shape[dimension], -1).at[slices(0, indices)].max(place)  # the last update of each place
        stays = taken(latest, indices, 0)
        flat = updates.reshape(*x.shape[:dimension], indices.size, *x.shape[dimension + 1 :])
        y = x.astype(dtype).at[slices(dimension, indices)].set(jnp.take(flat, stays, dimension).astype(dtype))
        return y, Written(spec(x), indices, spec(updates), latest < 0, stays == place)

    def backward(residuals, dy):
        x, indices, updates, kept, last = residuals
        dimension = axis % dy.ndim
        behind = tuple(range(1, dy.ndim - dimension))
        dx = jnp.where(jnp.expand_dims(kept, behind), dy, 0)
        dupdates = jnp.where(
            jnp.expand_dims(last, tuple(i + last.ndim - 1 for i in behind)), taken(dy, indices, dimension), 0
        )
        return dx.astype(x.dtype), None, dupdates.astype(updates.dtype)

    return forward, backward


def taken(dy, indices, axis: int) -> jax.Array:
    """dy at the indices, 0 for one out of range, whose update was dropped."""
    return jnp.take(dy, counting(indices), axis, mode="fill", fill_value=0)


def check(op: str, x, indices, updates, axis: int) -> int:
    """The axis, counted from 0."""
    want_float(op, x=x, updates=updates)
    dimension = want_axis(op, axis, x.ndim)
    want_indices(op, indices, x.shape[dimension])
    shape = (*x.shape[:dimension], *indices.shape, *x.shape[dimension + 1 :])
    if updates.shape != shape:
        raise InputError(
            f"{op}: x has shape {x.shape}, indices {indices.shape}, updates {updates.shape}; updates must be {shape}"
        )
    return dimension
