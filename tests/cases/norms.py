"""Normalisations."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
from hypothesis import strategies as st

import manual_backprop as mb
from cases.case import Case, layer_case, normal
from manual_backprop.layers import LayerNorm


def flax_layer_norm(eps: float) -> Callable:
    def reference(x, scale, bias):
        return nn.LayerNorm(epsilon=eps, use_fast_variance=False).apply({"params": {"scale": scale, "bias": bias}}, x)

    return reference


OPS = [
    Case("layer_norm", mb.ops.layer_norm(), flax_layer_norm(1e-5), normal((2, 7, 5), (5,), (5,))),
    Case("layer_norm, large eps", mb.ops.layer_norm(eps=0.5), flax_layer_norm(0.5), normal((7, 5), (5,), (5,))),
]


LAYERS: list[Case] = [
    layer_case("LayerNorm", LayerNorm(), lambda p, x: flax_layer_norm(1e-5)(x, **p), normal((7, 5))),
]

# Judged in every precision: finite where the truth is, and right.
EXTREMES: list[Case] = []

# No examples: cotangents of the right shapes, zeros where a sum has no terms.
EMPTY: list[Case] = []


@st.composite
def drawn(draw) -> Case:
    """Any op of this family, its options and its shapes."""
    leading, d = tuple(draw(st.lists(st.integers(1, 4), max_size=3))), draw(st.integers(2, 6))
    eps = draw(st.sampled_from([1e-6, 1e-5, 0.1]))
    return Case("layer_norm", mb.ops.layer_norm(eps=eps), flax_layer_norm(eps), normal((*leading, d), (d,), (d,)))


# What a user gets wrong, and the part of the one line that says so.
MISTAKES: dict = {}
