"""Training steps of GPT-2 against PyTorch's, and flax's under jax.value_and_grad: scanned, unrolled, rematerialised."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

import manual_backprop as mb
from benchmarks.row import Row, TorchTraining
from manual_backprop import ops
from manual_backprop.models import gpt as models
from manual_backprop.models.gpt import Schedule, Size
from manual_backprop.testing.timing import Program
from manual_backprop.training.descent import Descent
from peers import flax_gpt

BATCH = 4
SIZES = {
    "12 layers, width 256, length 256, 512 words": Size(512, 256, 12, 256, 4),
    "6 layers, width 256, length 256, 50257 words": Size(50257, 256, 6, 256, 4),
}
CHUNKED = ops.chunked_attention(causal=True, chunk=64)
LEAN = lambda size: Schedule("inputs", CHUNKED, *(("backward", 1024) if size.vocabulary > 4096 else ("forward", 64)))
SCHEDULES = {
    "fast": lambda size: Schedule("dear", CHUNKED, chunk=256),
    "lean": LEAN,
    "leanest": LEAN,  # and each layer is updated in the backward pass
}


def gpt() -> Iterator[Row]:
    """The fast schedule against each peer, the lean ones against the model that most people write."""
    dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    for title, size in SIZES.items():
        ids = jax.random.randint(jax.random.key(0), (BATCH, size.length), 0, size.vocabulary)
        batch = ids, jnp.roll(ids, -1, 1)
        peers = {
            "flax, scanned": flax_gpt.GPT(size, scanned=True),
            "flax, unrolled": flax_gpt.GPT(size),
            "flax, scanned, jax.checkpoint of dots": flax_gpt.GPT(size, scanned=True, remat=dots),
        }
        for name, schedule in SCHEDULES.items():
            side = updating_in_backward if name == "leanest" else stepping
            ours, params = side(models.gpt(size, schedule(size)), batch)
            for peer_name in peers if name == "fast" else ["flax, unrolled"]:
                yield row(f"{title}, {name} / {peer_name}", peer_name, size, ours, params, peers[peer_name], batch)
            if name == "fast":
                for peer_name, compiled in (("PyTorch, eager", False), ("PyTorch, torch.compile", True)):
                    yield torch_row(f"{title}, {name} / {peer_name}", peer_name, size, ours, params, compiled, batch)


def row(title: str, peer_name: str, size: Size, ours: Program, params, peer: flax_gpt.GPT, batch) -> Row:
    optimizer = optax.adamw(1e-3)

    def peer_step(training, ids, labels):
        variables, optimizer_state = training
        cost, gradient = jax.value_and_grad(flax_gpt.cost(peer))(variables, ids, labels)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, variables)
        return (optax.apply_updates(variables, updates), optimizer_state), cost

    variables = flax_gpt.to_flax(size, jax.tree.map(jnp.copy, params), peer.scanned)
    return Row(
        title,
        f"{peer_name} + jax.value_and_grad + optax.adamw",
        ours,
        Program(peer_step, ((variables, optimizer.init(variables)), *batch), donate=True),
        models.training_flops(size, BATCH * size.length),
    )


def torch_row(title: str, peer_name: str, size: Size, ours: Program, params, compiled: bool, batch) -> Row:
    start = {"ids": batch[0], "labels": batch[1], "heads": size.heads}
    for path, leaf in jax.tree.leaves_with_path(flax_gpt.to_flax(size, params)["params"]):
        start[jax.tree_util.keystr(path, simple=True, separator=".")] = leaf
    peer = TorchTraining({name: np.asarray(array) for name, array in start.items()}, compiled)
    return Row(title, f"{peer_name} + AdamW", ours, peer, models.training_flops(size, BATCH * size.length))


def updating_in_backward(objective: mb.Layer, batch) -> tuple[Program, tuple]:
    """As `stepping`, by `Descent`."""
    descent = Descent(objective, optax.adamw(1e-3))
    params, state = objective.init(jax.random.key(0), batch)

    def step(weights, ids, labels):
        (cost, _), weights = descent(weights, state, (ids, labels))
        return weights, cost

    return Program(step, (descent.start(params), *batch), donate=True), params


def stepping(objective: mb.Layer, batch) -> tuple[Program, tuple]:
    """(A training step, the parameters that it starts with.)"""
    optimizer = optax.adamw(1e-3)
    params, state = objective.init(jax.random.key(0), batch)

    def step(training, ids, labels):
        params, optimizer_state = training
        (cost, _), gradient = mb.value_and_grad(objective)(params, state, (ids, labels))
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), cost

    return Program(step, ((params, optimizer.init(params)), *batch), donate=True), params
