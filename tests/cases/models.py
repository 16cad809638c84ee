"""Layers made of layers, and models."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import manual_backprop as mb
from cases.case import layer_case, normal
from cases.costs import integer_cross_entropy
from cases.linear import affine
from cases.norms import flax_layer_norm
from manual_backprop.layers import Apply, Dense, Embedding, Identity, LayerNorm, LinearCrossEntropy
from manual_backprop.models.gpt import Size, gpt
from peers import flax_gpt


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


def reversible(params, x):
    u, v = x
    for i in range(3):
        (norm, dense), (last, _) = jax.tree.map(lambda leaf, i=i: leaf[i], params)
        u = u + affine(dense, flax_layer_norm(1e-5)(v, norm["scale"], norm["bias"]))
        v = v + jnp.tanh(affine(last, u))
    return u, v


BLOCK = mb.Serial(LayerNorm(), Dense(5), Apply(mb.ops.gelu()))
MLP = mb.models.mlp(11, 3, activation=mb.ops.tanh())
DEEP = mb.Serial(mb.Repeat(mb.Residual(mb.Recompute(BLOCK)), 3), MLP)

EMBEDDED = mb.Serial(Embedding(7, 5), DEEP)


def embedded(params, ids):
    table, (blocks, perceptron) = params
    return mlp(jnp.tanh)(perceptron, residual_blocks(blocks, table["table"][ids]))


LAYERS = [
    layer_case("Identity", Identity(), lambda params, x: x, normal((7, 5))),
    layer_case("Apply", Apply(mb.ops.silu()), lambda params, x: jax.nn.silu(x), normal((7, 5))),
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
        "Reversible",
        mb.Reversible(mb.Serial(LayerNorm(), Dense(5)), mb.Serial(Dense(5), Apply(mb.ops.tanh())), 3),
        reversible,
        normal((7, 5), (7, 5)),
    ),
    layer_case(
        "MicroBatches",
        mb.MicroBatches(mb.Objective(Embedding(5, 3), Apply(mb.ops.softmax_cross_entropy())), 2),
        lambda p, batch: integer_cross_entropy(p[0]["table"][batch[0]], batch[1]),
        lambda rng: (rng.integers(0, 5, 6).astype(np.int32), rng.integers(0, 3, 6).astype(np.int32)),
    ),
    layer_case(
        "MicroBatches, one product",
        mb.MicroBatches(mb.Objective(EMBEDDED, Apply(mb.ops.softmax_cross_entropy())), 2, products="one"),
        lambda p, batch: integer_cross_entropy(embedded(p[0], batch[0]), batch[1]),
        lambda rng: (rng.integers(0, 7, 6).astype(np.int32), rng.integers(0, 3, 6).astype(np.int32)),
    ),
    layer_case(
        "LossScale",
        mb.LossScale(mb.Objective(Embedding(5, 3), Apply(mb.ops.softmax_cross_entropy()))),
        lambda p, batch: integer_cross_entropy(p[0]["table"][batch[0]], batch[1]),
        lambda rng: (rng.integers(0, 5, 6).astype(np.int32), rng.integers(0, 3, 6).astype(np.int32)),
    ),
    layer_case(
        "Tied, an embedding",
        mb.Tied(
            mb.Objective(mb.Serial(Embedding(7, 5), Apply(mb.ops.tanh())), LinearCrossEntropy(7)),
            (0, 0, "table"),
            (1, "weight"),
        ),
        lambda p, batch: integer_cross_entropy(jnp.tanh(p[0][0]["table"][batch[0]]) @ p[0][0]["table"].T, batch[1]),
        lambda rng: (rng.integers(0, 7, 6).astype(np.int32), rng.integers(0, 7, 6).astype(np.int32)),
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
    *(
        layer_case(
            f"gpt, {size.architecture}",
            gpt(size),
            lambda p, batch, size=size: flax_gpt.cost(flax_gpt.GPT(size))(flax_gpt.to_flax(size, p), *batch),
            lambda rng: tuple(rng.integers(0, 7, (2, 3)).astype(np.int32) for _ in range(2)),
        )
        for size in (Size(7, 5, 2, 4, 2), Size(7, 5, 2, 8, 2, 1, 5, architecture="modern"))
    ),
    layer_case("chain", mb.models.chain(), mlp(jax.nn.sigmoid, jax.nn.sigmoid), normal((7, 1))),
]
