"""The table of units: every op, layer and model, with an independent reference and a way to draw arguments.

A new op is one file and one row here; every property in `tests/` then holds for it, or fails.
Sizes are distinct primes and batches larger than one: square shapes hide transposes, a batch of one hides missing sums.
Parameters are drawn too: zeros and ones, with which layers start, hide terms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import manual_backprop as mb
from manual_backprop.layers import Apply, Dense, Identity, LayerNorm
from manual_backprop.testing import Pair, as_pair

Draw = Callable[[np.random.Generator], tuple]


class Case(NamedTuple):
    """unit(*args) ought to be reference(*args); a layer's args are (params, state, x)."""

    name: str
    unit: Any
    reference: Callable
    draw: Draw

    @property
    def pair(self) -> Pair:
        return as_pair(self.unit)

    def args(self, seed: int = 0, dtype: str = "float32") -> tuple:
        return jax.tree.map(lambda leaf: cast(leaf, dtype), self.draw(np.random.default_rng(seed)))


def cast(leaf, dtype: str) -> jax.Array:
    return jnp.asarray(leaf, dtype if np.issubdtype(np.asarray(leaf).dtype, np.floating) else None)


# ── ops ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def normal(*shapes: tuple[int, ...]) -> Draw:
    return lambda rng: tuple(rng.standard_normal(shape) for shape in shapes)


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


def flax_dense(x, w, b=None):
    params = {"kernel": w} if b is None else {"kernel": w, "bias": b}
    return nn.Dense(w.shape[-1], use_bias=b is not None).apply({"params": params}, x)


def flax_layer_norm(eps: float) -> Callable:
    def reference(x, scale, bias):
        return nn.LayerNorm(epsilon=eps, use_fast_variance=False).apply({"params": {"scale": scale, "bias": bias}}, x)

    return reference


def squared_error(prediction, target):
    return jnp.mean(jnp.sum(2 * optax.l2_loss(prediction, target), axis=-1))


def integer_cross_entropy(logits, labels):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def cross_entropy(logits, labels):
    return jnp.mean(optax.softmax_cross_entropy(logits, labels))


OPS = [
    Case("dense", mb.ops.dense(), flax_dense, normal((7, 5), (5, 3), (3,))),
    Case("dense, one vector", mb.ops.dense(), flax_dense, normal((5,), (5, 3), (3,))),
    Case("dense, two leading axes", mb.ops.dense(), flax_dense, normal((2, 7, 5), (5, 3), (3,))),
    Case("dense, no bias", mb.ops.dense(bias=False), flax_dense, normal((7, 5), (5, 3))),
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
    Case("layer_norm", mb.ops.layer_norm(), flax_layer_norm(1e-5), normal((2, 7, 5), (5,), (5,))),
    Case("layer_norm, large eps", mb.ops.layer_norm(eps=0.5), flax_layer_norm(0.5), normal((7, 5), (5,), (5,))),
    Case("squared_error", mb.ops.squared_error(), squared_error, normal((7, 5), (7, 5))),
    Case("squared_error, two leading axes", mb.ops.squared_error(), squared_error, normal((2, 7, 5), (2, 7, 5))),
    Case("softmax_cross_entropy, integers", mb.ops.softmax_cross_entropy(), integer_cross_entropy, labels(5, 7)),
    Case("softmax_cross_entropy, text", mb.ops.softmax_cross_entropy(), integer_cross_entropy, labels(5, 2, 7)),
    Case("softmax_cross_entropy, uint8", mb.ops.softmax_cross_entropy(), integer_cross_entropy, many_classes),
    Case("softmax_cross_entropy, uint32", mb.ops.softmax_cross_entropy(), integer_cross_entropy, unsigned),
    Case("softmax_cross_entropy, shifted", mb.ops.softmax_cross_entropy(), integer_cross_entropy, shifted),
    Case("softmax_cross_entropy, rows", mb.ops.softmax_cross_entropy(), cross_entropy, distributions(5, 7)),
]


# ── layers and models ────────────────────────────────────────────────────────────────────────────────────────────────


def drawn(layer: mb.Layer, x: Draw) -> Draw:
    """(params, state, x) for a layer, every parameter drawn. The structure is init's, the numbers are not."""

    def draw(rng):
        inputs = x(rng)
        inputs = inputs[0] if len(inputs) == 1 else inputs
        shapes = jax.tree.map(lambda leaf: jnp.asarray(leaf), inputs)
        params, state = jax.eval_shape(layer.init, jax.random.key(0), shapes)
        return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), params), state, inputs

    return draw


def layer_case(name: str, layer: mb.Layer, function: Callable, x: Draw) -> Case:
    """function(params, x) is the reference."""
    return Case(name, layer, lambda params, state, x: function(params, x), drawn(layer, x))


def affine(p, x):
    return x @ p["w"] + p["b"]


def norm_dense_gelu(params, x):
    norm, dense, _ = params
    return jax.nn.gelu(affine(dense, flax_layer_norm(1e-5)(x, norm["scale"], norm["bias"])))


def mlp(activation: Callable, last: Callable = lambda z: z) -> Callable:
    def function(params, x):
        *hidden, output = [p for p in params if p]
        for p in hidden:
            x = activation(affine(p, x))
        return last(affine(output, x))

    return function


def residual_blocks(params, x):
    for i in range(3):
        x = x + norm_dense_gelu(jax.tree.map(lambda leaf, i=i: leaf[i], params), x)
    return x


def tied(params, x):
    first, _, second = params
    return jnp.tanh(affine(first, x)) @ first["w"] + second["b"]


BLOCK = mb.Serial(LayerNorm(), Dense(5), Apply(mb.ops.gelu()))
MLP = mb.models.mlp(11, 3, activation=mb.ops.tanh())
DEEP = mb.Serial(mb.Repeat(mb.Residual(mb.Recompute(BLOCK)), 3), MLP)

LAYERS = [
    layer_case("Identity", Identity(), lambda params, x: x, normal((7, 5))),
    layer_case("Apply", Apply(mb.ops.silu()), lambda params, x: jax.nn.silu(x), normal((7, 5))),
    layer_case("Apply, a cost", Apply(mb.ops.squared_error()), lambda p, x: squared_error(*x), normal((7, 5), (7, 5))),
    layer_case("Dense", Dense(3), affine, normal((7, 5))),
    layer_case("Dense, no bias", Dense(3, bias=False), lambda p, x: x @ p["w"], normal((7, 5))),
    layer_case("LayerNorm", LayerNorm(), lambda p, x: flax_layer_norm(1e-5)(x, **p), normal((7, 5))),
    layer_case("Serial", BLOCK, norm_dense_gelu, normal((7, 5))),
    layer_case(
        "Parallel",
        mb.Parallel(Dense(3), Identity(), Dense(2)),
        lambda p, x: (affine(p[0], x), x, affine(p[2], x)),
        normal((7, 5)),
    ),
    layer_case("Residual", mb.Residual(BLOCK), lambda p, x: x + norm_dense_gelu(p, x), normal((7, 5))),
    layer_case("Repeat", mb.Repeat(mb.Residual(BLOCK), 3), residual_blocks, normal((7, 5))),
    layer_case("Recompute", mb.Recompute(BLOCK), norm_dense_gelu, normal((7, 5))),
    layer_case(
        "Tied",
        mb.Tied(mb.Serial(Dense(5), Apply(mb.ops.tanh()), Dense(5)), (0, "w"), (2, "w")),
        tied,
        normal((7, 5)),
    ),
    layer_case(
        "Objective",
        mb.Objective(DEEP, Apply(mb.ops.softmax_cross_entropy())),
        lambda p, batch: integer_cross_entropy(mlp(jnp.tanh)(p[0][1], residual_blocks(p[0][0], batch[0])), batch[1]),
        lambda rng: (rng.standard_normal((7, 5)), rng.integers(0, 3, 7).astype(np.int32)),
    ),
]

MODELS = [
    layer_case("mlp", MLP, mlp(jnp.tanh), normal((7, 5))),
    layer_case(
        "mlp, sigmoid outputs",
        mb.models.mlp(11, 3, last=mb.ops.sigmoid()),
        mlp(jax.nn.sigmoid, jax.nn.sigmoid),
        normal((7, 5)),
    ),
    layer_case("chain", mb.models.chain(), mlp(jax.nn.sigmoid, jax.nn.sigmoid), normal((7, 1))),
]

CASES = [*OPS, *LAYERS, *MODELS]


def each(cases: list[Case]) -> dict:
    """For pytest.mark.parametrize: `@pytest.mark.parametrize(**each(CASES))`."""
    return {"argnames": "case", "argvalues": cases, "ids": [case.name for case in cases]}


def differentiable(args) -> list[bool]:
    """For each leaf of args, whether it has a gradient."""
    return [bool(jnp.issubdtype(leaf.dtype, jnp.inexact)) for leaf in jax.tree.leaves(args)]


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


def compiled(case: Case) -> Callable:
    """The same under jit: `compiled(case)(args, dy)`."""
    return jax.jit(lambda args, dy: gradient(case.pair, args, dy))
