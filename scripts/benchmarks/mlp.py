"""Multilayer perceptrons against flax."""

from __future__ import annotations

from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import manual_backprop as mb
from benchmarks.row import Row
from manual_backprop.layers import Apply, Dense
from manual_backprop.testing.timing import Program

BATCH = 256


class FlaxMLP(nn.Module):
    sizes: tuple[int, ...]
    activation: str

    @nn.compact
    def __call__(self, x):
        *hidden, outputs = self.sizes
        for size in hidden:
            x = getattr(nn, self.activation)(nn.Dense(size)(x))
        return nn.Dense(outputs)(x)


def mlp() -> Iterator[Row]:
    """Training steps of 784-16-16-10 and 784-512-512-10 networks: a flax model, jax.value_and_grad and optax."""
    for sizes, activation in (((16, 16, 10), "sigmoid"), ((512, 512, 10), "relu")):
        for cost in ("squared_error", "softmax_cross_entropy"):
            yield mlp_step(sizes, activation, cost)


def mlp_step(sizes, activation, cost) -> Row:
    key = jax.random.key(0)
    x = jax.random.normal(key, (BATCH, 784))
    labels = jax.random.randint(key, (BATCH,), 0, sizes[-1])
    target = jax.nn.one_hot(labels, sizes[-1]) if cost == "squared_error" else labels
    optimizer = optax.sgd(0.1)

    flax_model = FlaxMLP(sizes, activation)
    variables = flax_model.init(key, x)

    def peer_cost(variables, x, target):
        z = flax_model.apply(variables, x)
        if cost == "squared_error":
            return jnp.mean(jnp.sum(jnp.square(z - target), -1))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(z, target))

    def peer_step(training, x, target):
        variables, optimizer_state = training
        value, gradient = jax.value_and_grad(peer_cost)(variables, x, target)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, variables)
        return (optax.apply_updates(variables, updates), optimizer_state), value

    model = mb.models.mlp(*sizes, activation=getattr(mb.ops, activation)())
    objective = mb.Objective(model, Apply(getattr(mb.ops, cost)()))
    _, state = objective.init(key, (x, target))

    def our_step(training, x, target):
        params, optimizer_state = training
        (value, _), gradient = mb.value_and_grad(objective)(params, state, (x, target))
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), value

    params = (from_flax(model, variables["params"]), {})
    name = f"784-{'-'.join(map(str, sizes))} {activation} {cost}, batch {BATCH}"
    return Row(
        name,
        "flax + jax.value_and_grad + optax",
        Program(our_step, ((params, optimizer.init(params)), x, target), donate=True),
        Program(peer_step, ((variables, optimizer.init(variables)), x, target), donate=True),
    )


def from_flax(model: mb.Serial, params) -> tuple:
    """Parameters of a flax network of nn.Dense layers, in our model's structure."""
    ours, number = [], 0
    for layer in model.layers:
        if isinstance(layer, Dense):
            dense = params[f"Dense_{number}"]
            ours.append({"w": dense["kernel"], "b": dense["bias"]})
            number += 1
        else:
            ours.append({})
    return tuple(ours)
