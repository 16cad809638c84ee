"""Equal blocks under a scan against autodiff of the same scan."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

import manual_backprop as mb
from benchmarks.row import Row
from manual_backprop.layers import Apply, Dense, LayerNorm
from manual_backprop.testing.timing import Program


def repeat() -> Iterator[Row]:
    """Twelve residual blocks of layer norm, dense and gelu: jax.value_and_grad of the same lax.scan."""
    width, batch, n = 256, 512, 12
    block = mb.Residual(mb.Serial(LayerNorm(), Dense(width), Apply(mb.ops.gelu())))
    objective = mb.Objective(mb.Repeat(block, n), Apply(mb.ops.squared_error()))
    x = jax.random.normal(jax.random.key(0), (batch, width))
    target = jnp.zeros_like(x)
    params, state = objective.init(jax.random.key(1), (x, target))

    def our_step(params, x, target):
        (value, _), gradient = mb.value_and_grad(objective)(params, state, (x, target))
        return gradient, value

    def peer_cost(params, x, target):
        def step(x, p):
            norm, dense, _ = p
            mean = jnp.mean(x, -1, keepdims=True)
            variance = jnp.var(x, -1, keepdims=True)
            h = (x - mean) * lax.rsqrt(variance + 1e-5) * norm["scale"] + norm["bias"]
            return x + jax.nn.gelu(h @ dense["w"] + dense["b"]), None

        y, _ = lax.scan(step, x, params[0])
        return jnp.mean(jnp.sum(jnp.square(y - target), -1))

    def peer_step(params, x, target):
        value, gradient = jax.value_and_grad(peer_cost)(params, x, target)
        return gradient, value

    args = (params, x, target)
    yield Row(
        f"Repeat of {n} blocks, width {width}, batch {batch}",
        "jax.value_and_grad of lax.scan",
        Program(our_step, args),
        Program(peer_step, args),
    )
