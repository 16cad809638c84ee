"""Whole models against flax: the same parameters, every gradient in float64, and ten steps of optax."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manual_backprop as mb
from cases import integer_cross_entropy, random_like, squared_error
from cases.activations import REFERENCES
from manual_backprop.layers import Apply, Dense


class FlaxNetwork(nn.Module):
    """Dense layers with an activation after each but the last, and `last` after that."""

    sizes: tuple
    activation: Callable
    last: Callable | None = None

    @nn.compact
    def __call__(self, x):
        for size in self.sizes[:-1]:
            x = self.activation(nn.Dense(size)(x))
        x = nn.Dense(self.sizes[-1])(x)
        return self.last(x) if self.last else x


def rows():
    """Our model, flax's, the cost by hand, its reference, and the batch."""
    rng = np.random.default_rng(0)
    x, t, labels = rng.standard_normal((7, 5)), rng.uniform(size=(7, 3)), jnp.asarray(rng.integers(0, 3, 7))
    for name, activation in mb.ops.ACTIVATIONS.items():
        model = mb.models.mlp(13, 11, 3, activation=activation())
        yield f"mlp {name}", model, FlaxNetwork((13, 11, 3), REFERENCES[name]), "cross entropy", (x, labels)
    sigmoid = mb.ops.sigmoid()
    yield (
        "mlp 16-16",
        mb.models.mlp(16, 16, 3, last=sigmoid),
        FlaxNetwork((16, 16, 3), nn.sigmoid, nn.sigmoid),
        "squares",
        (x, t),
    )
    yield "chain", mb.models.chain(), FlaxNetwork((1, 1, 1), nn.sigmoid, nn.sigmoid), "squares", (x[:, :1], t[:, :1])
    yield (
        "chain of 5, tanh",
        mb.models.chain(5, mb.ops.tanh()),
        FlaxNetwork((1,) * 5, nn.tanh, nn.tanh),
        "squares",
        (x[:, :1], t[:, :1]),
    )


COSTS = {
    "cross entropy": (mb.ops.softmax_cross_entropy(), integer_cross_entropy),
    "squares": (mb.ops.squared_error(), squared_error),
}


def to_flax(model: mb.Serial, params) -> dict:
    dense = [p for layer, p in zip(model.layers, params, strict=True) if isinstance(layer, Dense)]
    return {"params": {f"Dense_{i}": {"kernel": p["w"], "bias": p["b"]} for i, p in enumerate(dense)}}


@pytest.fixture(params=[pytest.param(row, id=row[0]) for row in rows()])
def both(request):
    """(objective, params, state, batch), and flax's cost of its parameters."""
    _, model, flax_model, cost, batch = request.param
    by_hand, reference = COSTS[cost]
    with jax.enable_x64(True):
        batch = tuple(map(jnp.asarray, batch))
        objective = mb.Objective(model, Apply(by_hand))
        params, state = objective.init(jax.random.key(0), batch)
        params = random_like(params, 1)  # biases of zero would hide mistakes
        yield (objective, params, state, batch), lambda p: reference(flax_model.apply(p, batch[0]), batch[1])


def relative(ours, theirs) -> float:
    return max(
        float(np.abs(a - b).max() / np.abs(b).max())
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    )


def test_every_gradient_is_flaxs(both):
    (objective, params, state, batch), flax_cost = both
    (cost, _), (dparams, _) = jax.jit(mb.value_and_grad(objective))(params, state, batch)
    expected, gradient = jax.jit(jax.value_and_grad(flax_cost))(to_flax(objective.model, params[0]))
    assert relative(cost, expected) <= 1e-12
    assert relative(to_flax(objective.model, dparams), gradient) <= 1e-12


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1, momentum=0.9), optax.adamw(1e-2)], ids=["sgd", "adamw"])
def test_ten_steps_of_optax_end_at_the_same_parameters(both, optimizer):
    (objective, ours, state, batch), flax_cost = both
    theirs = to_flax(objective.model, ours[0])

    @jax.jit
    def our_step(params, optimizer_state):
        _, gradient = mb.value_and_grad(objective)(params, state, batch)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        return optax.apply_updates(params, updates), optimizer_state

    @jax.jit
    def flax_step(params, optimizer_state):
        updates, optimizer_state = optimizer.update(jax.grad(flax_cost)(params), optimizer_state, params)
        return optax.apply_updates(params, updates), optimizer_state

    our_state, flax_state = optimizer.init(ours), optimizer.init(theirs)
    start = theirs
    for _ in range(10):
        ours, our_state = our_step(ours, our_state)
        theirs, flax_state = flax_step(theirs, flax_state)
    assert relative(to_flax(objective.model, ours[0]), theirs) <= 1e-11
    assert relative(start, theirs) > 1e-3  # it moved
