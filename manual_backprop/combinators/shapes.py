"""What the combinators share: sums over paths, and shapes without values."""

from __future__ import annotations

from functools import reduce

import jax
import jax.numpy as jnp

from manual_backprop.contract import Layer
from manual_backprop.errors import InputError


def sum_over_paths(*paths):
    """Σ over paths, leaf by leaf."""
    return jax.tree.map(lambda *leaves: reduce(jnp.add, leaves), *paths)


def shapes(x):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), x)


def output(layer: Layer, params, state, x):
    """Shapes and dtypes of what the layer makes of x."""
    return jax.eval_shape(layer.apply, params, state, x)


def want_same_shape(x, y) -> None:
    if shapes(x) != shapes(y):
        raise InputError(f"maps {text(x)} to {text(y)}; wants the input's shape and dtype kept")


def text(x) -> str:
    """Shapes and dtypes for people: float32[7, 5]."""
    shapes = jax.tree.map(lambda leaf: f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}", x)
    return shapes if isinstance(shapes, str) else str(shapes)
