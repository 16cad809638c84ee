"""PyTorch's functions of this family, in our ops."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import manual_backprop as mb
from torch_samples import Skip

o = mb.ops


def _channels_last(op, x, spatial: int):
    """op on x [..., channels, *spatial], whose channels are wanted last. Jitted: samples that are alike compile once."""
    channels = x.ndim - spatial - 1
    return jnp.moveaxis(jax.jit(op)(jnp.moveaxis(x, channels, -1)), -1, channels)


def _tuple(value, spatial: int) -> tuple:
    if not isinstance(value, tuple | list):
        return (value,) * spatial
    return tuple(value) * (spatial if len(value) == 1 else 1)


def _extra(x, window, strides, padding, dilation, ceil_mode) -> tuple[int, ...]:
    """What `ceil_mode` adds after each padded axis: room for one more window, if that starts before the padding ends."""
    extras = []
    for n, k, s, p, d in zip(x.shape[-len(window) :], window, strides, padding, dilation, strict=True):
        span = d * (k - 1) + 1
        windows = -(-(n + 2 * p - span) // s) + 1
        if (windows - 1) * s >= n + p:
            windows -= 1
        extras.append(max(0, (windows - 1) * s + span - n - 2 * p) if ceil_mode else 0)
    return tuple(extras)


def _max_pool(spatial: int):
    def run(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
        if return_indices:
            raise Skip("the indices are residuals, not outputs")
        window, padding, dilation = (_tuple(value, spatial) for value in (kernel_size, padding, dilation))
        strides = _tuple(stride, spatial) if stride else window
        extra = _extra(input, window, strides, padding, dilation, ceil_mode)
        pairs = tuple((p, p + e) for p, e in zip(padding, extra, strict=True))
        op = o.max_pool(window=window, strides=strides, padding=pairs, dilation=dilation)
        return _channels_last(op, input, spatial)

    return run


def nn_functional_max_pool1d(*args, **options):
    return _max_pool(1)(*args, **options)


def nn_functional_max_pool2d(*args, **options):
    return _max_pool(2)(*args, **options)


def nn_functional_max_pool3d(*args, **options):
    return _max_pool(3)(*args, **options)


def _avg_pool(spatial: int):
    def run(input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None):
        window, padding = _tuple(kernel_size, spatial), _tuple(padding, spatial)
        strides = _tuple(stride, spatial) if stride else window
        extra = _extra(input, window, strides, padding, (1,) * spatial, ceil_mode)
        pairs = tuple((p, p + e) for p, e in zip(padding, extra, strict=True))
        if (
            count_include_pad
        ):  # PyTorch counts the padding, but not what ceil_mode adds: those are numbers, these padding
            input = jnp.pad(input, [(0, 0)] * (input.ndim - spatial) + [(p, p) for p in padding])
            pairs = tuple((0, e) for e in extra)
        op = o.average_pool(
            window=window, strides=strides, padding=pairs, count_padding=False, divisor=divisor_override
        )
        return _channels_last(op, input, spatial)

    return run


def nn_functional_avg_pool1d(*args, **options):
    return _avg_pool(1)(*args, **options)


def nn_functional_avg_pool2d(*args, **options):
    return _avg_pool(2)(*args, **options)


def nn_functional_avg_pool3d(*args, **options):
    return _avg_pool(3)(*args, **options)


def _adaptive(constructor, input, output_size, spatial: int):
    """A size of None is that of the input."""
    sizes = _tuple(output_size, spatial)
    sizes = tuple(n if m is None else m for n, m in zip(input.shape[-spatial:], sizes, strict=True))
    return _channels_last(constructor(sizes=sizes), input, spatial)


def nn_functional_adaptive_avg_pool1d(input, output_size):
    return _adaptive(o.adaptive_average_pool, input, output_size, 1)


def nn_functional_adaptive_avg_pool2d(input, output_size):
    return _adaptive(o.adaptive_average_pool, input, output_size, 2)


def nn_functional_adaptive_avg_pool3d(input, output_size):
    return _adaptive(o.adaptive_average_pool, input, output_size, 3)


def _adaptive_max(spatial: int):
    def run(input, output_size, return_indices=False):
        if return_indices:
            raise Skip("the indices are residuals, not outputs")
        return _adaptive(o.adaptive_max_pool, input, output_size, spatial)

    return run


def nn_functional_adaptive_max_pool1d(*args, **options):
    return _adaptive_max(1)(*args, **options)


def nn_functional_adaptive_max_pool2d(*args, **options):
    return _adaptive_max(2)(*args, **options)


def nn_functional_adaptive_max_pool3d(*args, **options):
    return _adaptive_max(3)(*args, **options)


def nn_functional_interpolate(
    input, size=None, scale_factor=None, mode="nearest", align_corners=None, recompute_scale_factor=None
):
    spatial = input.ndim - 2
    if mode == "bicubic":
        raise Skip("bicubic is no op of ours")
    if size is None and (recompute_scale_factor or mode == "area"):
        size, scale_factor = (
            tuple(int(n * s) for n, s in zip(input.shape[2:], _tuple(scale_factor, spatial), strict=True)),
            None,
        )
    sizes = None if size is None else _tuple(size, spatial)
    scale = None if scale_factor is None else _tuple(scale_factor, spatial)
    if mode == "area":
        op = o.adaptive_average_pool(sizes=sizes)
    elif mode.startswith("nearest"):
        op = o.upsample_nearest(sizes=sizes, scale=scale, half_pixel=mode == "nearest-exact")
    else:
        op = o.upsample_bilinear(sizes=sizes, scale=scale, align_corners=bool(align_corners))
    return _channels_last(op, input, spatial)


def nn_functional_upsample_nearest(input, size=None, scale_factor=None):
    return nn_functional_interpolate(input, size, scale_factor)


def nn_functional_upsample_bilinear(input, size=None, scale_factor=None):
    return nn_functional_interpolate(input, size, scale_factor, mode="bilinear", align_corners=True)
