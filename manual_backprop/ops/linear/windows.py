"""How the kernel of a convolution moves over its input: the options, read for each spatial axis, and their checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from manual_backprop.errors import InputError, want_count
from manual_backprop.ops.arrays import want_float

PerAxis = int | tuple[int, ...]
Padding = Literal["SAME", "VALID"] | int | tuple[int | tuple[int, int], ...]


@dataclass(frozen=True)
class Window:
    """For each spatial axis: stride, (lo, hi) padding, input dilation, kernel dilation. The groups of channels."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    input_dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    groups: int

    def axes(self):
        """s, (lo, hi), t, d of each spatial axis."""
        return zip(self.strides, self.padding, self.input_dilation, self.kernel_dilation, strict=True)

    def output_size(self, size: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, ...]:
        """m for each spatial axis; below 1 where the kernel does not fit in."""
        return tuple(
            ((n - 1) * t + lo + hi - (K - 1) * d) // s + 1
            for n, K, (s, (lo, hi), t, d) in zip(size, kernel, self.axes(), strict=True)
        )


def per_axis(op: str, name: str, value: PerAxis, count: int) -> tuple[int, ...]:
    """One number for each spatial axis."""
    values = value if isinstance(value, tuple) else (value,) * count
    if len(values) != count:
        raise InputError(f"{op}: {name} is {value!r}, w has {count} spatial axes; wants {count} numbers, or one")
    return values


def pairs(op: str, padding: int | tuple, count: int) -> tuple[tuple[int, int], ...]:
    """(before, after) for each spatial axis."""
    each = per_axis(op, "padding", padding, count)
    return tuple(one if isinstance(one, tuple) else (one, one) for one in each)


# ── checks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_options(op: str, groups: int, **per_axis: PerAxis) -> None:
    """The options alone, in the constructor."""
    want_count(f"{op}: groups", groups)
    for name, value in per_axis.items():
        for one in value if isinstance(value, tuple) else (value,):
            want_count(f"{op}: {name}", one)


def check(op: str, x, w, groups: int, transpose_kernel: bool) -> None:
    """The arrays: their dtypes, axes and channels."""
    want_float(op, x=x, w=w)
    count = w.ndim - 2
    if not 1 <= count <= 3:
        raise InputError(f"{op}: w has shape {w.shape}; wants 1 to 3 spatial axes, then two of channels")
    if w.shape[-1] % groups:
        raise InputError(f"{op}: w has shape {w.shape}; wants a multiple of groups, {groups}, as its last axis")
    inputs = w.shape[-1] if transpose_kernel else w.shape[-2] * groups
    if x.ndim < count + 1 or x.shape[-1] != inputs:
        axes = ", ".join(["...", *"dhw"[-count:], str(inputs)])
        raise InputError(f"{op}: x has shape {x.shape}, w {w.shape}, groups is {groups}; wants x [{axes}]")
    if 0 in (*x.shape[-count - 1 :], *w.shape):
        raise InputError(f"{op}: x has shape {x.shape}, w {w.shape}; wants at least one entry along these axes")


def check_fit(op: str, size: tuple[int, ...], kernel: tuple[int, ...], window: Window) -> None:
    """Whether the kernel fits into the padded input."""
    if min(window.output_size(size, kernel)) < 1:
        shown = f"padding {window.padding}, kernel_dilation {window.kernel_dilation}"
        raise InputError(f"{op}: a kernel {kernel} does not fit into x, {size} with {shown}; wants more padding")


def check_bias(op: str, b, outputs: int) -> None:
    want_float(op, b=b)
    if b.shape != (outputs,):
        raise InputError(f"{op}: b has shape {b.shape}; wants ({outputs},), the channels out")
