"""Linear maps along the spatial axes, one small sparse matrix each: what averaging and interpolation have in common.

y = M x along an axis is yᵢ = Σⱼ Mᵢⱼ xⱼ, so dxⱼ = Σᵢ Mᵢⱼ dyᵢ: the same with Mᵀ. The entries of a row, or a column, that
are not 0 lie side by side. The others take no part: an infinite or missing number stays where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from manual_backprop.errors import InputError, want_count
from manual_backprop.ops.arrays import wide
from manual_backprop.ops.pooling.windows import per_axis, spatial_axes

FEW = 128  # entries in a row, up to which a program that takes them one after another compiles in a moment


def apply(x, axes: Sequence[int], matrices: Sequence[np.ndarray]) -> jax.Array:
    """x [..., n, ...] → [..., m, ...] along each axis by its matrix [m, n], in at least float32."""
    y = wide(x)
    for axis, matrix in zip(axes, matrices, strict=True):
        y = _by_entry(y, axis, matrix) if (matrix != 0).sum(1).max() <= FEW else _by_row(y, axis, matrix)
    return y


def _by_entry(x, axis: int, matrix) -> jax.Array:
    entries = (matrix != 0).sum(1).max()
    columns = np.argsort(matrix == 0, axis=1, kind="stable")[:, :entries]  # the entries of each row, then zeros
    weights = np.take_along_axis(matrix, columns, 1).reshape(*columns.shape, *[1] * (x.ndim - 1 - axis))
    y = 0
    for j in range(entries):
        w = jnp.asarray(weights[:, j], x.dtype)
        y += jnp.where(weights[:, j] != 0, w * jnp.take(x, columns[:, j], axis, mode="clip"), 0)
    return y


def _by_row(x, axis: int, matrix) -> jax.Array:
    rows = []
    for weights in matrix:
        first, entries = int((weights != 0).argmax()), int((weights != 0).sum())
        w = jnp.asarray(weights[first : first + entries].reshape(-1, *[1] * (x.ndim - 1 - axis)), x.dtype)
        rows.append(jnp.sum(w * lax.slice_in_dim(x, first, first + entries, axis=axis), axis, keepdims=True))
    return jnp.concatenate(rows, axis)


def want_sizes(op: str, sizes) -> None:
    """Raises InputError unless sizes is a whole number or a tuple of them."""
    for size in sizes if isinstance(sizes, tuple) else (sizes,):
        want_count(f"{op}: sizes", size)
    if sizes == ():
        raise InputError(f"{op}: sizes is (); wants one for every spatial axis")


def want_sizes_or_scale(op: str, sizes, scale) -> None:
    """Raises InputError unless one of the two is given, and positive."""
    if (sizes is None) == (scale is None):
        raise InputError(f"{op}: got sizes {sizes} and scale {scale}; wants one of the two")
    if sizes is not None:
        return want_sizes(op, sizes)
    scales = scale if isinstance(scale, tuple) else (scale,)
    if not scales or not all(s > 0 for s in scales):
        raise InputError(f"{op}: scale is {scale!r}; wants a number above 0, or a tuple of them")


def positions(m: int, scale: float | Fraction, center: float) -> np.ndarray:
    """(i + center) / scale for the outputs i, rounded once: exact where it is a whole number."""
    new, old = scale.as_integer_ratio()
    return (np.arange(m) + center) * old / new


def resized(op: str, shape, sizes, scale) -> tuple[range, list[tuple[int, int, float | Fraction]]]:
    """The spatial axes of a shape [..., *spatial, channels], and for each its size n, its new size m, and its scale."""
    axes = spatial_axes(op, shape, sizes, scale)
    old = [shape[axis] for axis in axes]
    if 0 in old:
        raise InputError(f"{op}: x has shape {shape}; wants at least one position along every spatial axis")
    if sizes is not None:
        new = per_axis(sizes, axes)
        return axes, [(n, m, Fraction(m, n)) for n, m in zip(old, new, strict=True)]
    scales = per_axis(scale, axes)
    new = [int(n * s) for n, s in zip(old, scales, strict=True)]
    if 0 in new:
        raise InputError(f"{op}: x has shape {shape}, scale {scale} leaves no position; wants a larger scale")
    return axes, list(zip(old, new, scales, strict=True))
