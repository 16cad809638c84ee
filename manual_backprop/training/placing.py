"""A training on a mesh of devices: where its state, its data and its batches are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from manual_backprop.contract import Layer
from manual_backprop.errors import InputError
from manual_backprop.training import hosts
from manual_backprop.training.config import Config
from manual_backprop.training.loop import Step, Training, given
from manual_backprop.training.pipeline import Pipeline
from manual_backprop.training.sharding import of_batch, of_mirrors, of_params, on_mesh, parts, placed, want_model
from manual_backprop.training.stream import Source, Stream


def started(step: Step, data, mesh: Mesh, params: Any = None) -> Training:
    """`step.start(data)`, or from params that there are, each array made where it belongs."""
    shapes, like = shapes_of(step, data), like_of(data)
    specs = of_params(step.objective, step.params(shapes), mesh)
    places = placed(of_mirrors(shapes, step.params(shapes), specs), mesh)
    if params is None:
        return jax.jit(lambda: step.start(like), out_shardings=places)()
    begin = lambda params: step.started(params, step.start(like).state)
    return jax.jit(begin, out_shardings=places)(jax.device_put(params, placed(specs, mesh)))


def arranged(objective: Layer, mesh: Mesh, config: Config) -> Layer:
    """The objective as a mesh computes it, with the same parameters and values."""
    want_model(mesh, config.sequence)
    if "stage" in mesh.shape:
        micro_batches = config.stages.micro_batches or 2 * mesh.shape["stage"]
        return Pipeline(objective, mesh, micro_batches, config.stages.schedule)
    return on_mesh(objective, mesh, config.sequence)


def shapes_of(step: Step, data) -> Training:
    """Of a training that starts: shapes and dtypes."""
    return jax.eval_shape(step.start, like_of(data))


def like_of(data):
    """The shapes and dtypes of what `step.draw` takes."""
    return data.like() if isinstance(data, Stream) else jax.eval_shape(lambda: data)


def fed(data, draw: Callable, batch_size: int, mesh: Mesh) -> tuple[Any, Callable]:
    """What `Step` and `train` take for data and `draw`, so that each device has the examples of its part of the batch.

    Arrays are whole on every device; of a `Source` becomes a `Stream`, of which each reads its own rows.
    """
    cut = NamedSharding(mesh, of_batch(mesh))
    if isinstance(data, Source):
        return Stream(data, batch_size, cut), given
    if mesh.size == 1:
        return on_devices(data, mesh), draw
    return on_devices(data, mesh), lambda key, data, n: lax.with_sharding_constraint(draw(key, data, n), cut)


def told(data) -> str:
    """Which data these are: what a `Source` says of itself; of arrays their sha256."""
    if isinstance(data, Source):
        return data.told
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(data):
        found.update(f"{leaf.dtype}{leaf.shape}".encode() + np.asarray(leaf).tobytes())
    return f"sha256 {found.hexdigest()[:16]}"


def on_devices(data, mesh: Mesh):
    """Arrays, whole on each device."""
    whole = NamedSharding(mesh, PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(data, whole)
    return hosts.spread(data, jax.tree.map(lambda _: whole, data))  # nothing is sent: every process has it


def want_divided(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Raises InputError for a batch that is not cut in equal parts."""
    n = parts(mesh) * accumulate
    if batch_size % n:
        by = "the mesh cuts" if accumulate == 1 else f"the mesh and --accumulate {accumulate} cut"
        raise InputError(f"--batch-size {batch_size}: {by} it in {n} parts; wants a multiple of that")
