"""The softmax family."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import manual_backprop as mb
from cases.case import Case, Draw, exactly, normal

CONSTRUCTORS = {"softmax": mb.ops.softmax, "log_softmax": mb.ops.log_softmax, "logsumexp": mb.ops.logsumexp}


def reference(name: str, axis=-1, temperature=1.0, keepdims=False) -> Callable:
    """jax.nn's, of x and perhaps a mask. Of rows without an entry it sees one with all, and the result is put in."""
    options = {"keepdims": keepdims} if name == "logsumexp" else {}

    def function(x, mask=None):
        x = x / temperature
        if mask is None:
            return getattr(jax.nn, name)(x, axis=axis, **options)
        mask = jnp.broadcast_to(mask, x.shape)
        some = jnp.any(mask, axis, keepdims=True)
        y = getattr(jax.nn, name)(jnp.where(some, x, 0), axis=axis, where=mask | ~some, **options)
        some = jnp.squeeze(some, axis) if name == "logsumexp" and not keepdims else some
        return jnp.where(some, y, 0 if name == "softmax" else -jnp.inf)

    return function


def row(title: str, name: str, draw: Draw, mask: bool = False, large: Draw | None = None, **options) -> Case:
    return Case(title, CONSTRUCTORS[name](mask=mask, **options), reference(name, **options), draw, large)


def masked(shape: tuple[int, ...], of_mask: tuple[int, ...]) -> Draw:
    """x, and a mask with an entry in every row along the last axis."""

    def draw(rng):
        mask = rng.random(of_mask) < 0.6
        mask[..., 0] = True
        return rng.standard_normal(shape), mask

    return draw


OPS = [
    case
    for name in CONSTRUCTORS
    for case in (
        row(name, name, normal((7, 5)), large=normal((2048, 1024))),
        row(f"{name}, first axis", name, normal((7, 5)), axis=0),
        row(f"{name}, two axes", name, normal((7, 3, 5)), axis=(0, -1), temperature=0.7),
        row(f"{name}, mask", name, masked((7, 5), (7, 5)), mask=True, temperature=2.0),
        row(f"{name}, mask of all rows", name, masked((2, 7, 5), (7, 5)), mask=True),
    )
]
OPS += [row("logsumexp, keepdims", "logsumexp", normal((7, 5)), keepdims=True)]

LAYERS: list[Case] = []

INF = np.inf
FAR = np.array(
    [[1e4, 1e4 + 1, -1e4], [-1e4, -1e4 - 2, -1e4 - 1], [1e30, 0, -1e30], [1e-45, -1e-45, 0], [3e38, -3e38, 3e38]]
)
TIES = np.array([[2.0, 2.0, 2.0], [0.0, 0.0, -1.0], [-300.0, -300.0, -400.0], [88.0, 89.0, 90.0]])
HOLES = np.array([[1.0, -INF, 2.0], [-INF, -INF, 3.0], [-INF, 0.0, -1e4]])
SOME = np.array([[True, False, True], [False, False, False], [False, True, False]])
BEHIND = np.array([[1.0, 1e30, 2.0], [INF, np.nan, -INF], [np.nan, 3.0, INF]])  # what a mask hides
EMPTY_ROW = np.array([[-INF, -INF, -INF], [0.5, -0.5, 0.25]])


def of_no_entry(name: str) -> Callable:
    """A row at -∞ is a masked row."""
    return lambda x: reference(name)(x, x > -INF)


def of_what_is_seen(name: str) -> Callable:
    return lambda x, mask: reference(name)(jnp.where(mask, x, 0), mask)


# Judged in every precision: finite where the truth is, and right.
EXTREMES: list[Case] = [
    case
    for name in CONSTRUCTORS
    for case in (
        row(f"{name}, far", name, exactly(FAR)),
        row(f"{name}, far and cold", name, exactly(FAR[:2]), temperature=1e-3),
        row(f"{name}, ties", name, exactly(TIES)),
        row(f"{name}, holes", name, exactly(HOLES)),
        row(f"{name}, one of one", name, exactly(np.array([[1e4], [-1e4]]))),
        row(f"{name}, rows without an entry", name, exactly(FAR[:3], SOME), mask=True),
        Case(f"{name}, behind the mask", CONSTRUCTORS[name](mask=True), of_what_is_seen(name), exactly(BEHIND, SOME)),
    )
]
EXTREMES += [
    Case(f"{name}, a row at -inf", CONSTRUCTORS[name](), of_no_entry(name), exactly(EMPTY_ROW))
    for name in ("softmax", "logsumexp")
]

# No examples: cotangents of the right shapes, zeros where a sum has no terms.
EMPTY: list[Case] = [
    case
    for name in CONSTRUCTORS
    for case in (
        row(f"{name}, no rows", name, normal((0, 5))),
        row(f"{name}, empty rows", name, normal((5, 0))),
        row(f"{name}, no masked rows", name, lambda rng: (np.ones((0, 5)), np.ones((0, 5), bool)), mask=True),
    )
]


@st.composite
def drawn(draw) -> Case:
    """Any op of this family, its options and its shapes."""
    name, shape = draw(st.sampled_from(list(CONSTRUCTORS))), tuple(draw(st.lists(st.integers(1, 4), max_size=3)))
    axes = st.lists(st.integers(0, max(len(shape) - 1, 0)), max_size=len(shape), unique=True).map(tuple)
    axis = draw(st.one_of(st.none(), axes, *([st.integers(-len(shape), len(shape) - 1)] if shape else [])))
    options = {"axis": axis, "temperature": draw(st.sampled_from([0.5, 1.0, 3.0]))}
    if name == "logsumexp":
        options["keepdims"] = draw(st.booleans())
    if not draw(st.booleans()):
        return row(name, name, normal(shape), **options)
    of_mask = tuple(draw(st.sampled_from([1, size])) for size in shape)[draw(st.integers(0, len(shape))) :]
    return row(name, name, lambda rng: (rng.standard_normal(shape), rng.random(of_mask) < 0.6), mask=True, **options)


X, MASK = jnp.ones((7, 5)), jnp.ones((7, 5), bool)

# What a user gets wrong, and the part of the one line that says so.
MISTAKES: dict = {
    "softmax of integers": (lambda: mb.ops.softmax()(jnp.arange(3)), "softmax: x is int32; wants floating point"),
    "logsumexp of booleans": (lambda: mb.ops.logsumexp()(MASK), "logsumexp: x is bool; wants floating point"),
    "softmax over an axis that is not there": (lambda: mb.ops.softmax(axis=2)(X), "softmax: axis 2 is out of range"),
    "log_softmax of one number": (lambda: mb.ops.log_softmax()(jnp.ones(())), "log_softmax: axis -1 is out of range"),
    "softmax over an axis twice": (
        lambda: mb.ops.softmax(axis=(1, -1))(X),
        "softmax: axis (1, -1) names an axis twice",
    ),
    "a list of axes": (
        lambda: mb.ops.softmax(axis=[0, 0.5]),
        "softmax: axis is (0, 0.5); wants a whole number, a tuple (each a whole number) or None",
    ),
    "half an axis": (lambda: mb.ops.logsumexp(axis=0.5), "logsumexp: axis is 0.5; wants a whole number"),
    "frozen": (lambda: mb.ops.softmax(temperature=0), "softmax: temperature is 0; wants a number above 0"),
    "a temperature in words": (
        lambda: mb.ops.softmax(temperature="hot"),
        "softmax: temperature is 'hot'; wants a number",
    ),
    "a mask for an option": (
        lambda: mb.ops.log_softmax(mask=(True, False)),
        "log_softmax: mask is (True, False); wants True or False",
    ),
    "a mask of floats": (
        lambda: mb.ops.softmax(mask=True)(X, X),
        "softmax: mask is float32; wants booleans, True where x takes part",
    ),
    "a mask of another size": (
        lambda: mb.ops.logsumexp(mask=True)(X, MASK[:6]),
        "logsumexp: mask has shape (6, 5), x (7, 5); mask must broadcast to x",
    ),
    "a mask of more axes": (lambda: mb.ops.log_softmax(mask=True)(X, MASK[None]), "mask has shape (1, 7, 5), x (7, 5)"),
}
