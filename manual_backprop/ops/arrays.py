"""What every op shares about arrays: how wide to compute, and how to say that an argument does not fit."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from manual_backprop.errors import InputError


def wide_dtype(dtype) -> jnp.dtype:
    """The dtype that values of `dtype` are computed and summed in: at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


def wide(x) -> jax.Array:
    """x in at least float32; x itself where it is wide already."""
    return x.astype(wide_dtype(x.dtype))


def is_float(x) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def want_float(op: str, **arguments) -> None:
    """Raises InputError for the first argument that is not of a real floating dtype."""
    for name, x in arguments.items():
        if not is_float(x):
            raise InputError(f"{op}: {name} is {jnp.result_type(x)}; wants floating point: convert it with .astype")


def want_real(op: str, **arguments) -> None:
    """Raises InputError for the first argument that is complex."""
    for name, x in arguments.items():
        if jnp.issubdtype(jnp.result_type(x), jnp.complexfloating):
            raise InputError(f"{op}: {name} is {jnp.result_type(x)}; wants real numbers")


def want_examples(op: str, x) -> None:
    """Raises InputError for an empty batch: an average over no examples is not defined."""
    if 0 in jnp.shape(x):
        raise InputError(f"{op}: the batch is empty, shape {jnp.shape(x)}; wants at least one example")


def known(x) -> np.ndarray | None:
    """The values of x where they are known, in eager calls; None inside a transformation."""
    return None if isinstance(x, jax.core.Tracer) else np.asarray(x)


# ── shapes and axes ──────────────────────────────────────────────────────────────────────────────────────────────────


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Spec:
    """The shape and dtype of an argument whose values the backward pass does not need: a residual without memory."""

    shape: tuple[int, ...]
    dtype: jnp.dtype


def spec(x) -> Spec:
    return Spec(x.shape, x.dtype)


class OfX(NamedTuple):
    """The residuals of a linear map of x: shape and dtype alone."""

    of_x: Spec


class OfXs(NamedTuple):
    """The residuals of a linear map of several arrays."""

    of_xs: tuple[Spec, ...]


class Nothing(NamedTuple):
    """The residuals of a linear map of which dy says all."""


def want_axes(op: str, axis: int | tuple[int, ...] | None, ndim: int) -> tuple[int, ...]:
    """The axes as distinct numbers from 0, in order; None: all. Raises InputError for one out of range or twice."""
    axes = range(ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    for one in axes:
        if not -ndim <= one < ndim:
            raise InputError(f"{op}: axis {one} is out of range; wants -{ndim} … {ndim - 1} for {ndim} axes")
    if len({one % ndim for one in axes}) < len(axes):
        raise InputError(f"{op}: axis {axis} names an axis twice; wants each once")
    return tuple(sorted(one % ndim for one in axes))


def want_axis(op: str, axis: int, ndim: int) -> int:
    """The axis, counted from 0. Raises InputError for one out of range."""
    return want_axes(op, axis, ndim)[0]


def want_shape(op: str, shape: tuple[int, ...], why: str = "", **arguments) -> None:
    """Raises InputError for the first argument of another shape; `why` says where the shape is from."""
    for name, x in arguments.items():
        if x.shape != shape:
            raise InputError(f"{op}: {name} has shape {x.shape}; wants {shape}{why and ', ' + why}")


def sum_to(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """x summed over every axis along which `shape` was broadcast to x's: each copy is a path, and paths add up."""
    extra = x.ndim - len(shape)
    copied = [i + extra for i, size in enumerate(shape) if size == 1 and x.shape[i + extra] != 1]
    total = jnp.sum(x, (*range(extra), *copied), dtype=wide_dtype(x.dtype), keepdims=True)
    return total.reshape(shape)
