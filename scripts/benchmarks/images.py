"""Training steps of ResNet-18 on pictures of 32×32 against flax's under jax.value_and_grad."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax

import manual_backprop as mb
from benchmarks.row import Row
from manual_backprop.layers import Apply
from manual_backprop.models import convnet
from manual_backprop.testing.timing import Program
from peers import flax_convnet

BATCH, CLASSES = 64, 10
KEEPS = ("everything", "dear", "inputs")


def images() -> Iterator[Row]:
    """What is kept, from all to the inputs of blocks alone. On an accelerator ResNet-50 at 224² too, in bfloat16."""
    for keep in KEEPS:
        yield resnet_step("resnet18", (BATCH, 32, 32, 3), "small", keep, jnp.float32)
    if jax.default_backend() != "cpu":
        for keep in KEEPS:
            yield resnet_step("resnet18", (1024, 32, 32, 3), "small", keep, jnp.bfloat16)
            yield resnet_step("resnet50", (256, 224, 224, 3), "large", keep, jnp.bfloat16)


def resnet_step(name: str, shape: tuple, stem: str, keep: str, dtype) -> Row:
    size = convnet.RESNETS[name]
    optimizer = optax.sgd(0.1, momentum=0.9, nesterov=True)
    x = jax.random.normal(jax.random.key(0), shape)
    labels = jnp.arange(len(x)) % CLASSES
    model = convnet.resnet(size, CLASSES, stem=stem, keep=keep)
    model = model if dtype == jnp.float32 else mb.Precision(model, jnp.dtype(dtype).name)
    objective = mb.Objective(model, Apply(mb.ops.softmax_cross_entropy()))
    params, state = objective.init(jax.random.key(1), (x, labels))

    def step(training, x, labels):
        params, state, optimizer_state = training
        (cost, state), gradient = mb.value_and_grad(objective)(params, state, (x, labels))
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        return (optax.apply_updates(params, updates), state, optimizer_state), cost

    peer = flax_convnet.FlaxResNet(size, CLASSES, stem, dtype, fast=True)
    variables = flax_convnet.resnet_to_flax(size, jax.tree.map(jnp.copy, params[0]), jax.tree.map(jnp.copy, state[0]))

    def peer_step(training, x, labels):
        trained, statistics, optimizer_state = training

        def cost(trained):
            variables = {"params": trained, "batch_stats": statistics}
            logits, new = peer.apply(variables, x, True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels).mean(), new

        (value, new), gradient = jax.value_and_grad(cost, has_aux=True)(trained)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, trained)
        return (optax.apply_updates(trained, updates), new["batch_stats"], optimizer_state), value

    trained, statistics = variables["params"], variables["batch_stats"]
    return Row(
        f"{name}, {'×'.join(map(str, shape[:3]))}, {jnp.dtype(dtype).name}, {keep} / flax",
        "flax + jax.value_and_grad + optax.sgd",
        Program(step, ((params, state, optimizer.init(params)), x, labels), donate=True),
        Program(peer_step, ((trained, statistics, optimizer.init(trained)), x, labels), donate=True),
        convnet_flops(objective, params, state, (x, labels)),
    )


def convnet_flops(objective: mb.Layer, params, state, batch) -> float:
    """Multiplications and additions of a step: three times those of the forward pass, as the compiler counts them."""
    compiled = jax.jit(objective.apply).lower(params, state, batch).compile()
    return 3 * compiled.cost_analysis()["flops"]
