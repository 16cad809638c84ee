"""Average pooling: the mean of every window (LeCun et al. 1989, "Handwritten digit recognition with a back-propagation
network").

With n the number of positions that window i counts, all of its taps or those that are not padding,

    yᵢ = Σₖ (x at tap k of window i) / n

∂yᵢ/∂x is 1/n at every position of window i; a position reaches C through every window that covers it:

    dxⱼ = Σ gᵢ over the windows i that cover j,    g = dy / n

Both sums are taken along one axis after another: of a window of 3 × 3 that is 6 numbers to add, not 9. Along one axis
the windows that cover a position are a window too, on dy spread out by the stride.
Saved: nothing; the counts are known from the shape of x.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from manual_backprop.contract import op
from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import OfX, spec, want_float, wide
from manual_backprop.ops.pooling.windows import Padding, padded, want_window, windows_of


@op
def average_pool(
    *,
    window: int | tuple[int, ...],
    strides: int | tuple[int, ...] | None = None,
    padding: Padding = "VALID",
    count_padding: bool = True,
    divisor: float | None = None,
):
    """x [batch, *spatial, channels] → y [batch, *fewer, channels]; strides default to the window.

    An option may be a tuple with one entry a spatial axis; x may then have any number of axes before those.
    `count_padding=False` divides by the positions that are not padding; `divisor` is divided by in place of any count.
    Raises InputError where a window does not fit, or counts no position. Derivation: the module.
    """
    want_window("average_pool", window, strides, padding)
    if divisor == 0:
        raise InputError("average_pool: divisor is 0; wants another number")

    def along(shape):
        return windows_of("average_pool", shape, window, strides, padding)

    def forward(x):
        want_float("average_pool", x=x)
        windows = along(x.shape)
        total = wide(x)
        for one in windows:
            total = sums(total, one)
        return (total / number(windows)).astype(x.dtype), OfX(spec(x))

    def backward(residuals, dy):
        x = residuals.of_x
        windows = along(x.shape)
        dx = wide(dy) / number(windows)
        for one in reversed(windows):
            dx = spread(dx, one)
        return (dx.astype(x.dtype),)

    def number(along) -> float | jax.Array:
        """What every window's sum is divided by: a number, or one a window [*spatial, 1]."""
        if divisor is not None:
            return divisor
        if count_padding:
            return float(np.prod([windows.window for windows in along]))
        n = np.ones(())
        for windows in along:
            n = n[..., None] * positions(windows)
        if not n.all():
            raise InputError(
                "average_pool: a window holds nothing but padding; wants less padding, or count_padding=True"
            )
        return n[..., None].astype(np.float32)

    return forward, backward


def sums(x, windows) -> jax.Array:
    """The sum of every window along one axis."""
    return slide(x, windows.axis, windows.window, windows.stride, (windows.low, windows.high))


def spread(g, windows) -> jax.Array:
    """The adjoint: for every position along the axis the sum of g over the windows that cover it."""
    if windows.stride == windows.window:  # every position is in one
        copies = jnp.repeat(g, windows.window, windows.axis)
        return padded(copies, windows.axis, -windows.low, windows.size + windows.low - copies.shape[windows.axis])
    low, high = windows.window - 1 - windows.low, windows.size - 1 - windows.last(0)
    apart = padded(g, windows.axis, low, high, windows.stride - 1)
    return slide(apart, windows.axis, windows.window, 1, (0, 0))


def slide(x, axis: int, window: int, stride: int, padding: tuple[int, int]) -> jax.Array:
    along = lambda one, other: tuple(one if i == axis else other for i in range(x.ndim))
    zero = np.zeros((), x.dtype)
    return lax.reduce_window(x, zero, lax.add, along(window, 1), along(stride, 1), along(padding, (0, 0)))


def positions(windows) -> np.ndarray:
    """How many taps of each window are not padding."""
    first = np.arange(windows.count)[:, None] * windows.stride - windows.low
    taps = first + np.arange(windows.window)
    return ((taps >= 0) & (taps < windows.size)).sum(1)
