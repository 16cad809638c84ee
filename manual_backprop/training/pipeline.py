"""Stages of a model on devices of their own, and the backward pass in an order written by hand: see `timetable`.

    mesh = mesh_of(axes("data=2,stage=4"))
    objective = Pipeline(objective, mesh, micro_batches=8)      instead of on_mesh; its apply, for evaluation
    specs = of_params(objective, params, mesh)                  each stage has its own layers alone

A backward pass that is a function of residuals can be run when a table wants it, so the table is all there is to a
schedule: the same program runs every one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from manual_backprop.combinators import Objective, Tied
from manual_backprop.combinators.ahead import GradientAhead, ahead
from manual_backprop.combinators.micro_batches import MicroBatches, equal
from manual_backprop.combinators.tied import get
from manual_backprop.combinators.walk import children, leaves
from manual_backprop.contract import Layer, want_layer
from manual_backprop.errors import InputError, choose, want_count
from manual_backprop.training.sharding import CUT_BATCH, of_batch, parts
from manual_backprop.training.stages import Cut, Program, Three
from manual_backprop.training.timetable import SCHEDULES, Timetable, timetable


@dataclass(frozen=True, repr=False)
class Pipeline(GradientAhead):
    """An objective in stages along the axis `stage` of a mesh, its batch in micro-batches: C = Σᵢ shareᵢ Cᵢ.

    objective: `Objective(model, cost)`, the model a `Repeat` or a `Serial` with one among its layers; or a `Tied` one.
    It has the same parameters, which `sharding.of_params` places, and the same gradients.
    micro_batches: in how many parts a device takes its share of the batch, which `data` and `fsdp` cut.
    schedule: a name of `timetable.SCHEDULES`.  count: what a micro-batch counts, as in `MicroBatches`.

    What is before the `Repeat` runs on the first stage alone, what is after it on the last, which they make longer.
    Their parameters are whole on every stage: on all devices arrays have the same shapes. One sum over the stages adds
    up their gradients, and those of a table that is tied to a head.
    Residuals are in a ring with as many places as the stage that needs most has micro-batches on their way.
    The gradient is there when the forward pass ends. Nothing flows back to the batch: its cotangent is None.
    A mesh with `model` is refused: what the compiler sends along it would lie in branches that not all devices take.
    Raises InputError for an objective, a mesh or a batch that cannot be cut so, and for layers that keep state.
    """

    objective: Layer
    mesh: Mesh
    micro_batches: int
    schedule: str = "1f1b"
    count: Callable = equal

    def __post_init__(self):
        want_layer("Pipeline", self.objective)
        object.__setattr__(self, "micro_batches", want_count("Pipeline: micro_batches", self.micro_batches))
        choose("Pipeline: schedule", self.schedule, SCHEDULES)
        if not callable(self.count):
            raise InputError(f"Pipeline: count is {self.count!r}; wants a function of a part of the batch")
        names = tuple(self.mesh.shape) if isinstance(self.mesh, Mesh) else (repr(self.mesh),)
        cut = {name for name in names if isinstance(self.mesh, Mesh) and self.mesh.shape[name] > 1}
        if "stage" not in names or not cut <= {"stage", *CUT_BATCH}:
            raise InputError(
                f"Pipeline: the mesh is of {', '.join(names)}; wants stage, and at most data and fsdp beside"
            )
        objective = _untied(self.objective)
        if not isinstance(objective, Objective):
            raise InputError(
                f"Pipeline: got {type(objective).__name__}; wants an Objective(model, cost), or a Tied one"
            )
        _want_average(objective, self.count)
        repeat = Cut(objective).layers.stage
        if repeat.n % self.mesh.shape["stage"]:
            raise InputError(
                f"Pipeline: {self.mesh.shape['stage']} stages do not divide the {repeat.n} layers of Repeat"
            )

    @property
    def on_one_device(self) -> MicroBatches:
        """The same cost and gradient of the same parts of the batch, each with the same key."""
        return MicroBatches(self.objective, parts(self.mesh) * self.micro_batches, self.count)

    @property
    def table(self) -> Timetable:
        return timetable(self.schedule, self.mesh.shape["stage"], self.micro_batches)

    def init(self, key, batch):
        self._want_parts(batch)
        params, state = self.objective.init(key, batch)
        self._want_no_state(state)
        return params, state

    def apply(self, params, state, batch):
        return self._on_mesh(Program.cost, PartitionSpec(), params, state, batch)

    def forward(self, params, state, batch, key=None):
        C, found = self._on_mesh(Program.gradient, (PartitionSpec(), OF_PARAMS), params, state, batch, key)
        dparams = Cut(_untied(self.objective)).together(_spread(self.objective, params), found)
        return C, state, ahead(_summed(self.objective, dparams), batch)

    def _on_mesh(self, run: Callable, specs, params, state, batch, key=None):
        """What a program gives on all devices."""
        self._want_parts(batch)
        self._want_no_state(state)
        cut = Cut(_untied(self.objective))
        batch_axes = tuple(name for name in CUT_BATCH if self.mesh.shape.get(name, 1) > 1)
        return jax.shard_map(
            lambda params, *rest: run(Program(cut, self.table, batch_axes, self.count, params, *rest)),
            mesh=self.mesh,
            in_specs=(OF_PARAMS, PartitionSpec(), of_batch(self.mesh), PartitionSpec()),
            out_specs=specs,
            check_vma=False,
        )(cut.of(_spread(self.objective, params)), state, batch, key)

    def _want_no_state(self, state) -> None:
        for leaf, at in leaves(self.objective):
            if jax.tree.leaves(get(state, at)):
                raise InputError(
                    f"Pipeline: {leaf!r} keeps state, which stages do not; wants layers without, as LayerNorm"
                )

    def _want_parts(self, batch) -> None:
        n = parts(self.mesh)
        for leaf in jax.tree.leaves(batch):
            shape = jnp.shape(leaf)
            if not shape or shape[0] % (n * self.micro_batches):
                cut = f"{n} parts of " * (n > 1) + f"{self.micro_batches} micro-batches"
                raise InputError(f"Pipeline: {cut} do not divide a batch of shape {shape} along its first axis")


OF_PARAMS = Three(PartitionSpec(), PartitionSpec("stage"), PartitionSpec())


def _want_average(objective: Layer, count: Callable) -> None:
    """Raises InputError for a cost that is not the average of those of the micro-batches."""
    cost = objective
    while children(cost):
        cost = children(cost)[-1]
    options = dict(cost.op.options) if hasattr(cost, "op") else {}
    if options.get("reduction") == "sum":
        raise InputError(f"Pipeline: {cost!r} is a sum over the examples; wants an average")
    if options.get("ignored") is not None and count is equal:
        raise InputError(f"Pipeline: {cost!r} ignores some labels; wants count: how many of a micro-batch it counts")


def _untied(objective: Layer) -> Layer:
    return _untied(objective.layer) if isinstance(objective, Tied) else objective


def _spread(objective: Layer, params):
    """The parameters of what is within `Tied`."""
    return _spread(objective.layer, objective.spread(params)) if isinstance(objective, Tied) else params


def _summed(objective: Layer, dparams):
    """The gradient of the parameters of which `_spread` made more."""
    return objective.summed(_summed(objective.layer, dparams)) if isinstance(objective, Tied) else dparams
