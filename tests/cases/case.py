"""A row of the table of units, and what the properties do with it.

Sizes are distinct primes and batches larger than one: square shapes hide transposes, a batch of one hides missing sums.
Parameters are drawn too: zeros and ones, with which layers start, hide terms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_backprop as mb
from manual_backprop.testing import Pair, as_pair

Draw = Callable[[np.random.Generator], tuple]


class Case(NamedTuple):
    """unit(*args) ought to be reference(*args); a layer's args are (params, state, x)."""

    name: str
    unit: Any
    reference: Callable
    draw: Draw
    large: Draw | None = None  # arguments of a real size, for the table of times

    @property
    def pair(self) -> Pair:
        return as_pair(self.unit)

    def args(self, seed: int = 0, dtype: str = "float32") -> tuple:
        return arrays(self.draw(np.random.default_rng(seed)), dtype)


def arrays(tree, dtype: str):
    """The leaves as JAX arrays, floating point ones of this dtype."""
    return jax.tree.map(lambda leaf: cast(leaf, dtype), tree)


def cast(leaf, dtype: str) -> jax.Array:
    if isinstance(leaf, jax.Array):  # a key
        return leaf
    with np.errstate(over="ignore"):  # what the dtype cannot hold is infinite in it
        return jnp.asarray(leaf, dtype if np.issubdtype(np.asarray(leaf).dtype, np.floating) else None)


# ── how arguments are drawn ──────────────────────────────────────────────────────────────────────────────────────────


def normal(*shapes: tuple[int, ...]) -> Draw:
    return lambda rng: tuple(rng.standard_normal(shape) for shape in shapes)


def exactly(*values) -> Draw:
    """These values: for extreme inputs."""
    return lambda rng: values


def key_from(rng: np.random.Generator) -> jax.Array:
    """A PRNG key, as an argument."""
    return jax.random.key(int(rng.integers(2**31)))


def drawn(layer: mb.Layer, x: Draw) -> Draw:
    """(params, state, x) for a layer, every number drawn. The structure is init's."""

    def draw(rng):
        inputs = x(rng)
        inputs = inputs[0] if len(inputs) == 1 else inputs
        shapes = jax.tree.map(lambda leaf: jnp.asarray(leaf), inputs)
        params, state = jax.eval_shape(layer.init, jax.random.key(0), shapes)
        numbers = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), params)
        return numbers, jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape), state), inputs

    return draw


def layer_case(name: str, layer: mb.Layer, function: Callable, x: Draw) -> Case:
    """function(params, x) is the reference."""
    return Case(name, layer, lambda params, state, x: function(params, x), drawn(layer, x))


# ── what properties do with them ─────────────────────────────────────────────────────────────────────────────────────


def each(cases: list[Case]) -> dict:
    """For pytest.mark.parametrize: `@pytest.mark.parametrize(**each(CASES))`."""
    return {"argnames": "case", "argvalues": cases, "ids": [case.name for case in cases]}


def sweep(cases: list[Case]) -> dict:
    """As `each`, but of several variants of an op all but the first are nightly."""
    params, seen = [], set()
    for case in cases:
        name = getattr(case.unit, "name", case.name)
        params.append(pytest.param(case, marks=[pytest.mark.slow] * (name in seen)))
        seen.add(name)
    return each(cases) | {"argvalues": params}


def differentiable(args, constants: tuple[int, ...] = ()) -> list[bool]:
    """For each leaf of args, whether it has a gradient; constants: the places of arguments that have none, as a state."""
    return [
        i not in constants and bool(jnp.issubdtype(leaf.dtype, jnp.inexact))
        for i, arg in enumerate(args)
        for leaf in jax.tree.leaves(arg)
    ]


def leaves_of(cotangents, args) -> list:
    """The cotangents, one a leaf of args, in order; None for integers."""
    leaves = []
    for arg, cotangent in zip(args, cotangents, strict=True):
        tree = jax.tree.structure(arg)
        leaves += [None] * tree.num_leaves if cotangent is None else tree.flatten_up_to(cotangent)
    return leaves


def random_like(tree, seed: int):
    """Normal numbers of the shapes and dtypes of a tree of arrays."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype), tree)


def gradient(pair: Pair, args, dy) -> list:
    """One backward pass: the cotangents, one a leaf of args. dy is rounded to the dtypes of y."""
    y, residuals = pair.forward(*args)
    return leaves_of(pair.backward(residuals, jax.tree.map(lambda d, leaf: d.astype(leaf.dtype), dy, y)), args)


def inner(a, b):
    """⟨a, b⟩ over all leaves."""
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def second_derivatives(function: Callable, args, dy) -> tuple:
    """The gradient of the gradient's inner product with a random direction."""
    argnums = tuple(i for i, has in enumerate(differentiable(args)) if has)
    direction = random_like(tuple(args[i] for i in argnums), 9)
    cost = lambda *args: inner(function(*args), dy)
    slope = lambda *args: inner(jax.grad(cost, argnums)(*args), direction)
    return jax.jit(jax.grad(slope, argnums))(*args)


def compiled(case: Case) -> Callable:
    """The same under jit: `compiled(case)(args, dy)`."""
    return jax.jit(lambda args, dy: gradient(case.pair, args, dy))
