"""Activations."""

from __future__ import annotations

import jax
from hypothesis import strategies as st

import manual_backprop as mb
from cases.case import Case, normal

OPS = [
    Case("sigmoid", mb.ops.sigmoid(), jax.nn.sigmoid, normal((7, 5))),
    Case("tanh", mb.ops.tanh(), jax.nn.tanh, normal((7, 5))),
    Case("relu", mb.ops.relu(), jax.nn.relu, normal((7, 5))),
    Case("leaky_relu", mb.ops.leaky_relu(), jax.nn.leaky_relu, normal((7, 5))),
    Case(
        "leaky_relu, negative slope",
        mb.ops.leaky_relu(negative_slope=-0.3),
        lambda x: jax.nn.leaky_relu(x, -0.3),
        normal((7, 5)),
    ),
    Case("softplus", mb.ops.softplus(), jax.nn.softplus, normal((7, 5))),
    Case("silu", mb.ops.silu(), jax.nn.silu, normal((7, 5))),
    Case("gelu, tanh", mb.ops.gelu(), jax.nn.gelu, normal((7, 5))),
    Case(
        "gelu, erf",
        mb.ops.gelu(approximate=False),
        lambda x: jax.nn.gelu(x, approximate=False),
        normal((7, 5)),
    ),
]


LAYERS: list[Case] = []

# Judged in every precision: finite where the truth is, and right.
EXTREMES: list[Case] = []

# No examples: cotangents of the right shapes, zeros where a sum has no terms.
EMPTY: list[Case] = []


@st.composite
def drawn(draw) -> Case:
    """Any op of this family, its options and its shapes."""
    shape = tuple(draw(st.lists(st.integers(1, 5), max_size=4)))
    return draw(st.sampled_from(OPS))._replace(draw=normal(shape))


# What a user gets wrong, and the part of the one line that says so.
MISTAKES: dict = {}
