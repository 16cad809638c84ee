"""Training steps of GPT-2: flax under jax.value_and_grad with optax, unrolled, scanned, and with `jax.checkpoint`."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax

import manual_backprop as mb
from benchmarks.row import Row
from manual_backprop import ops
from manual_backprop.models import gpt as models
from manual_backprop.models.gpt import Schedule, Size
from manual_backprop.testing.timing import Program
from peers import flax_gpt

BATCH = 4
SIZES = {
    "12 layers, width 256, length 256, 512 words": Size(512, 256, 12, 256, 4),
    "6 layers, width 256, length 256, 50257 words": Size(50257, 256, 6, 256, 4),
}
CHUNKED = ops.chunked_attention(causal=True, chunk=64)
SCHEDULES = {
    "fast": lambda size: Schedule("dear", CHUNKED, chunk=256),
    "lean": lambda size: Schedule(
        "inputs", CHUNKED, *(("backward", 4096) if size.vocabulary > 4096 else ("forward", 64))
    ),
}


def gpt() -> Iterator[Row]:
    """Each schedule against each peer."""
    dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    for title, size in SIZES.items():
        ids = jax.random.randint(jax.random.key(0), (BATCH, size.length), 0, size.vocabulary)
        batch = ids, jnp.roll(ids, -1, 1)
        peers = {
            "flax, unrolled": flax_gpt.GPT(size),
            "flax, scanned": flax_gpt.GPT(size, scanned=True),
            "flax, scanned, jax.checkpoint of dots": flax_gpt.GPT(size, scanned=True, remat=dots),
        }
        for name, schedule in SCHEDULES.items():
            for peer_name, peer in peers.items():
                ours = models.gpt(size, schedule(size))
                yield row(f"{title}, {name} / {peer_name}", peer_name, size, ours, peer, batch)


def row(title: str, peer_name: str, size: Size, objective: mb.Layer, peer: flax_gpt.GPT, batch) -> Row:
    optimizer = optax.adamw(1e-3)
    params, state = objective.init(jax.random.key(0), batch)

    def our_step(training, ids, labels):
        params, optimizer_state = training
        (cost, _), gradient = mb.value_and_grad(objective)(params, state, (ids, labels))
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), cost

    def peer_step(training, ids, labels):
        variables, optimizer_state = training
        cost, gradient = jax.value_and_grad(flax_gpt.cost(peer))(variables, ids, labels)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, variables)
        return (optax.apply_updates(variables, updates), optimizer_state), cost

    variables = flax_gpt.to_flax(size, jax.tree.map(jnp.copy, params), peer.scanned)
    return Row(
        title,
        f"{peer_name} + jax.value_and_grad + optax.adamw",
        Program(our_step, ((params, optimizer.init(params)), *batch), donate=True),
        Program(peer_step, ((variables, optimizer.init(variables)), *batch), donate=True),
        models.training_flops(size, BATCH * size.length),
    )
