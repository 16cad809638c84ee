"""Windows that slide along an axis: where they lie, the taps they take, and the adjoint that puts each tap back.

Window i, of `window` taps, covers the positions  i · stride + k · dilation - low,  k = 0 … window - 1.
An area is a list of these, one an axis.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.errors import InputError, want_count
from manual_backprop.options import want_not_negative

Padding = Literal["SAME", "VALID"] | tuple[tuple[int, int], ...]


class Windows(NamedTuple):
    axis: int
    size: int  # of the axis
    window: int
    stride: int
    dilation: int
    low: int  # padding before the axis
    high: int  # and after it

    @property
    def span(self) -> int:
        """From a window's first position to its last, both counted."""
        return (self.window - 1) * self.dilation + 1

    @property
    def count(self) -> int:
        return (self.size + self.low + self.high - self.span) // self.stride + 1

    def first(self, k: int) -> int:
        """Where the first window has its tap k; before 0 is padding."""
        return k * self.dilation - self.low

    def last(self, k: int) -> int:
        """Where the last window has its tap k; from `size` on is padding."""
        return self.first(k) + (self.count - 1) * self.stride

    def inside(self, k: int) -> range:
        """The windows that have their tap k inside the axis."""
        start = max(0, -(self.first(k) // self.stride))
        stop = min(self.count, (self.size - 1 - self.first(k)) // self.stride + 1)
        return range(start, max(start, stop))


def tap(x, w: Windows, k: int, fill: float) -> jax.Array:
    """x at tap k of every window: the size becomes the count of windows; `fill` where the tap is padding."""
    inside = w.inside(k)
    start, stop = (w.first(k) + inside[0] * w.stride, w.first(k) + inside[-1] * w.stride + 1) if inside else (0, 0)
    taken = lax.slice_in_dim(x, start, stop, w.stride, w.axis)
    return padded(taken, w.axis, inside.start, w.count - inside.stop, fill=fill)


def place(d, w: Windows, k: int) -> jax.Array:
    """The adjoint of `tap`: each window's entry of d back at its tap, zero where no window has it."""
    return padded(d, w.axis, w.first(k), w.size - 1 - w.last(k), w.stride - 1)


def padded(x, axis: int, low: int, high: int, between: int = 0, fill: float = 0) -> jax.Array:
    """x with so many more entries before, behind and between its own along an axis; fewer where negative."""
    config = [(low, high, between) if i == axis else (0, 0, 0) for i in range(x.ndim)]
    return lax.pad(x, jnp.asarray(fill, x.dtype), config)


def want_window(op: str, window, strides, padding, dilation=1) -> None:
    """Raises InputError for options that are not as the ops say, or are tuples of several lengths."""
    options = {"window": window, "strides": window if strides is None else strides, "dilation": dilation}
    for name, value in options.items():
        for one in value if isinstance(value, tuple) else (value,):
            want_count(f"{op}: {name}", one)
    if isinstance(padding, tuple):
        for low, high in padding:
            want_not_negative(op, padding=low)
            want_not_negative(op, padding=high)
        options["padding"] = padding
    lengths = {len(value) for value in options.values() if isinstance(value, tuple)}
    if len(lengths) > 1 or 0 in lengths:
        got = ", ".join(f"{name} {value}" for name, value in options.items())
        raise InputError(f"{op}: got {got}; wants as many of each, one for every spatial axis")


def spatial_axes(op: str, shape, *options) -> range:
    """The axes that are pooled: as many as a tuple among the options has entries, before the last axis of channels.

    Numbers alone: all axes between the first and the last.
    """
    lengths = [len(option) for option in options if isinstance(option, tuple)]
    ndim = len(shape)
    spatial = lengths[0] if lengths else ndim - 2
    if spatial < 1 or ndim < spatial + 1:
        wants = f"[..., {spatial} spatial axes, channels]" if lengths else "[batch, *spatial, channels]"
        raise InputError(f"{op}: x has shape {shape}; wants {wants}")
    return range(ndim - 1 - spatial, ndim - 1)


def windows_of(op: str, shape, window, strides, padding, dilation=1) -> list[Windows]:
    """The windows along every spatial axis of a shape [..., *spatial, channels]."""
    named = isinstance(padding, str)
    axes = spatial_axes(op, shape, window, strides, dilation, *(() if named else (padding,)))
    window, dilation = per_axis(window, axes), per_axis(dilation, axes)
    strides = window if strides is None else per_axis(strides, axes)
    if named:
        spans = [(w - 1) * d + 1 for w, d in zip(window, dilation, strict=True)]
        padding = lax.padtype_to_pads([shape[axis] for axis in axes], spans, strides, padding)
    along = []
    for axis, w, s, d, (low, high) in zip(axes, window, strides, dilation, padding, strict=True):
        one = Windows(axis, shape[axis], w, s, d, low, high)
        if one.count < 1:
            raise InputError(
                f"{op}: x has shape {shape}, a window spans {one.span} of axis {axis}, which with its padding "
                f"has {one.size + low + high}; wants a smaller window or more padding"
            )
        along.append(one)
    return along


def per_axis(option, axes) -> tuple:
    """An option as one value for each axis."""
    return option if isinstance(option, tuple) else (option,) * len(axes)
