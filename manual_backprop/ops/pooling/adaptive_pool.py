"""Adaptive pooling: as many windows as outputs are asked for (He, Zhang, Ren & Sun 2014, arXiv:1406.4729).

Along an axis of n positions, window i of m covers those from ⌊i n/m⌋ up to but not ⌈(i + 1) n/m⌉. Neighbours may share
a position; its paths add up. For the average, lᵢ the length of window i,

    yᵢ = Σ xⱼ / lᵢ over the j in window i,        y = M x
    dxⱼ = Σ dyᵢ / lᵢ over the i with j in window i,   dx = Mᵀ dy

and for the maximum, j(i) the first position in window i that has it,

    yᵢ = x at j(i),        dxⱼ = Σ dyᵢ over the i with j(i) = j

along one axis after another, the maximum over an area being that over its rows of each row's maximum.
Saved: nothing for the average, whose M is known from the shape of x; for the maximum j(i) for each axis, one byte an
output where the axis has at most 256 positions.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from manual_backprop.contract import op
from manual_backprop.ops.arrays import OfX, Spec, spec, want_float, wide
from manual_backprop.ops.pooling.resample import apply, resized, want_sizes


class Residuals(NamedTuple):
    of_x: Spec
    positions: tuple[jax.Array, ...]  # j(i) for each axis, the last first; sizes change axis by axis


@op
def adaptive_average_pool(*, sizes: int | tuple[int, ...]):
    """x [batch, *spatial, channels] → y [batch, *sizes, channels]: the mean of each window.

    A tuple has one size a spatial axis; x may then have any number of axes before those. Derivation: the module.
    """
    want_sizes("adaptive_average_pool", sizes)

    def averages(shape):
        """The axes, and M for each."""
        axes, changes = resized("adaptive_average_pool", shape, sizes, None)
        covers = [_covers(n, m) for n, m, _ in changes]
        return axes, [c / c.sum(1, keepdims=True) for c in covers]

    def forward(x):
        want_float("adaptive_average_pool", x=x)
        y = apply(x, *averages(x.shape))
        return y.astype(x.dtype), OfX(spec(x))

    def backward(residuals, dy):
        axes, matrices = averages(residuals.of_x.shape)
        dx = apply(dy, axes[::-1], [matrix.T for matrix in matrices[::-1]])
        return (dx.astype(dy.dtype),)

    return forward, backward


@op
def adaptive_max_pool(*, sizes: int | tuple[int, ...]):
    """x [batch, *spatial, channels] → y [batch, *sizes, channels]: the largest of each window.

    A tuple has one size a spatial axis; x may then have any number of axes before those. Derivation: the module.
    """
    want_sizes("adaptive_max_pool", sizes)

    def along(shape):
        axes, changes = resized("adaptive_max_pool", shape, sizes, None)
        return [(axis, _covers(n, m)) for axis, (n, m, _) in zip(axes, changes, strict=True)]

    def forward(x):
        want_float("adaptive_max_pool", x=x)
        y, positions = x, []
        for axis, covers in reversed(along(x.shape)):
            y, j = _largest(y, axis, covers)
            positions.append(j)
        return y, Residuals(spec(x), tuple(positions))

    def backward(residuals, dy):
        dx = wide(dy)
        for (axis, covers), j in zip(along(residuals.of_x.shape), reversed(residuals.positions), strict=True):
            dx = _put_back(dx, j, axis, covers)
        return (dx.astype(dy.dtype),)

    return forward, backward


def _covers(n: int, m: int) -> np.ndarray:
    """[m, n]: whether window i covers position j."""
    i, j = np.arange(m)[:, None], np.arange(n)
    return (i * n // m <= j) & (j < -(-(i + 1) * n // m))


def _ranges(covers) -> tuple[np.ndarray, np.ndarray]:
    """For each row [rows, width]: its true entries in order, the last repeated up to the longest; and which are not."""
    first, length = covers.argmax(1)[:, None], covers.sum(1)[:, None]
    k = np.arange(length.max())
    return first + np.minimum(k, length - 1), k < length


def _largest(x, axis: int, covers) -> tuple[jax.Array, jax.Array]:
    """The maximum of every window along one axis, and the first position that has it."""
    dtype = jnp.uint8 if x.shape[axis] <= 256 else jnp.int32
    windows, _ = _ranges(covers)
    first = windows[:, 0].reshape(-1, *[1] * (x.ndim - 1 - axis))
    taps = jnp.take(x, windows, axis, mode="clip")  # [..., m, width, ...]: read once, so never in memory
    j = first + lax.argmax(taps, axis + 1, jnp.int32)
    return jnp.take_along_axis(x, j, axis, mode="clip"), j.astype(dtype)


def _put_back(dy, j, axis: int, covers) -> jax.Array:
    """For every position the sum of dy over the windows whose maximum it is."""
    windows, are = _ranges(covers.T)  # of each position the windows that cover it
    along = (-1, *[1] * (dy.ndim - 1 - axis))
    position = np.arange(covers.shape[1]).reshape(along)
    dx = 0
    for k in range(windows.shape[1]):
        d, j_k = (jnp.take(value, windows[:, k], axis, mode="clip") for value in (dy, j))
        dx += jnp.where(are[:, k].reshape(along) & (j_k == position), d, 0)
    return dx
