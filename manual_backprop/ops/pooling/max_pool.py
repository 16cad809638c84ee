"""Max pooling: the largest value of every window (Weng, Ahuja & Huang 1992, "Cresceptron").

The maximum over a window is the maximum over its rows of each row's maximum, so it is pooled along one axis after
another, the last first. Along one axis, with k(i) the first tap at which window i has its maximum,

    yᵢ = x at tap k(i) of window i

A change of x at that one position, and at no other, changes yᵢ. Windows may share a position: paths add up.

    dx = Σₖ (dy where k(i) = k, else 0), each put back at tap k of its window

The chain rule undoes the axes in reverse order.
Saved: for each axis k(i), one byte an output. Nothing of x or y is.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from manual_backprop.contract import op
from manual_backprop.ops.arrays import Spec, spec, want_float, wide
from manual_backprop.ops.pooling.windows import Padding, place, tap, want_window, windows_of


class Residuals(NamedTuple):
    of_x: Spec
    taps: tuple[jax.Array, ...]  # k(i) for each axis in the order pooled; sizes shrink axis by axis


@op
def max_pool(
    *,
    window: int | tuple[int, ...],
    strides: int | tuple[int, ...] | None = None,
    padding: Padding = "VALID",
    dilation: int | tuple[int, ...] = 1,
):
    """x [batch, *spatial, channels] → y [batch, *fewer, channels]; strides default to the window.

    An option may be a tuple with one entry a spatial axis; x may then have any number of axes before those.
    Padding never wins over a number, a NaN over all. Of equal maxima, or NaNs, the first of the window has all of dy.
    Raises InputError where a window does not fit. Derivation: the module.
    """
    want_window("max_pool", window, strides, padding, dilation)

    def along(shape):
        return list(reversed(windows_of("max_pool", shape, window, strides, padding, dilation)))

    def forward(x):
        want_float("max_pool", x=x)
        y, taps = x, []
        for windows in along(x.shape):
            y, k = largest(windows, y)
            taps.append(k)
        return y, Residuals(spec(x), tuple(taps))

    def backward(residuals, dy):
        dx = wide(dy)
        for windows, k in reversed(list(zip(along(residuals.of_x.shape), residuals.taps, strict=True))):
            dx = put_back(windows, k, dx)
        return (dx.astype(dy.dtype),)

    return forward, backward


def largest(windows, x) -> tuple[jax.Array, jax.Array]:
    """The maximum of every window along one axis, and the tap that has it."""
    dtype = jnp.uint8 if windows.window <= 256 else jnp.int32
    y = tap(x, windows, 0, -jnp.inf)
    at = jnp.zeros(y.shape, dtype)
    for k in range(1, windows.window):
        x_k = tap(x, windows, k, -jnp.inf)
        larger = ~((x_k <= y) | jnp.isnan(y))
        y = jnp.where(larger, x_k, y)
        at = jnp.where(larger, dtype(k), at)
    return y, at


def put_back(windows, at, dy) -> jax.Array:
    return sum(place(jnp.where(at == k, dy, 0), windows, k) for k in range(windows.window))
