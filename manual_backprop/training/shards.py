"""The training step on a mesh with every collective written by hand, under `jax.shard_map`.

`sharding.on_mesh` leaves it to the compiler to find what has to be sent. Here each device runs layers on what it holds,
and ops of `ops.collectives` stand between them, whose backward passes are ours too (`local.py`). It is cut alike:

    objective = by_hand(objective, mesh)            before init: the order of its parameters' columns is its own
    specs = of_params(objective, params, mesh)      as for on_mesh, and so on

Along `data`, gradients are summed at the end, once, each cost weighted by its device's share of what counts.

Queries, keys and values are columns of one matrix, and a device is to have its heads of each; so with a gate and its
value. So those columns are in another order, each device's side by side: `init` gives them so, `arranged` takes
parameters of the objective to it, and `restored` takes them back, for weights that are to be read elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from manual_backprop import ops
from manual_backprop.combinators import MicroBatches
from manual_backprop.combinators.ahead import GradientAhead, ahead
from manual_backprop.combinators.tied import get, put
from manual_backprop.combinators.walk import children
from manual_backprop.contract import Layer, want_layer
from manual_backprop.errors import InputError
from manual_backprop.ops.costs.labels import signed
from manual_backprop.training.local import dim_of, on_device
from manual_backprop.training.sharding import CUT_BATCH, of_batch, of_params, parts, want_model


def by_hand(objective: Layer, mesh: Mesh, sequence: bool = False) -> Layer:
    """The same objective with its collectives by hand, its batch and parameters cut as of_batch and of_params say.

    sequence: between tensor-parallel layers, activations [..., positions, features] are cut along the positions.
    Raises InputError for a layer that it does not know how to cut, naming it, and, when it runs, for a batch or
    positions that the devices do not divide.
    """
    want_layer("by_hand", objective)
    want_model(mesh, sequence)
    if mesh.shape.get("stage", 1) > 1:
        raise InputError(
            f"by_hand: the mesh is {dict(mesh.shape)}; stages are pipeline.Pipeline's; wants data, fsdp, model"
        )
    if mesh.size == 1:
        return objective
    _share(objective, mesh)  # a cost that does not fit is told here
    return ByHand(objective, mesh, sequence)


@dataclass(frozen=True, repr=False)
class ByHand(GradientAhead):
    """What `by_hand` gives: a layer of whole, placed arrays. Forward and backward run in one shard_map."""

    objective: Layer
    mesh: Mesh
    sequence: bool = False

    def init(self, key, batch):
        params, state = self.objective.init(key, batch)
        if jax.tree.leaves(state):
            raise InputError("by_hand: the objective has a state, of the whole batch; wants one without, or on_mesh")
        return self.arranged(params), state

    def apply(self, params, state, batch):
        local, specs, _ = self._local(params)

        def run(params, batch):
            C = local.apply(params, state, batch)
            return self._all(self._share(batch, C) * C)

        return self._mapped(run, specs, batch, PartitionSpec())(params, batch)

    def forward(self, params, state, batch, key=None):
        local, specs, _ = self._local(params)

        def run(params, batch):
            C, _, residuals = local.forward(params, state, batch)
            share = self._share(batch, C)
            dparams, _ = local.backward(params, residuals, share)
            return self._all(share * C), jax.tree.map(self._summed, dparams, specs)

        C, dparams = self._mapped(run, specs, batch, (PartitionSpec(), specs))(params, batch)
        return C, state, ahead(dparams, batch)

    def arranged(self, params):
        """Parameters of the objective, their columns in the order that devices want."""
        return self._reordered(params, lambda order: order)

    def restored(self, params):
        """And back, of parameters or of their gradient."""
        return self._reordered(params, np.argsort)

    def _reordered(self, params, change: Callable):
        for at, sections in self._local(params)[2].items():
            order = change(_side_by_side(sections, self.mesh.shape["model"]))
            dense = {name: jnp.take(leaf, order, axis=-1) for name, leaf in get(params, at).items()}
            params = put(params, at, dense)
        return params

    def _local(self, params):
        """The objective of a device, the specs of the parameters, and of which layers the columns are reordered."""
        specs = of_params(self.objective, params, self.mesh)
        local, sections = on_device(self.objective, specs, self.mesh.shape.get("model", 1), self.sequence)
        return local, specs, sections

    def _mapped(self, run: Callable, specs, batch, out_specs):
        n, cut = parts(self.mesh), of_batch(self.mesh)
        for leaf in jax.tree.leaves(batch):
            if not leaf.ndim or leaf.shape[0] % n:
                raise InputError(f"by_hand: {n} devices do not divide a batch of shape {leaf.shape}")
        in_specs = specs, jax.tree.map(lambda leaf: cut, batch)
        # Without JAX's types of what is whole: behind the barrier of `Recompute` all is said to differ by device.
        return jax.shard_map(run, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def _share(self, batch, C):
        return _share(self.objective, self.mesh)(batch).astype(C.dtype)

    def _all(self, C):
        return self._summed(C, PartitionSpec())

    def _summed(self, d, spec):
        """Over the devices that have other examples, and a gradient of the same entries."""
        over = tuple(axis for axis in CUT_BATCH if axis in self.mesh.shape and dim_of(spec, axis) is None)
        return ops.all_reduce(axis=over).forward(d)[0] if over else d


def _side_by_side(sections: list[int], n: int) -> np.ndarray:
    """The order of columns that gives each of n devices, one after another, its share of every section."""
    of_each = np.split(np.arange(sum(sections)), np.cumsum(sections)[:-1])
    return np.concatenate([np.concatenate([np.split(columns, n)[d] for columns in of_each]) for d in range(n)])


def _share(objective: Layer, mesh: Mesh) -> Callable:
    """What the cost of a device's examples counts for, a function of its batch."""
    cost, parted = objective, False
    while children(cost):
        cost, parted = children(cost)[-1], parted or isinstance(cost, MicroBatches)
    options = dict(cost.op.options) if hasattr(cost, "op") else {}
    reduction, ignored = options.get("reduction"), options.get("ignored")
    weighted = options.get("weights") or options.get("class_weights")
    if reduction not in ("mean", "sum") or weighted or cost.op.name == "info_nce" or (parted and ignored is not None):
        raise InputError(f"by_hand: {cost!r} is not an average over examples that count alike; wants sharding.on_mesh")
    if reduction == "sum" or ignored is None:
        return lambda batch: jnp.asarray(1.0 if reduction == "sum" else 1 / parts(mesh))
    axes = tuple(axis for axis in CUT_BATCH if axis in mesh.shape)

    def share(batch):
        count = jnp.sum(signed(batch[1]) != ignored, dtype=float)
        return count / jnp.maximum(ops.all_reduce(axis=axes).forward(count)[0], 1) if axes else jnp.ones_like(count)

    return share
