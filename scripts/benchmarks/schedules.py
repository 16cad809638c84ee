"""What only an open backward pass can do: updates in it, reversible blocks."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax
from jax import lax

import manual_backprop as mb
from benchmarks.row import Row
from manual_backprop.layers import Apply, Dense
from manual_backprop.testing.timing import Program
from manual_backprop.training.descent import Descent


def schedules() -> Iterator[Row]:
    yield from update_in_backward()
    yield reversible()
    yield micro_batches()


def update_in_backward(depth: int = 24, width: int = 512, batch: int = 256) -> Iterator[Row]:
    """Residual blocks of two dense layers, their inputs kept: against a gradient first and an update then."""
    dense = lambda n: Dense(n, bias=False, w_init=jax.nn.initializers.normal(0.01))
    block = mb.Residual(mb.Serial(dense(4 * width), Apply(mb.ops.relu()), dense(width)))
    objective = mb.Objective(mb.Repeat(mb.Recompute(block), depth), Apply(mb.ops.squared_error()))
    data = [jax.random.normal(jax.random.key(i), (batch, width)) for i in (0, 1)]
    params, state = objective.init(jax.random.key(2), tuple(data))

    for name, optimizer in (("SGD", optax.sgd(1e-3)), ("AdamW", optax.adamw(1e-3))):
        descent = Descent(objective, optimizer)

        def our_step(weights, x, target, descent=descent):
            (cost, _), weights = descent(weights, state, (x, target))
            return weights, cost

        def peer_step(training, x, target, optimizer=optimizer):
            params, optimizer_state = training
            cost, gradient = jax.value_and_grad(blocks_cost)(params, x, target)
            updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
            return (optax.apply_updates(params, updates), optimizer_state), cost

        fresh = lambda: jax.tree.map(jnp.copy, params)
        yield Row(
            f"{name} in the backward pass, {depth} blocks of width {width}",
            "jax.value_and_grad of lax.scan, then optax",
            Program(our_step, (descent.start(fresh()), *data), donate=True),
            Program(peer_step, ((fresh(), optimizer.init(params)), *data), donate=True),
        )


def reversible(depth: int = 32, width: int = 256, batch: int = 1024) -> Row:
    """Two streams, of which the backward pass rebuilds every one: against autodiff, which keeps them."""
    dense = lambda: Dense(width, bias=False, w_init=jax.nn.initializers.normal(0.02))
    branch = mb.Serial(dense(), Apply(mb.ops.relu()), dense())
    objective = mb.Objective(
        mb.Serial(mb.Reversible(branch, branch, depth), Apply(mb.ops.add())), Apply(mb.ops.squared_error())
    )
    u, v, target = (jax.random.normal(jax.random.key(i), (batch, width)) for i in range(3))
    params, state = objective.init(jax.random.key(3), ((u, v), target))

    def our_step(params, u, v, target):
        (cost, _), gradient = mb.value_and_grad(objective)(params, state, ((u, v), target))
        return gradient, cost

    def peer_cost(params, u, v, target):
        def f(x, p):
            return jax.nn.relu(x @ p[0]["w"]) @ p[2]["w"]

        def step(x, p):
            u = x[0] + f(x[1], p[0])
            return (u, x[1] + f(u, p[1])), None

        u, v = lax.scan(step, (u, v), params[0][0])[0]
        return jnp.mean(jnp.sum(jnp.square(u + v - target), -1))

    def peer_step(params, u, v, target):
        cost, gradient = jax.value_and_grad(peer_cost)(params, u, v, target)
        return gradient, cost

    args = params, u, v, target
    title = f"Reversible, {depth} blocks of width {width}, batch {batch}"
    return Row(title, "jax.value_and_grad of lax.scan", Program(our_step, args), Program(peer_step, args))


def micro_batches(depth: int = 8, width: int = 512, batch: int = 256, n: int = 8) -> Row:
    """A batch in parts with one weight product at the end: against a scan that adds up the gradients of the parts."""
    dense = lambda n: Dense(n, bias=False, w_init=jax.nn.initializers.normal(0.01))
    block = mb.Residual(mb.Serial(dense(4 * width), Apply(mb.ops.relu()), dense(width)))
    objective = mb.Objective(mb.Repeat(block, depth), Apply(mb.ops.squared_error()))
    x, target = (jax.random.normal(jax.random.key(i), (batch, width)) for i in (0, 1))
    params, state = objective.init(jax.random.key(2), (x, target))

    def our_step(params, x, target):
        (cost, _), gradient = mb.value_and_grad(mb.MicroBatches(objective, n, products="one"))(
            params, state, (x, target)
        )
        return gradient, cost

    def peer_step(params, x, target):
        def part(total, batch):
            cost, gradient = jax.value_and_grad(blocks_cost)(params, *batch)
            return jax.tree.map(lambda a, b: a + b / n, total, (gradient, cost)), None

        parts = tuple(leaf.reshape(n, -1, width) for leaf in (x, target))
        zero = jax.tree.map(jnp.zeros_like, params), jnp.zeros(())
        return lax.scan(part, zero, parts)[0]

    args = params, x, target
    title = f"MicroBatches, one product, {n} parts of {batch // n}, {depth} blocks of width {width}"
    return Row(title, "jax.value_and_grad of each part in a scan", Program(our_step, args), Program(peer_step, args))


def blocks_cost(params, x, target):
    """The plain cost of residual blocks of two dense layers."""

    def step(x, p):
        return x + jax.nn.relu(x @ p[0]["w"]) @ p[2]["w"], None

    return jnp.mean(jnp.sum(jnp.square(lax.scan(step, x, params[0])[0] - target), -1))
