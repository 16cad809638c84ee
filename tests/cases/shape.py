"""Shape and arithmetic: the references are jax.numpy's functions of the same names."""

from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import manual_backprop as mb
from cases.case import Case, Draw, exactly, layer_case, normal
from cases.linear import affine
from manual_backprop.layers import Apply, Dense, Identity

X = jnp.ones((7, 5))
LARGE = normal((2048, 1024))


def total(*xs):
    return functools.reduce(operator.add, xs)


def product(*xs):
    return functools.reduce(operator.mul, xs)


def away_from_zero(*shapes: tuple[int, ...]) -> Draw:
    """A numerator, and a divisor of either sign."""
    return lambda rng: (rng.standard_normal(shapes[0]), rng.choice([-1, 1], shapes[1]) * rng.uniform(0.5, 2, shapes[1]))


def with_integers(*shapes: tuple[int, ...]) -> Draw:
    """The first array of floating point, the others integers."""
    return lambda rng: (
        rng.standard_normal(shapes[0]),
        *(rng.integers(-3, 4, shape).astype(np.int32) for shape in shapes[1:]),
    )


def with_zeros(rng):
    """Where one factor is 0 its gradient is not, where two are every gradient is."""
    xs = [rng.standard_normal((7, 5)) for _ in range(3)]
    xs[0][0], xs[1][0, :2], xs[2][1] = 0, 0, 0
    return tuple(xs)


def tied(rng):
    """Few values: the largest is there more than once."""
    return (rng.integers(0, 3, (7, 5, 3)).astype(float),)


def largest_or_nan(x):
    """A NaN is larger than any number, and as large as another: jnp.max, with a gradient."""
    missing = jnp.isnan(x)
    some = jnp.any(missing, -1)
    average = jnp.sum(jnp.where(missing, x, 0), -1) / jnp.maximum(jnp.sum(missing, -1), 1)
    return jnp.where(some, average, jnp.max(jnp.where(some[..., None], 0, x), -1))


def cut(sizes: tuple[int, ...], axis: int):
    return lambda x: tuple(jnp.split(x, np.cumsum(sizes)[:-1], axis))


def both(p, x):
    return affine(p[0][0], x), affine(p[0][1], x)


OPS = [
    Case("add", mb.ops.add(), total, normal((7, 5), (7, 5)), normal((2048, 1024), (1024,))),
    Case("add, broadcast", mb.ops.add(), total, normal((7, 5), (5,), (3, 1, 1), ())),
    Case("add, an integer", mb.ops.add(), total, with_integers((5,), (7, 5))),
    Case("subtract", mb.ops.subtract(), jnp.subtract, normal((7, 5), (2, 1, 5)), normal((2048, 1024), (1024,))),
    Case("multiply", mb.ops.multiply(), product, normal((7, 5), (7, 5)), normal((2048, 1024), (1024,))),
    Case("multiply, broadcast", mb.ops.multiply(), product, normal((7, 5), (5,), (3, 1, 1), ())),
    Case("multiply, zeros", mb.ops.multiply(), product, with_zeros),
    Case("multiply, an integer", mb.ops.multiply(), product, with_integers((5,), (7, 5))),
    Case("divide", mb.ops.divide(), jnp.divide, away_from_zero((7, 5), (7, 5)), away_from_zero((2048, 1024), (1024,))),
    Case("divide, broadcast", mb.ops.divide(), jnp.divide, away_from_zero((5,), (2, 7, 1))),
    Case("divide, by an integer", mb.ops.divide(), jnp.divide, lambda rng: (rng.standard_normal(5), np.int32([[2], [-3]]))),
    Case("sum", mb.ops.sum(), jnp.sum, normal((7, 5)), LARGE),
    Case("sum, an axis", mb.ops.sum(axis=-2), lambda x: jnp.sum(x, -2), normal((2, 7, 5))),
    Case("sum, keepdims", mb.ops.sum(axis=(0, 2), keepdims=True), lambda x: jnp.sum(x, (0, 2), keepdims=True), normal((2, 7, 5))),
    Case("mean", mb.ops.mean(), jnp.mean, normal((7, 5)), LARGE),
    Case("mean, keepdims", mb.ops.mean(axis=(0, -1), keepdims=True), lambda x: jnp.mean(x, (0, 2), keepdims=True), normal((2, 7, 5))),
    Case("max", mb.ops.max(axis=-1), lambda x: jnp.max(x, -1), normal((7, 5)), LARGE),
    Case("max, of all", mb.ops.max(), jnp.max, normal((7, 5))),
    Case("max, ties", mb.ops.max(axis=(0, 2), keepdims=True), lambda x: jnp.max(x, (0, 2), keepdims=True), tied),
    Case("min", mb.ops.min(axis=0), lambda x: jnp.min(x, 0), normal((7, 5)), LARGE),
    Case("cumsum", mb.ops.cumsum(axis=-1), lambda x: jnp.cumsum(x, -1), normal((7, 5)), LARGE),
    Case("cumsum, reverse", mb.ops.cumsum(axis=0, reverse=True), lambda x: jax.lax.cumsum(x, 0, reverse=True), normal((7, 5))),
    Case("concatenate", mb.ops.concatenate(), lambda *xs: jnp.concatenate(xs, -1), normal((7, 5), (7, 3)), normal((2048, 1024), (2048, 512))),
    Case("concatenate, axis 0", mb.ops.concatenate(axis=0), lambda *xs: jnp.concatenate(xs, 0), with_integers((2, 5), (7, 5), (3, 5))),
    Case("stack", mb.ops.stack(axis=-1), lambda *xs: jnp.stack(xs, -1), normal((7, 5), (7, 5), (7, 5)), normal((2048, 1024), (2048, 1024))),
    Case("split", mb.ops.split(sections=3, axis=0), lambda x: tuple(jnp.split(x, 3)), normal((6, 5)), normal((2049, 1024))),
    Case("split, sizes", mb.ops.split(sections=(2, 0, 5)), cut((2, 0, 5), -1), normal((3, 7))),
    Case("transpose", mb.ops.transpose(), jnp.transpose, normal((2, 7, 5)), LARGE),
    Case("transpose, axes", mb.ops.transpose(axes=(1, 2, -3)), lambda x: jnp.transpose(x, (1, 2, 0)), normal((2, 7, 5))),
    Case("reshape", mb.ops.reshape(shape=(5, -1)), lambda x: jnp.reshape(x, (5, -1)), normal((2, 7, 5)), normal((5, 512, 1024))),
    Case("reshape, trailing axes", mb.ops.reshape(shape=(7, 2), from_axis=1), lambda x: jnp.reshape(x, (3, 7, 2)), normal((3, 2, 7))),
    Case("reshape, from the end", mb.ops.reshape(shape=(-1, 2), from_axis=-1), lambda x: x.reshape(3, 5, 7, 2), normal((3, 5, 14))),
    Case("flatten", mb.ops.flatten(), lambda x: jnp.reshape(x, (len(x), -1)), normal((3, 2, 7)), normal((64, 32, 1024))),
    Case("broadcast_to", mb.ops.broadcast_to(shape=(3, 7, -1)), lambda x: jnp.broadcast_to(x, (3, 7, x.shape[-1])), normal((1, 5)), normal((1, 30_000))),
]  # fmt: skip


LAYERS: list[Case] = [
    layer_case(
        "Parallel, added",
        mb.Serial(mb.Parallel(Dense(3), Dense(3)), Apply(mb.ops.add())),
        lambda p, x: total(*both(p, x)),
        normal((7, 5)),
    ),
    layer_case(
        "Parallel, a gated product",
        mb.Serial(
            mb.Parallel(Dense(3, bias=False), mb.Serial(Dense(3), Apply(mb.ops.sigmoid()))), Apply(mb.ops.multiply())
        ),
        lambda p, x: (x @ p[0][0]["w"]) * jax.nn.sigmoid(affine(p[0][1][0], x)),
        normal((7, 5)),
    ),
    layer_case(
        "Parallel, concatenated",
        mb.Serial(mb.Parallel(Dense(3), Dense(2), Identity()), Apply(mb.ops.concatenate())),
        lambda p, x: jnp.concatenate([*both(p, x), x], -1),
        normal((7, 5)),
    ),
]

# Judged in every precision: finite where the truth is, and right.
SMALL, BIG = np.float32([1e-38, -1e-38, 0, 3]), np.float32([1e4, -1e4, 1e4, 0])
NANS = np.array([[np.nan, 1, 4], [np.nan, np.nan, 2], [3, 1, 3]])
EXTREMES: list[Case] = [
    Case("multiply, denormals and large numbers", mb.ops.multiply(), product, exactly(SMALL, BIG, BIG)),
    Case("divide, both small", mb.ops.divide(), jnp.divide, exactly(SMALL[[0, 1, 3]], SMALL[[1, 0, 3]] * 4)),
    Case("mean, large numbers", mb.ops.mean(), jnp.mean, exactly(BIG)),
    Case("max, all equal", mb.ops.max(), jnp.max, exactly(np.full((7, 5), -1e4))),
    Case("max, one entry", mb.ops.max(axis=-1), lambda x: jnp.max(x, -1), exactly(BIG[:, None])),
    Case(
        "max, not a number",
        mb.ops.max(axis=-1),
        largest_or_nan,
        exactly(NANS),
    ),
    Case(
        "min, not a number",
        mb.ops.min(axis=-1),
        lambda x: -largest_or_nan(-x),
        exactly(NANS),
    ),
    Case("min, infinite entries", mb.ops.min(), jnp.min, exactly(np.array([np.inf, 2, 2, np.inf]))),
    Case("cumsum, large numbers", mb.ops.cumsum(axis=0), jnp.cumsum, exactly(BIG)),
]

# No examples: cotangents of the right shapes, zeros where a sum has no terms.
EMPTY: list[Case] = [
    Case("add, no examples", mb.ops.add(), total, normal((0, 5), (5,), (1, 1))),
    Case("multiply, no examples", mb.ops.multiply(), product, normal((0, 5), (5,), (1, 1))),
    Case("divide, no examples", mb.ops.divide(), jnp.divide, normal((0, 5), (5,))),
    Case("sum, no examples", mb.ops.sum(axis=0), lambda x: jnp.sum(x, 0), normal((0, 5))),
    Case("mean, no examples", mb.ops.mean(axis=1), lambda x: jnp.mean(x, 1), normal((0, 5))),
    Case("max, no examples", mb.ops.max(axis=1), lambda x: jnp.max(x, 1), normal((0, 5))),
    Case("cumsum, no examples", mb.ops.cumsum(axis=0), lambda x: jnp.cumsum(x, 0), normal((0, 5))),
    Case("concatenate, no examples", mb.ops.concatenate(), lambda *xs: jnp.concatenate(xs, -1), normal((0, 5), (0, 3))),
    Case("split, no examples", mb.ops.split(sections=2, axis=0), lambda x: tuple(jnp.split(x, 2)), normal((0, 5))),
    Case("reshape, no examples", mb.ops.reshape(shape=(-1, 5)), lambda x: x.reshape(0, 5), normal((0, 5))),
    Case("flatten, no examples", mb.ops.flatten(), lambda x: x.reshape(0, 14), normal((0, 2, 7))),
    Case("broadcast_to, no examples", mb.ops.broadcast_to(shape=(0, 5)), lambda x: jnp.broadcast_to(x, (0, 5)), normal((5,))),
]  # fmt: skip


@st.composite
def drawn(draw) -> Case:
    """Any op of this family, its options and its shapes."""
    kind = draw(st.sampled_from(["arithmetic", "reduction", "joining", "layout"]))
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    if kind == "arithmetic":
        others = [
            tuple(draw(st.sampled_from([1, n])) for n in shape[draw(st.integers(0, len(shape))) :]) for _ in range(2)
        ]
        op, reference = draw(st.sampled_from([(mb.ops.add(), total), (mb.ops.multiply(), product)]))
        return Case("arithmetic", op, reference, normal(*draw(st.permutations([shape, *others]))))
    if kind == "reduction":
        axes = tuple(draw(st.lists(st.integers(0, len(shape) - 1), unique=True)))
        name, options = (
            draw(st.sampled_from(["sum", "mean", "max", "min"])),
            {"axis": draw(st.sampled_from([None, axis, axes]))},
        )
        options["keepdims"] = draw(st.booleans())
        return Case(
            name, getattr(mb.ops, name)(**options), functools.partial(getattr(jnp, name), **options), normal(shape)
        )
    if kind == "joining":
        sizes = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)))
        resized = [(*shape[: axis % len(shape)], n, *shape[axis % len(shape) + 1 :]) for n in (*sizes, sum(sizes))]
        if draw(st.booleans()):
            return Case("split", mb.ops.split(sections=sizes, axis=axis), cut(sizes, axis), normal(resized[-1]))
        return Case(
            "concatenate", mb.ops.concatenate(axis=axis), lambda *xs: jnp.concatenate(xs, axis), normal(*resized)
        )
    axes, leading = tuple(draw(st.permutations(range(len(shape))))), draw(st.integers(0, len(shape)))
    wider = (*draw(st.sampled_from([(), (3,), (2, 1)])), *(n if n > 1 else draw(st.integers(1, 3)) for n in shape))
    return draw(
        st.sampled_from(
            [
                Case("transpose", mb.ops.transpose(axes=axes), lambda x: jnp.transpose(x, axes), normal(shape)),
                Case("flatten", mb.ops.flatten(from_axis=leading), lambda x: x.reshape(*shape[:leading], -1), normal(shape)),
                Case("broadcast_to", mb.ops.broadcast_to(shape=wider), lambda x: jnp.broadcast_to(x, wider), normal(shape)),
                Case("cumsum", mb.ops.cumsum(axis=axis), lambda x: jnp.cumsum(x, axis), normal(shape)),
                Case("stack", mb.ops.stack(axis=axis), lambda *xs: jnp.stack(xs, axis), normal(shape, shape)),
            ]
        )
    )  # fmt: skip


# What a user gets wrong, and the part of the one line that says so.
MISTAKES: dict = {
    "nothing to add": (lambda: mb.ops.add()(), "add: got nothing; wants at least one argument of floating point"),
    "integers alone to multiply": (lambda: mb.ops.multiply()(jnp.arange(3), True), "multiply: got int32, bool; wants"),
    "shapes that do not broadcast": (
        lambda: mb.ops.add()(X, jnp.ones((7, 4)), 1.0),
        "add: shapes (7, 5), (7, 4), () do not broadcast; wants each axis alike, or 1",
    ),
    "branches that do not broadcast": (
        lambda: mb.Serial(mb.Parallel(Dense(3), Dense(4)), Apply(mb.ops.multiply())).init(jax.random.key(0), X),
        "Serial[1] Apply(multiply()): multiply: shapes (7, 3), (7, 4) do not broadcast",
    ),
    "shapes that do not divide": (lambda: mb.ops.divide()(X, jnp.ones(7)), "divide: shapes (7, 5), (7,) do not broadcast"),
    "a sum of integers": (lambda: mb.ops.sum()(jnp.arange(3)), "sum: x is int32; wants floating point"),
    "an axis out of range": (lambda: mb.ops.mean(axis=2)(X), "mean: axis 2 is out of range; wants -2 … 1 for 2 axes"),
    "an axis twice": (lambda: mb.ops.sum(axis=(1, -1))(X), "sum: axis (1, -1) names an axis twice; wants each once"),
    "the largest of nothing": (
        lambda: mb.ops.max(axis=0)(jnp.ones((0, 5))),
        "max: x has shape (0, 5); wants at least one entry along axis 0",
    ),
    "a running sum along no axis": (lambda: mb.ops.cumsum(axis=0)(jnp.ones(())), "cumsum: axis 0 is out of range"),
    "nothing to join": (lambda: mb.ops.concatenate()(), "concatenate: got nothing; wants at least one array"),
    "arrays that do not join": (
        lambda: mb.ops.concatenate(axis=0)(X, jnp.ones((7, 4))),
        "concatenate: shapes (7, 5), (7, 4) do not fit; wants them alike but for axis 0",
    ),
    "arrays of other ranks to join": (lambda: mb.ops.concatenate()(X, jnp.ones(5)), "shapes (7, 5), (5,) do not fit"),
    "arrays that do not stack": (
        lambda: mb.ops.stack()(X, X.T),
        "stack: shapes (7, 5), (5, 7) do not fit; wants them alike",
    ),
    "an axis too far to stack along": (lambda: mb.ops.stack(axis=3)(X, X), "stack: axis 3 is out of range; wants -3 … 2"),
    "parts that do not divide": (
        lambda: mb.ops.split(sections=2)(X),
        "split: x has shape (7, 5), 5 along axis -1; sections 2 do not fit it",
    ),
    "sizes that do not add up": (lambda: mb.ops.split(sections=(2, 2))(X), "5 along axis -1; sections (2, 2) do not fit it"),
    "no parts": (lambda: mb.ops.split(sections=0), "split: sections is 0; wants a number of parts, at least 1"),
    "a negative size": (lambda: mb.ops.split(sections=(6, -1)), "split: sections is (6, -1); wants"),
    "too few axes to transpose": (
        lambda: mb.ops.transpose(axes=(0,))(X),
        "transpose: x has shape (7, 5), axes are (0,); wants each of its 2 axes once",
    ),
    "a shape that does not fit": (
        lambda: mb.ops.reshape(shape=(4, -1))(X),
        "reshape: x has shape (7, 5); its 35 entries from axis 0 on do not fit (4, -1)",
    ),
    "a shape with two gaps": (lambda: mb.ops.reshape(shape=(-1, -1)), "reshape: shape is (-1, -1); wants sizes"),
    "an axis too far to flatten": (lambda: mb.ops.flatten(from_axis=3)(X), "flatten: from_axis is 3; wants -2 … 2 for 2 axes"),
    "a shape that is no repeat": (
        lambda: mb.ops.broadcast_to(shape=(7, 3))(X),
        "broadcast_to: x has shape (7, 5); wants each axis as in (7, 3), or 1",
    ),
    "a shape with fewer axes": (lambda: mb.ops.broadcast_to(shape=(5,))(X), "broadcast_to: x has shape (7, 5); wants"),
}  # fmt: skip
