"""Training steps of sequence models against flax's under jax.value_and_grad, and against plain scans."""

from __future__ import annotations

from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

import manual_backprop as mb
from benchmarks.row import Row
from manual_backprop.layers import Apply
from manual_backprop.models import recurrent
from manual_backprop.testing.timing import Program
from peers import flax_recurrent

BATCH = 32
SIZES = ((128, 256), (256, 128))  # steps, hidden
LENGTH, WIDTH = 4096, 128


def sequence() -> Iterator[Row]:
    """LSTM and GRU by flax's RNN and by a plain scan; a state-space model; the linear recurrence alone."""
    for cell in ("lstm", "gru"):
        for time, hidden in SIZES:
            x = jax.random.normal(jax.random.key(0), (BATCH, time, hidden))
            yield model_step(f"{cell}, {time} steps of {hidden} / flax RNN", cell, hidden, x, flax_apply)
            if cell == "lstm":
                yield model_step(f"{cell}, {time} steps of {hidden} / plain scan", cell, hidden, x, lstm_by_scan)
    x = jax.random.normal(jax.random.key(0), (4, LENGTH, 64))
    yield model_step(f"state_space, {LENGTH} steps of 64 / flax, associative scan", "state_space", 64, x, flax_apply)
    yield from recurrences()


def model_step(title: str, cell: str, hidden: int, x, peer_apply) -> Row:
    """One layer, or block, and a dense layer; the cost is a squared error of every step's output."""
    outputs = 7
    optimizer = optax.adam(1e-3)
    target = jax.random.normal(jax.random.key(1), (*x.shape[:-1], outputs))
    objective = mb.Objective(recurrent(cell, hidden, outputs), Apply(mb.ops.squared_error()))
    params, state = objective.init(jax.random.key(2), (x, target))
    peer = flax_recurrent.Recurrent(cell, hidden, outputs)

    def step(training, x, target):
        params, optimizer_state = training
        (cost, _), gradient = mb.value_and_grad(objective)(params, state, (x, target))
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), cost

    def peer_step(training, x, target):
        variables, optimizer_state = training
        cost = lambda variables: jnp.mean(jnp.sum(jnp.square(peer_apply(peer, variables, x) - target), -1))
        value, gradient = jax.value_and_grad(cost)(variables)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, variables)
        return (optax.apply_updates(variables, updates), optimizer_state), value

    variables = flax_recurrent.to_flax(peer, jax.tree.map(jnp.copy, params[0]))
    return Row(
        title,
        f"{title.partition(' / ')[2]} + jax.value_and_grad + optax.adam",
        Program(step, ((params, optimizer.init(params)), x, target), donate=True),
        Program(peer_step, ((variables, optimizer.init(variables)), x, target), donate=True),
    )


def flax_apply(peer: nn.Module, variables, x):
    return peer.apply(variables, x)


def lstm_by_scan(peer: flax_recurrent.Recurrent, variables, x):
    """As most people write it: the gates of a step from one product of x and one of h, in a scan over time."""
    p = variables["params"]["layer0"]
    wx = jnp.concatenate([p[f"i{gate}"]["kernel"] for gate in "ifgo"], -1)
    wh = jnp.concatenate([p[f"h{gate}"]["kernel"] for gate in "ifgo"], -1)
    b = jnp.concatenate([p[f"h{gate}"]["bias"] for gate in "ifgo"])

    def step(state, x):
        h, c = state
        i, f, g, o = jnp.split(x @ wx + h @ wh + b, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zero = jnp.zeros((len(x), peer.hidden))
    hs = jnp.swapaxes(lax.scan(step, (zero, zero), jnp.swapaxes(x, 0, 1))[1], 0, 1)
    head = variables["params"]["head"]
    return hs @ head["kernel"] + head["bias"]


def recurrences() -> Iterator[Row]:
    """hₜ = a hₜ₋₁ + xₜ alone, forward and backward, against jax.vjp of both ways to write it."""
    x, dy = (jax.random.normal(jax.random.key(i), (LENGTH, 4, WIDTH)) for i in range(2))
    a = jax.nn.sigmoid(jax.random.normal(jax.random.key(2), (WIDTH,)))
    op = mb.ops.linear_recurrence()

    def ours(x, a, dy):
        y, residuals = op.forward(x, a)
        return op.backward(residuals, dy), jnp.sum(y)

    def scanned(x, a):
        def step(h, x):
            h = a * h + x
            return h, h

        return lax.scan(step, jnp.zeros_like(x[0]), x)[1]

    def associative(x, a):
        then = lambda left, right: (left[0] * right[0], right[0] * left[1] + right[1])
        return lax.associative_scan(then, (jnp.broadcast_to(a, x.shape), x))[1]

    for name, primal in (("associative scan", associative), ("plain scan", scanned)):

        def peer(x, a, dy, primal=primal):
            y, vjp = jax.vjp(primal, x, a)
            return vjp(dy), jnp.sum(y)

        yield Row(
            f"linear recurrence, {LENGTH} steps / {name}",
            f"jax.vjp of {name}",
            Program(ours, (x, a, dy)),
            Program(peer, (x, a, dy)),
        )
