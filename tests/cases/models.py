"""Layers made of layers, and models."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import manual_backprop as mb
from cases.case import Case, drawn, key_from, layer_case, normal
from cases.costs import integer_cross_entropy
from cases.linear import affine
from cases.norms import flax_layer_norm
from cases.sequence import flax_rnn
from manual_backprop.layers import LSTM, Apply, Dense, Embedding, Identity, LayerNorm, LinearCrossEntropy
from manual_backprop.models.autoencoder import autoencoder, negative_bound, variational_autoencoder
from manual_backprop.models.convnet import ConvNeXt, ResNet, convnext, resnet, vgg
from manual_backprop.models.gpt import Size, gpt
from peers import flax_autoencoder, flax_convnet, flax_gpt, flax_recurrent


def truncated(params, x):
    """An LSTM in parts of 5 steps; what goes from part to part has no gradient."""
    state, hs = (jnp.zeros((len(x), 3), x.dtype),) * 2, []
    for part in jnp.split(x, x.shape[1] // 5, 1):
        h, state = flax_rnn("lstm", axis=1)(part, *state, *(params[name] for name in ("wx", "wh", "b")))
        state = jax.lax.stop_gradient(state)
        hs.append(h)
    return jnp.concatenate(hs, 1)


def recurrent(cell: str, **options) -> tuple[mb.Layer, Callable]:
    """Our model, and flax's as a function."""
    peer = flax_recurrent.Recurrent(cell, 3, 2, **options)
    reference = lambda p, x: peer.apply(flax_recurrent.to_flax(peer, p), x)
    return mb.models.recurrent(cell, 3, 2, **options), reference


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


AUTOENCODER = autoencoder(5, (7, 3), 2, mb.ops.tanh())
VARIATIONAL = variational_autoencoder(5, (7, 3), 2, mb.ops.tanh())
BOUND = mb.Objective(VARIATIONAL, negative_bound(0.7))


def of_autoencoder(params, x):
    return flax_autoencoder.Autoencoder(5, (7, 3), 2, jnp.tanh).apply(flax_autoencoder.to_flax(AUTOENCODER, params), x)


def bound(params, state, batch, key):
    model = flax_autoencoder.VariationalAutoencoder(5, (7, 3), 2, jnp.tanh)
    variables = flax_autoencoder.to_flax(VARIATIONAL, params[0])
    x, target = batch
    return flax_autoencoder.negative_bound(model, 0.7)(variables, x, flax_autoencoder.noise_key(key), target)


def pictures(rng):
    return rng.uniform(0.1, 0.9, (11, 5)), rng.uniform(0.1, 0.9, (11, 5))


def trained(model, to_flax: Callable) -> Callable:
    """The flax model with the statistics of the batch."""
    return lambda params, x: model.apply(to_flax(params), x, True, mutable=["batch_stats"])[0]


BASIC, BOTTLENECK, CONVNEXT = ResNet("basic", (2,), 2), ResNet("bottleneck", (1,), 2), ConvNeXt((2,), (3,))
CONVNETS = {
    "vgg": (
        vgg(3, widths=(2,), depth=1),
        flax_convnet.VGG((2,), 1, 3),
        lambda params: flax_convnet.vgg_to_flax((2,), 1, params),
    ),
    **{
        f"resnet, {size.block}": (
            resnet(size, 3, stem="small"),
            flax_convnet.FlaxResNet(size, 3, "small"),
            lambda params, size=size: flax_convnet.resnet_to_flax(size, params),
        )
        for size in (BASIC, BOTTLENECK)
    },
    "convnext": (
        convnext(CONVNEXT, 3, patch=1),
        flax_convnet.FlaxConvNeXt(CONVNEXT, 3, 1),
        lambda params: flax_convnet.convnext_to_flax(CONVNEXT, params),
    ),
}

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
    layer_case("Truncated", mb.Truncated(LSTM(3, carried=True), 5), truncated, normal((2, 10, 7))),
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
        "Penalised",
        mb.Penalised(
            LinearCrossEntropy(3), mb.Serial(Dense(2), Apply(mb.ops.squared_relu()), Apply(mb.ops.mean())), 0.3
        ),
        lambda p, x: (
            integer_cross_entropy(x[0][0] @ p[0]["weight"].T, x[1])
            + 0.3 * jnp.mean(jax.nn.relu(affine(p[1][0], x[0][1])) ** 2)
        ),
        lambda rng: (
            (rng.standard_normal((7, 5)), rng.standard_normal((7, 2))),
            rng.integers(0, 3, 7).astype(np.int32),
        ),
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
    layer_case("autoencoder", AUTOENCODER, of_autoencoder, normal((11, 5))),
    Case("autoencoder, variational", BOUND, bound, lambda rng: (*drawn(BOUND, pictures)(rng), key_from(rng))),
    layer_case("recurrent, lstm", *recurrent("lstm", depth=3), normal((2, 7, 5))),
    layer_case("recurrent, gru", *recurrent("gru", last=True), normal((2, 7, 5))),
    layer_case("recurrent, rnn", *recurrent("rnn", depth=2, vocabulary=11), lambda rng: (rng.integers(0, 11, (2, 7)),)),
    layer_case("recurrent, state_space", *recurrent("state_space", depth=2, last=True), normal((2, 7, 5))),
    *(
        layer_case(
            f"convnet, {name}",
            model,
            trained(flax, to_flax),
            normal((3, 5, 3, 2) if name == "convnext" else (5, 3, 2, 2)),
        )
        for name, (model, flax, to_flax) in CONVNETS.items()
    ),
    layer_case("chain", mb.models.chain(), mlp(jax.nn.sigmoid, jax.nn.sigmoid), normal((7, 1))),
]
