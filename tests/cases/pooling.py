"""Pooling and upsampling."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import manual_backprop as mb
from cases.case import Case, Draw, exactly, layer_case, normal
from manual_backprop.layers import Apply

o = mb.ops


def distinct(*shape: int) -> Draw:
    """Numbers no two of which are equal in any precision down to bfloat16, so that a maximum is one position."""

    def draw(rng):
        numbers = rng.permutation(int(np.prod(shape))) - np.prod(shape) // 2
        return (numbers.reshape(shape) / 8.0,)

    return draw


def with_ties(*shape: int) -> Draw:
    """Three values only: JAX's order among equals is ours."""
    return lambda rng: (rng.integers(0, 3, shape).astype(float),)


def flax_max(window, strides=None, padding="VALID"):
    return lambda x: nn.max_pool(x, window, strides or window, padding)


def flax_average(window, strides=None, padding="VALID", count=True):
    return lambda x: nn.avg_pool(x, window, strides or window, padding, count_include_pad=count)


def dilated_max(x):
    """Windows of 2 x 2, three apart: the largest of four shifted images."""
    h, w = x.shape[1] - 3, x.shape[2] - 3
    return jnp.max(jnp.stack([x[:, i : i + h, j : j + w] for i in (0, 3) for j in (0, 3)]), 0)


def first_largest(x, axis=1):
    """The first NaN, where there is one: argmax's order."""
    return jnp.squeeze(jnp.take_along_axis(x, jnp.argmax(x, axis, keepdims=True), axis), axis)


def first_largest_of_four(x):
    """Windows of 2 x 2, two apart."""
    return first_largest(jnp.stack([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]), 0)


def adaptive(reduce, *sizes: int):
    """PyTorch's definition of adaptive pooling, window by window."""

    def run(x):
        for i, m in reversed(list(enumerate(sizes))):
            axis = i + x.ndim - 1 - len(sizes)
            n = x.shape[axis]
            bounds = [(int(np.floor(i * n / m)), int(np.ceil((i + 1) * n / m))) for i in range(m)]
            x = jnp.stack([reduce(jax.lax.slice_in_dim(x, *b, axis=axis), axis) for b in bounds], axis)
        return x

    return run


def resize(method: str, *sizes: int):
    return lambda x: jax.image.resize(x, (x.shape[0], *sizes, x.shape[-1]), method, antialias=False)


def doubled(method: str):
    return lambda x: resize(method, *(2 * n for n in x.shape[1:-1]))(x)


def interpolate(*sizes: int, corners: bool = True):
    """jnp.interp along each axis."""

    def along(x, axis, m):
        n = x.shape[axis]
        at = np.linspace(0, n - 1, m) if corners else (np.arange(m) + 0.5) * n / m - 0.5
        line = lambda values: jnp.interp(at, np.arange(n, dtype=float), values)
        return jnp.apply_along_axis(line, axis, x)

    def run(x):
        for axis, m in enumerate(sizes, start=1):
            x = along(x, axis, m)
        return x

    return run


def corner_copies(*sizes: int):
    """Nearest neighbours with cells compared at their corners."""

    def run(x):
        for axis, m in enumerate(sizes, start=1):
            x = jnp.take(x, np.arange(m) * x.shape[axis] // m, axis)
        return x

    return run


def mean_over_positions(x):
    return jnp.mean(x, tuple(range(1, x.ndim - 1)))


def max_over_positions(x):
    return nn.max_pool(x, x.shape[1:-1]).reshape(x.shape[0], x.shape[-1])


LARGE = normal((16, 32, 32, 32))

OPS = [
    Case("max_pool", o.max_pool(window=2), flax_max((2, 2)), distinct(2, 5, 7, 3), LARGE),
    Case("max_pool, overlapping", o.max_pool(window=3, strides=2, padding="SAME"), flax_max((3, 3), (2, 2), "SAME"), distinct(2, 5, 7, 3)),
    Case("max_pool, one dimension", o.max_pool(window=(3,), strides=1, padding=((2, 1),)), flax_max((3,), (1,), ((2, 1),)), distinct(2, 7, 3)),
    Case("max_pool, three dimensions", o.max_pool(window=(2, 3, 2), strides=(1, 2, 2)), flax_max((2, 3, 2), (1, 2, 2)), distinct(2, 3, 5, 4, 2)),
    Case("max_pool, dilated", o.max_pool(window=2, strides=1, dilation=3), dilated_max, distinct(2, 5, 7, 3)),
    Case("max_pool, two leading axes", o.max_pool(window=(2, 3)), flax_max((2, 3)), distinct(2, 3, 5, 7, 3)),
    Case("max_pool, ties", o.max_pool(window=3, strides=2, padding="SAME"), flax_max((3, 3), (2, 2), "SAME"), with_ties(2, 5, 7, 3)),
    Case("average_pool", o.average_pool(window=2), flax_average((2, 2)), normal((2, 5, 7, 3)), LARGE),
    Case("average_pool, overlapping", o.average_pool(window=3, strides=2, padding="SAME"), flax_average((3, 3), (2, 2), "SAME"), normal((2, 5, 7, 3))),
    Case("average_pool, padding not counted", o.average_pool(window=3, strides=2, padding="SAME", count_padding=False), flax_average((3, 3), (2, 2), "SAME", False), normal((2, 5, 7, 3))),
    Case("average_pool, one dimension", o.average_pool(window=(3,), strides=1, padding=((2, 1),)), flax_average((3,), (1,), ((2, 1),)), normal((2, 7, 3))),
    Case("average_pool, three dimensions", o.average_pool(window=2, strides=(1, 2, 3)), flax_average((2, 2, 2), (1, 2, 3)), normal((2, 3, 5, 7, 2))),
    Case("average_pool, divisor", o.average_pool(window=(2, 3), divisor=-5), lambda x: flax_average((2, 3))(x) * (-6 / 5), normal((2, 5, 7, 3))),
    Case("global_average_pool", o.global_average_pool(), mean_over_positions, normal((2, 5, 7, 3)), LARGE),
    Case("global_average_pool, one dimension", o.global_average_pool(), mean_over_positions, normal((2, 7, 3))),
    Case("global_max_pool", o.global_max_pool(), max_over_positions, distinct(2, 5, 7, 3), LARGE),
    Case("global_max_pool, three dimensions", o.global_max_pool(), max_over_positions, distinct(2, 3, 5, 2, 3)),
    Case("global_max_pool, ties", o.global_max_pool(), max_over_positions, with_ties(2, 5, 7, 3)),
    Case("adaptive_average_pool", o.adaptive_average_pool(sizes=3), adaptive(jnp.mean, 3, 3), normal((2, 5, 7, 3)), LARGE),
    Case("adaptive_average_pool, one row a line", o.adaptive_average_pool(sizes=(1, 11)), adaptive(jnp.mean, 1, 11), normal((2, 13, 7, 3))),
    Case("adaptive_max_pool", o.adaptive_max_pool(sizes=3), adaptive(jnp.max, 3, 3), distinct(2, 5, 7, 3), LARGE),
    Case("adaptive_max_pool, more than there are", o.adaptive_max_pool(sizes=(11,)), adaptive(jnp.max, 11), distinct(2, 3, 7, 3)),
    Case("upsample_nearest", o.upsample_nearest(scale=2), doubled("nearest"), normal((2, 5, 7, 3)), LARGE),
    Case("upsample_nearest, sizes", o.upsample_nearest(sizes=(8, 6)), resize("nearest", 8, 6), normal((2, 5, 7, 3))),
    Case("upsample_nearest, corners", o.upsample_nearest(sizes=(8,), half_pixel=False), corner_copies(8), normal((2, 5, 3))),
    Case("upsample_nearest, centres on edges", o.upsample_nearest(sizes=(9, 29)), resize("nearest", 9, 29), normal((2, 14, 14, 3))),
    Case("upsample_nearest, corners on edges", o.upsample_nearest(sizes=(18, 27), half_pixel=False), corner_copies(18, 27), normal((2, 14, 21, 3))),
    Case("upsample_bilinear", o.upsample_bilinear(scale=2), doubled("linear"), normal((2, 5, 7, 3)), LARGE),
    Case("upsample_bilinear, smaller", o.upsample_bilinear(sizes=(4, 11)), interpolate(4, 11, corners=False), normal((2, 5, 7, 3))),
    Case("upsample_bilinear, corners", o.upsample_bilinear(sizes=(11, 1), align_corners=True), interpolate(11, 1), normal((2, 5, 7, 3))),
    Case("upsample_bilinear, three dimensions", o.upsample_bilinear(scale=(2.5, 1.0, 3)), interpolate(5, 3, 15, corners=False), normal((2, 2, 3, 5, 2))),
]  # fmt: skip


LAYERS: list[Case] = [
    layer_case("Apply, a pool", Apply(o.max_pool(window=2)), lambda p, x: flax_max((2, 2))(x), distinct(2, 4, 6, 3)),
]

large = 1e4 * np.arange(-17.0, 18.0).reshape(1, 5, 7, 1)
one_infinite = lambda n: np.where(np.arange(n) == 5, np.inf, np.arange(n) - 100.0).reshape(1, n, 1)
infinite = np.where(large == 0, np.inf, np.where(large == -17e4, np.nan, large / 1e4))
not_numbers = np.array([[np.nan, np.inf, 1, 2], [3, np.nan, np.inf, 4], [5, 6, np.nan, 7], [8, 9, np.nan, np.nan]])[
    None, ..., None
]

# Judged in every precision: finite where the truth is, and right.
EXTREMES: list[Case] = [
    Case("max_pool, all equal", o.max_pool(window=3, strides=2, padding="SAME"), flax_max((3, 3), (2, 2), "SAME"), exactly(np.zeros((2, 5, 7, 1)))),
    Case("max_pool, large", o.max_pool(window=3, strides=2), flax_max((3, 3), (2, 2)), exactly(large / 20)),
    Case("max_pool, masked with -inf", o.max_pool(window=2), flax_max((2, 2)), exactly(np.where(np.arange(35) % 2, -np.inf, np.arange(35.0)).reshape(1, 5, 7, 1))),
    Case("max_pool, taps that are all padding", o.max_pool(window=3, strides=1, padding="SAME"), flax_max((3, 3), (1, 1), "SAME"), exactly(np.array([[[[3.0]]]]))),
    Case("max_pool, not a number", o.max_pool(window=2), first_largest_of_four, exactly(not_numbers)),
    Case("global_max_pool, not a number", o.global_max_pool(), lambda x: first_largest(x.reshape(1, -1, 1)), exactly(not_numbers)),
    Case("adaptive_max_pool, not a number", o.adaptive_max_pool(sizes=(2, 3)), adaptive(first_largest, 2, 3), exactly(not_numbers)),
    Case("adaptive_average_pool, an infinite position", o.adaptive_average_pool(sizes=3), adaptive(jnp.mean, 3, 3), exactly(infinite)),
    Case("adaptive_average_pool, one of many", o.adaptive_average_pool(sizes=(2,)), adaptive(jnp.mean, 2), exactly(one_infinite(83))),
    Case("adaptive_average_pool, one of very many", o.adaptive_average_pool(sizes=(2,)), adaptive(jnp.mean, 2), exactly(one_infinite(331))),
    Case("average_pool, an infinite position", o.average_pool(window=3, strides=1, padding="SAME"), flax_average((3, 3), (1, 1), "SAME"), exactly(infinite)),
    Case("average_pool, large", o.average_pool(window=3, strides=2), flax_average((3, 3), (2, 2)), exactly(large / 20)),
    Case("average_pool, denormal", o.average_pool(window=2), flax_average((2, 2)), exactly(np.full((1, 4, 4, 1), 1e-40))),
    Case("global_average_pool, large", o.global_average_pool(), mean_over_positions, exactly(np.full((2, 64, 64, 1), 3e4))),
    Case("adaptive_max_pool, one position", o.adaptive_max_pool(sizes=3), adaptive(jnp.max, 3, 3), exactly(np.array([[[[3.0]]]]))),
    Case("upsample_bilinear, one position", o.upsample_bilinear(sizes=3), interpolate(3, 3, corners=False), exactly(np.array([[[[3.0]]]]))),
    Case("upsample_bilinear, large", o.upsample_bilinear(scale=2), interpolate(10, 14, corners=False), exactly(large / 20)),
]  # fmt: skip

# No examples: cotangents of the right shapes, zeros where a sum has no terms.
EMPTY: list[Case] = [
    Case("max_pool, no examples", o.max_pool(window=2), flax_max((2, 2)), normal((0, 5, 7, 3))),
    Case("max_pool, no channels", o.max_pool(window=2), flax_max((2, 2)), normal((2, 5, 7, 0))),
    Case("average_pool, no examples", o.average_pool(window=2), flax_average((2, 2)), normal((0, 5, 7, 3))),
    Case("global_average_pool, no examples", o.global_average_pool(), mean_over_positions, normal((0, 5, 7, 3))),
    Case("global_max_pool, no examples", o.global_max_pool(), lambda x: jnp.max(x, (1, 2)), normal((0, 5, 7, 3))),
    Case("adaptive_average_pool, no examples", o.adaptive_average_pool(sizes=3), adaptive(jnp.mean, 3, 3), normal((0, 5, 7, 3))),
    Case("adaptive_max_pool, no examples", o.adaptive_max_pool(sizes=3), adaptive(jnp.max, 3, 3), normal((0, 5, 7, 3))),
    Case("upsample_nearest, no examples", o.upsample_nearest(scale=2), doubled("nearest"), normal((0, 5, 7, 3))),
    Case("upsample_bilinear, no examples", o.upsample_bilinear(scale=2), doubled("linear"), normal((0, 5, 7, 3))),
]  # fmt: skip


@st.composite
def drawn(draw) -> Case:
    """Any op of this family, its options and its shapes."""
    dimensions = draw(st.integers(1, 3))
    several = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(dimensions))
    window, strides, sizes = several(1, 3), several(1, 3), several(1, 6)
    spatial = several(3, 6)
    x = draw(st.integers(1, 2)), *spatial, draw(st.integers(1, 3))
    padding = draw(st.sampled_from(["VALID", "SAME", ((1, 0),) * dimensions]))
    count = draw(st.booleans())
    slid = {"window": window, "strides": strides, "padding": padding}
    return draw(
        st.sampled_from(
            [
                Case("max", o.max_pool(**slid), flax_max(window, strides, padding), distinct(*x)),
                Case("average", o.average_pool(**slid, count_padding=count), flax_average(window, strides, padding, count), normal(x)),
                Case("global average", o.global_average_pool(), mean_over_positions, normal(x)),
                Case("global max", o.global_max_pool(), max_over_positions, distinct(*x)),
                Case("adaptive average", o.adaptive_average_pool(sizes=sizes), adaptive(jnp.mean, *sizes), normal(x)),
                Case("adaptive max", o.adaptive_max_pool(sizes=sizes), adaptive(jnp.max, *sizes), distinct(*x)),
                Case("nearest", o.upsample_nearest(sizes=sizes, half_pixel=False), corner_copies(*sizes), normal(x)),
                Case("bilinear", o.upsample_bilinear(sizes=sizes), interpolate(*sizes, corners=False), normal(x)),
                Case("bilinear, corners", o.upsample_bilinear(sizes=sizes, align_corners=True), interpolate(*sizes), normal(x)),
            ]
        )
    )  # fmt: skip


X = np.ones((2, 5, 7, 3), np.float32)

# What a user gets wrong, and the part of the one line that says so.
MISTAKES: dict = {
    "a window of zero": (lambda: o.max_pool(window=0), "max_pool: window is 0; wants a whole number, at least 1"),
    "a fraction of a stride": (lambda: o.average_pool(window=2, strides=1.5), "average_pool: strides is 1.5; wants a whole number"),
    "a window in two dimensions, strides in three": (
        lambda: o.max_pool(window=(2, 2), strides=(1, 1, 1)),
        "max_pool: got window (2, 2), strides (1, 1, 1), dilation 1; wants as many of each",
    ),
    "a truth for a window": (lambda: o.max_pool(window=[2, True]), "max_pool: window is (2, True); wants a whole number or a tuple"),
    "an unknown padding": (lambda: o.max_pool(window=2, padding="HALF"), "max_pool: padding is 'HALF'; wants 'SAME', 'VALID' or a tuple"),
    "a number for a padding": (lambda: o.average_pool(window=2, padding=1), "average_pool: padding is 1; wants 'SAME', 'VALID' or a tuple"),
    "a padding for another number of axes": (
        lambda: o.average_pool(window=(2, 2), padding=((1, 1),)),
        "average_pool: got window (2, 2), strides (2, 2), dilation 1, padding ((1, 1),); wants as many of each",
    ),
    "a window that is too large": (
        lambda: o.max_pool(window=(6, 2))(X),
        "max_pool: x has shape (2, 5, 7, 3), a window spans 6 of axis 1, which with its padding has 5; wants a smaller window",
    ),
    "a vector to pool": (lambda: o.max_pool(window=2)(X[0, 0]), "max_pool: x has shape (7, 3); wants [batch, *spatial, channels]"),
    "too few axes for a window": (
        lambda: o.average_pool(window=(2, 2, 2))(X[0]),
        "average_pool: x has shape (5, 7, 3); wants [..., 3 spatial axes, channels]",
    ),
    "integers to pool": (lambda: o.max_pool(window=2)(X.astype(int)), "max_pool: x is int32; wants floating point"),
    "integers to average": (lambda: o.average_pool(window=2)(X.astype(int)), "average_pool: x is int32"),
    "a divisor of zero": (lambda: o.average_pool(window=2, divisor=0), "average_pool: divisor is 0; wants another number"),
    "a window of padding alone": (
        lambda: o.average_pool(window=1, padding=((1, 0), (0, 0)), count_padding=False)(X),
        "average_pool: a window holds nothing but padding; wants less padding, or count_padding=True",
    ),
    "no positions": (lambda: o.global_max_pool()(X[:, :0]), "global_max_pool: x has shape (2, 0, 7, 3); wants [batch, *spatial, channels]"),
    "no spatial axes": (lambda: o.global_average_pool()(X[0, 0]), "global_average_pool: x has shape (7, 3); wants [batch, *spatial"),
    "a size of zero": (lambda: o.adaptive_max_pool(sizes=(3, 0)), "adaptive_max_pool: sizes is 0; wants a whole number, at least 1"),
    "no size at all": (lambda: o.adaptive_average_pool(sizes=()), "adaptive_average_pool: sizes is (); wants one for every spatial axis"),
    "nothing to pool adaptively": (lambda: o.adaptive_average_pool(sizes=2)(X[:, :0]), "adaptive_average_pool: x has shape (2, 0, 7, 3)"),
    "integers to pool adaptively": (lambda: o.adaptive_max_pool(sizes=2)(X.astype(int)), "adaptive_max_pool: x is int32"),
    "neither sizes nor scale": (lambda: o.upsample_nearest(), "upsample_nearest: got sizes None and scale None; wants one of the two"),
    "both sizes and scale": (lambda: o.upsample_bilinear(sizes=4, scale=2), "upsample_bilinear: got sizes 4 and scale 2; wants one of the two"),
    "a negative scale": (lambda: o.upsample_nearest(scale=-1), "upsample_nearest: scale is -1; wants a number above 0"),
    "a scale that leaves nothing": (lambda: o.upsample_nearest(scale=0.1)(X), "upsample_nearest: x has shape (2, 5, 7, 3), scale 0.1 leaves no position"),
    "integers to upsample": (lambda: o.upsample_bilinear(scale=2)(X.astype(int)), "upsample_bilinear: x is int32"),
}  # fmt: skip
