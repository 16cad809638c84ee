"""Indices along an axis: what gathering and scattering share."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import known


def counting(indices) -> jax.Array:
    """The indices in a dtype that counts any axis: int8 ends at 127."""
    return indices if jnp.iinfo(indices.dtype).bits >= 32 else indices.astype(jnp.int32)


def slices(axis: int, indices) -> tuple:
    """The subscript of whole slices: x[slices(axis, indices)] is `jnp.take(x, indices, axis)`."""
    return (*[slice(None)] * axis, counting(indices))


def want_indices(op: str, indices, size: int) -> None:
    """Raises InputError for what does not count, and in an eager call for an index out of range."""
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise InputError(f"{op}: indices are {indices.dtype}; wants integers: convert them with .astype(int)")
    values = known(indices)
    if values is not None and values.size and (values.min() < -size or values.max() >= size):
        wrong = values[(values < -size) | (values >= size)][0]
        raise InputError(f"{op}: index {wrong} is out of range; wants -{size} … {size - 1}, an axis of {size}")
