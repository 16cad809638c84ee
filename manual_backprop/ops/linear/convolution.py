"""What `conv` and `conv_transpose` share: the convolution of N examples, channels last, and its two gradients.

Along one spatial axis, with stride s, padding lo and hi, input dilation t, kernel dilation d, a kernel of K taps, and
x̃ for x with t - 1 zeros between its entries (x̃[i t] = x[i]):

    y[p] = Σₖ x̃[p s + k d - lo] w[k],    p = 0 … m - 1

Several axes do so at once; w[k] is a matrix [in, out], or one for each group of channels.

dx. x[i] reaches y[p] through the tap k for which i t = p s + k d - lo. Counted from the other end, k = K - 1 - k′:

    dx[i] = Σₖ′ dỹ[i t + k′ d - lo′] w[K - 1 - k′]ᵀ,    lo′ = (K - 1) d - lo

with s - 1 zeros between the entries of dỹ: again a convolution, stride and input dilation exchanged, the kernel flipped
and transposed (within each group). hi′ is what gives as many entries as x has.

dw. w[k] meets x at p s + k d - lo for every p:

    dw[k] = Σₚ x̃[p s + k d - lo]ᵀ dy[p]

That is one matmul a tap, or of all taps side by side; or a convolution of x with dy for its kernel, stride and kernel
dilation exchanged, in which the examples take the channels' place.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from manual_backprop.ops.arrays import Spec, spec, wide, wide_dtype
from manual_backprop.ops.linear.dense import bias_gradient, product, rows
from manual_backprop.ops.linear.windows import Window, check, check_bias, check_fit

PATCHES = 2**22  # bytes of the patches that are multiplied at once
MOST_PATCHES = 2**24  # of an example, above which they are not made


class Residuals(NamedTuple):
    x: jax.Array  # [..., *spatial, in]
    w: jax.Array  # [*kernel, in/groups, out]
    of_b: Spec | None  # [out]


def passes(op: str, window_of: Callable, groups: int, bias: bool, transpose_kernel: bool = False):
    """forward and backward; `window_of(size, kernel)` is the Window for the spatial sizes of x and w."""

    def turned(w):
        return transposed(w, groups) if transpose_kernel else w

    def weighted(x, w):
        check(op, x, w, groups, transpose_kernel)
        size, kernel = spatial(x, w), w.shape[:-2]
        window = window_of(size, kernel)
        check_fit(op, size, kernel, window)
        y = convolve(one_batch(x, w), turned(w), window)
        return y.reshape(*x.shape[: -len(size) - 1], *y.shape[1:])

    def forward(x, w, b):
        y = weighted(x, w)
        check_bias(op, b, y.shape[-1])
        return (y + b).astype(jnp.result_type(x, w, b)), Residuals(x, w, spec(b))

    def forward_without_bias(x, w):
        return weighted(x, w).astype(jnp.result_type(x, w)), Residuals(x, w, None)

    def backward(residuals, dy):
        x, w, of_b = residuals
        size, kernel = spatial(x, w), w.shape[:-2]
        window = window_of(size, kernel)
        dx = input_gradient(one_batch(dy, w), turned(w), size, window).reshape(x.shape).astype(x.dtype)
        dw = turned(kernel_gradient(one_batch(x, w), one_batch(dy, w), kernel, window)).astype(w.dtype)
        return (dx, dw, bias_gradient(dy, of_b)) if bias else (dx, dw)

    return (forward if bias else forward_without_bias), backward


def spatial(x, w) -> tuple[int, ...]:
    """The sizes of x's spatial axes, of which w has as many."""
    return x.shape[1 - w.ndim : -1]


def one_batch(x, w) -> jax.Array:
    """[..., *spatial, channels] → [N, *spatial, channels]."""
    kept = w.ndim - 1
    return x.reshape(math.prod(x.shape[:-kept]), *x.shape[-kept:])


# ── y ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def convolve(x, w, window: Window) -> jax.Array:
    """x [N, *spatial, in], w [*kernel, in/groups, out] → y [N, *spatial, out], in at least float32.

    Where each input has a group to itself, on a CPU, entry by entry: measured 0.02 to 0.06 of XLA's time.
    """
    if w.shape[-2] == 1 < window.groups and math.prod(w.shape[:-2]) <= 64:  # above, the loop's body would be long
        return on_cpu(entry_by_entry, whole, x, w, window)
    return whole(x, w, window)


def on_cpu(here: Callable, elsewhere: Callable, a, b, *sizes) -> jax.Array:
    """here(a, b, *sizes) where that is compiled for a CPU, else elsewhere(a, b, *sizes)."""
    return lax.platform_dependent(
        a, b, cpu=lambda a, b: here(a, b, *sizes), default=lambda a, b: elsewhere(a, b, *sizes)
    )


def whole(x, w, window: Window) -> jax.Array:
    """The convolution as XLA has it."""
    dtype = jnp.result_type(x, w)
    return lax.conv_general_dilated(
        x.astype(dtype),
        w.astype(dtype),
        window.strides,
        window.padding,
        window.input_dilation,
        window.kernel_dilation,
        dimensions(w.ndim - 2, "N{}C", "{}IO", "N{}C"),
        window.groups,
        preferred_element_type=wide_dtype(dtype),
    )


def entry_by_entry(x, w, window: Window) -> jax.Array:
    """A depthwise convolution as a sum over taps of products of numbers, which fuse into one loop over y."""
    kernel, groups = w.shape[:-2], window.groups
    size = window.output_size(x.shape[1:-1], kernel)
    x, w = padded(x, window), wide(w).reshape(*kernel, groups, -1)
    y = sum(wide(at_tap(x, k, size, window))[..., None] * w[k] for k in itertools.product(*map(range, kernel)))
    return y.reshape(*y.shape[:-2], math.prod(y.shape[-2:]))


# ── dx and dw ────────────────────────────────────────────────────────────────────────────────────────────────────────


def input_gradient(dy, w, size: tuple[int, ...], window: Window) -> jax.Array:
    """dx [N, *size, in] from dy [N, *spatial, out], in at least float32."""
    padding = []
    for n, m, K, (s, (lo, _), t, d) in zip(size, dy.shape[1:-1], w.shape[:-2], window.axes(), strict=True):
        lo_ = (K - 1) * d - lo
        padding.append((lo_, (n - 1) * t + (K - 1) * d - (m - 1) * s - lo_))
    back = Window(window.input_dilation, tuple(padding), window.strides, window.kernel_dilation, window.groups)
    return convolve(dy, transposed(w, window.groups), back)


def transposed(w, groups: int) -> jax.Array:
    """w [*kernel, in/groups, out] flipped along its spatial axes, in and out exchanged within each group."""
    *kernel, inputs, out = w.shape
    w = jnp.flip(w, tuple(range(len(kernel)))).reshape(*kernel, inputs, groups, out // groups)
    return jnp.swapaxes(w, -1, -3).reshape(*kernel, out // groups, groups * inputs)


def kernel_gradient(x, dy, kernel: tuple[int, ...], window: Window) -> jax.Array:
    """dw [*kernel, in/groups, out] from x [N, *spatial, in] and dy [N, *spatial, out], in at least float32.

    On a CPU by patches, measured 0.55 to 0.75 of the time of a convolution; but tap by tap where there are groups, or
    one tap, 0.04 to 0.9. As a convolution where patches would be too large, and of one input: the product is with a
    vector then, and its sum rounds several times as much.
    """
    taps, inputs = math.prod(kernel), x.shape[-1]
    of_an_example = 4 * math.prod(dy.shape[1:-1]) * taps * inputs
    if len(x) and window.groups == 1 < min(taps, inputs) and of_an_example <= MOST_PATCHES:
        return on_cpu(by_patches, examples_as_channels, x, dy, kernel, window)
    if max(window.strides) == 1 == window.groups and len(kernel) <= 2 and taps > 1:
        return examples_as_channels(x, dy, kernel, window)
    return on_cpu(tap_by_tap, examples_as_channels, x, dy, kernel, window)


def examples_as_channels(x, dy, kernel: tuple[int, ...], window: Window) -> jax.Array:
    """dw as one convolution of x with dy for its kernel."""
    dtype, padding = jnp.result_type(x, dy), []
    for n, m, K, (s, (lo, _), t, d) in zip(x.shape[1:-1], dy.shape[1:-1], kernel, window.axes(), strict=True):
        padding.append((lo, (K - 1) * d + (m - 1) * s - (n - 1) * t - lo))
    return lax.conv_general_dilated(
        x.astype(dtype),
        dy.astype(dtype),
        window.kernel_dilation,
        padding,
        window.input_dilation,
        window.strides,
        dimensions(len(kernel), "C{}N", "I{}O", "{}NC"),
        batch_group_count=window.groups,
        preferred_element_type=wide_dtype(dtype),
    )


def by_patches(x, dy, kernel: tuple[int, ...], window: Window) -> jax.Array:
    """dw as one matmul of patches with dy, in a scan over a few examples at a time: as many as the caches hold.

    The patch of a place p is what all taps meet there, side by side: [taps · in].
    """
    size, (n, *_, inputs) = dy.shape[1:-1], x.shape
    taps = list(itertools.product(*map(range, kernel)))
    most = max(PATCHES // max(4 * math.prod(size) * len(taps) * inputs, 1), 1)
    few = max(count for count in range(1, n + 1) if n % count == 0 and count <= most)

    def add(dw, first):
        x_, dy_ = (lax.dynamic_slice_in_dim(a, first, few) for a in (x, dy))
        x_ = padded(x_, window)
        patches = jnp.concatenate([at_tap(x_, k, size, window) for k in taps], -1)
        return dw + product(rows(dy_), (0,), rows(patches), (0,)), None

    nothing = jnp.zeros_like(x, wide_dtype(jnp.result_type(x, dy)), (dy.shape[-1], len(taps) * inputs))
    dw, _ = lax.scan(add, nothing, np.arange(0, n, few))
    return dw.T.reshape(*kernel, inputs, -1)


def tap_by_tap(x, dy, kernel: tuple[int, ...], window: Window) -> jax.Array:
    """dw as one matmul a tap, in a scan: in a program without a loop, XLA holds a copy of x for every tap at once."""
    groups, size = window.groups, dy.shape[1:-1]
    x = padded(x, window)

    def at(_, k):
        x_k, dy_ = grouped(at_tap(x, k, size, window), groups), grouped(dy, groups)
        places = tuple(range(dy.ndim - 1))
        if groups == 1:
            dw_k = product(x_k, places, dy_, places)
        elif x_k.shape[-1] == 1:
            dw_k = jnp.sum(wide(x_k) * dy_, places)
        else:
            axes = (places, places), ((dy.ndim - 1,),) * 2  # Σ over places, for each group: [groups, in, out]
            dw_k = lax.dot_general(x_k, dy_, axes, preferred_element_type=wide_dtype(jnp.result_type(x, dy)))
            dw_k = jnp.swapaxes(dw_k, 0, 1)
        return None, dw_k.reshape(x_k.shape[-1], -1)

    taps = np.array(list(itertools.product(*map(range, kernel))), np.int32)
    _, dw = lax.scan(at, None, taps)
    return dw.reshape(*kernel, *dw.shape[1:])


# ── shapes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def padded(x, window: Window) -> jax.Array:
    """x̃ with its padding."""
    between = ((lo, hi, t - 1) for _, (lo, hi), t, _ in window.axes())
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *between, (0, 0, 0)))


def at_tap(x, k, size: tuple[int, ...], window: Window) -> jax.Array:
    """What the tap k meets of padded x̃, for every p: [N, *size, in]."""
    start = [np.int32(0), *(k[axis] * np.int32(d) for axis, d in enumerate(window.kernel_dilation)), np.int32(0)]
    reach = [(m - 1) * s + 1 for m, s in zip(size, window.strides, strict=True)]
    x = lax.dynamic_slice(x, start, (x.shape[0], *reach, x.shape[-1]))
    return lax.slice(x, (0,) * x.ndim, x.shape, (1, *window.strides, 1))


def grouped(x, groups: int) -> jax.Array:
    """[..., channels] → [..., groups, channels/groups]."""
    return x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)


def dimensions(count: int, *layouts: str) -> tuple[str, ...]:
    """The layouts of x, w and y in lax's letters, "{}" for the spatial axes."""
    return tuple(layout.format("DHW"[-count:]) for layout in layouts)
