"""A training on a mesh of devices: where its state, its data and its batches are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from manual_backprop.errors import InputError
from manual_backprop.training.loop import Step, Training
from manual_backprop.training.sharding import of_batch, of_mirrors, of_params, parts, placed
from manual_backprop.training.stream import Stream


def started(step: Step, data, mesh: Mesh, params: Any = None) -> Training:
    """`step.start(data)`, or from params that there are, each array made where it belongs."""
    like = data.like() if isinstance(data, Stream) else data
    shapes = jax.eval_shape(step.start, like)
    specs = of_params(step.objective, step.params(shapes), mesh)
    places = placed(of_mirrors(shapes, step.params(shapes), specs), mesh)
    if params is None:
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), like)
        return jax.jit(lambda: step.start(like), out_shardings=places)()
    begin = lambda params: step.started(params, step.start(like).state)
    return jax.jit(begin, out_shardings=places)(jax.device_put(params, placed(specs, mesh)))


def on_devices(data, mesh: Mesh):
    """Arrays as they are on each device; of a stream every device gets its own rows."""
    return data if isinstance(data, Stream) else jax.device_put(data, NamedSharding(mesh, PartitionSpec()))


def drawn_on(mesh: Mesh, draw: Callable) -> Callable:
    """`draw`, each device its own examples."""
    if mesh.size == 1:
        return draw
    cut = NamedSharding(mesh, of_batch(mesh))
    return lambda key, data, n: lax.with_sharding_constraint(draw(key, data, n), cut)


def want_divided(batch_size: int, mesh: Mesh) -> None:
    """Raises InputError for a batch that the mesh does not cut in equal parts."""
    if batch_size % parts(mesh):
        raise InputError(
            f"--batch-size {batch_size}: the mesh cuts it in {parts(mesh)} parts; wants a multiple of that"
        )
