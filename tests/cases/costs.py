"""Costs."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import strategies as st

import manual_backprop as mb
from cases.case import Case, Draw, layer_case, normal
from manual_backprop.layers import Apply


def labels(classes: int, *shape: int) -> Draw:
    """Logits and integer labels."""
    return lambda rng: (rng.standard_normal((*shape, classes)), rng.integers(0, classes, shape).astype(np.int32))


def many_classes(rng):
    """More classes than the labels' dtype counts."""
    return rng.standard_normal((7, 300)), np.array([0, 5, 44, 99, 200, 255, 1], np.uint8)


def unsigned(rng):
    return rng.standard_normal((7, 5)), rng.integers(0, 5, 7).astype(np.uint32)


def shifted(rng):
    """Logits far from zero: only their differences matter."""
    logits, classes = labels(5, 7)(rng)
    return logits + 300, classes


def distributions(classes: int, *shape: int) -> Draw:
    """Logits, and labels that sum to anything: the general case."""
    return lambda rng: (rng.standard_normal((*shape, classes)), rng.uniform(size=(*shape, classes)))


def squared_error(prediction, target):
    return jnp.mean(jnp.sum(2 * optax.l2_loss(prediction, target), axis=-1))


def integer_cross_entropy(logits, labels):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def cross_entropy(logits, labels):
    return jnp.mean(optax.softmax_cross_entropy(logits, labels))


OPS = [
    Case("squared_error", mb.ops.squared_error(), squared_error, normal((7, 5), (7, 5))),
    Case("squared_error, two leading axes", mb.ops.squared_error(), squared_error, normal((2, 7, 5), (2, 7, 5))),
    Case("softmax_cross_entropy, integers", mb.ops.softmax_cross_entropy(), integer_cross_entropy, labels(5, 7)),
    Case("softmax_cross_entropy, text", mb.ops.softmax_cross_entropy(), integer_cross_entropy, labels(5, 2, 7)),
    Case("softmax_cross_entropy, uint8", mb.ops.softmax_cross_entropy(), integer_cross_entropy, many_classes),
    Case("softmax_cross_entropy, uint32", mb.ops.softmax_cross_entropy(), integer_cross_entropy, unsigned),
    Case("softmax_cross_entropy, shifted", mb.ops.softmax_cross_entropy(), integer_cross_entropy, shifted),
    Case("softmax_cross_entropy, rows", mb.ops.softmax_cross_entropy(), cross_entropy, distributions(5, 7)),
]


LAYERS: list[Case] = [
    layer_case("Apply, a cost", Apply(mb.ops.squared_error()), lambda p, x: squared_error(*x), normal((7, 5), (7, 5))),
]

# Judged in every precision: finite where the truth is, and right.
EXTREMES: list[Case] = []

# No examples: cotangents of the right shapes, zeros where a sum has no terms.
EMPTY: list[Case] = []


@st.composite
def drawn(draw) -> Case:
    """Any op of this family, its options and its shapes."""
    classes, shape = draw(st.integers(2, 6)), tuple(draw(st.lists(st.integers(1, 4), max_size=3)))
    return draw(
        st.sampled_from(
            [
                Case("rows", mb.ops.softmax_cross_entropy(), cross_entropy, distributions(classes, *shape)),
                Case("integers", mb.ops.softmax_cross_entropy(), integer_cross_entropy, labels(classes, *shape)),
            ]
        )
    )


# What a user gets wrong, and the part of the one line that says so.
MISTAKES: dict = {}
