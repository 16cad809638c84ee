"""Linear maps."""

from __future__ import annotations

import flax.linen as nn
from hypothesis import strategies as st

import manual_backprop as mb
from cases.case import Case, layer_case, normal
from manual_backprop.layers import Dense


def flax_dense(x, w, b=None):
    params = {"kernel": w} if b is None else {"kernel": w, "bias": b}
    return nn.Dense(w.shape[-1], use_bias=b is not None).apply({"params": params}, x)


def affine(p, x):
    return x @ p["w"] + p["b"]


OPS = [
    Case("dense", mb.ops.dense(), flax_dense, normal((7, 5), (5, 3), (3,))),
    Case("dense, one vector", mb.ops.dense(), flax_dense, normal((5,), (5, 3), (3,))),
    Case("dense, two leading axes", mb.ops.dense(), flax_dense, normal((2, 7, 5), (5, 3), (3,))),
    Case("dense, no bias", mb.ops.dense(bias=False), flax_dense, normal((7, 5), (5, 3))),
]


LAYERS: list[Case] = [
    layer_case("Dense", Dense(3), affine, normal((7, 5))),
    layer_case("Dense, no bias", Dense(3, bias=False), lambda p, x: x @ p["w"], normal((7, 5))),
]

# Judged in every precision: finite where the truth is, and right.
EXTREMES: list[Case] = []

# No examples: cotangents of the right shapes, zeros where a sum has no terms.
EMPTY: list[Case] = []


@st.composite
def drawn(draw) -> Case:
    """Any op of this family, its options and its shapes."""
    leading = tuple(draw(st.lists(st.integers(1, 4), max_size=3)))
    inputs, outputs = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    return Case("dense", mb.ops.dense(), flax_dense, normal((*leading, inputs), (inputs, outputs), (outputs,)))


# What a user gets wrong, and the part of the one line that says so.
MISTAKES: dict = {}
