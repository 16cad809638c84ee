"""Stages of a model on devices of their own, in an order of the backward pass that a table gives: see `timetable`.

    mesh = mesh_of(axes("data=2,stage=4"))
    objective = Pipeline(objective, mesh, micro_batches=8)          "1f1b", or another schedule
    specs = of_params(objective, params, mesh)                      a stage has its layers alone

All devices run one program, a `lax.scan` over the ticks: each does what the table has for its stage, backward and
forward, and hands on what it made, y to the stage after, dx to the one before. Our forward pass gives residuals as a
value, so a backward pass is run when the table wants it, without a second forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from manual_backprop.combinators import Objective, Repeat, Serial, Tied
from manual_backprop.combinators.ahead import GradientAhead, ahead
from manual_backprop.combinators.micro_batches import equal
from manual_backprop.combinators.shapes import sum_over_paths
from manual_backprop.combinators.split import settled, split
from manual_backprop.combinators.tied import get, put
from manual_backprop.combinators.walk import leaves
from manual_backprop.contract import Layer, want_layer
from manual_backprop.errors import InputError, choose, inside, want_count
from manual_backprop.ops.arrays import wide_dtype
from manual_backprop.training.sharding import CUT_BATCH, of_batch, parts
from manual_backprop.training.timetable import SCHEDULES, Timetable, places, timetable

# ── the objective, cut ───────────────────────────────────────────────────────────────────────────────────────────────


class _Link(NamedTuple):
    """A layer of those that follow one another."""

    layer: Layer
    at: tuple[int, ...]  # its place in params
    key: Any


def _links(layer: Layer, key=None, at: tuple[int, ...] = ()) -> list[_Link]:
    """The layers that follow one another, the cost last, each with the key that it gets where the whole gets this."""
    if not isinstance(layer, Serial | Objective):
        return [_Link(layer, at, key)]
    whole = isinstance(layer, Objective)
    within = (layer.model, layer.cost) if whole else layer.layers
    keys = [None] * len(within) if key is None else jax.random.split(key, len(within))
    if whole:
        return [*_links(layer.model, keys[0], (*at, 0)), _Link(layer.cost, (*at, 1), keys[1])]
    return [link for i, inner in enumerate(within) for link in _links(inner, keys[i], (*at, i))]


class _Three(NamedTuple):
    """What belongs to the layers before the stages, of the stages, and after them."""

    before: Any
    stage: Any
    after: Any


class _Chain(Serial):
    """Layers one after another, be it none."""

    _least = 0

    def _at(self, i: int):
        return inside(repr(self.layers[i]))


@dataclass(frozen=True, repr=False)
class _WithKey(Layer):
    """A layer that has its key beside its state, so that the layers of a stage have theirs of all that `Repeat` made."""

    layer: Layer

    def __repr__(self):
        return repr(self.layer)

    def apply(self, params, state, x):
        return self.layer.apply(params, state[0], x)

    def forward(self, params, state, x, key=None):
        y, state, residuals = self.layer.forward(params, state[0], x, state[1])
        return y, (state, None), residuals

    def backward(self, params, residuals, dy):
        return self.layer.backward(params, residuals, dy)


@dataclass(frozen=True, repr=False)
class Pipeline(GradientAhead):
    """An objective in stages over the axis `stage` of a mesh, its batch in micro-batches: C = Σᵢ shareᵢ Cᵢ.

    objective: `Objective(model, cost)`, where the model is a `Repeat`, or a `Serial` with one among its layers; or a
    `Tied` one. It has the same parameters, placed by `sharding.of_params`, and the same gradients.
    micro_batches: in how many parts each device cuts its share of the batch, which `data` and `fsdp` cut as well.
    schedule: see the module.  count: as for `MicroBatches`.

    What is before the `Repeat` runs on the first stage alone, what is after it on the last. Their parameters are whole
    on every stage, for all devices have arrays of the same shapes; so one sum over the stages adds up their gradients,
    those of a tied table too. Residuals are in a ring of as many places as some stage needs: S for "1f1b".
    The gradient is computed in the forward pass. Layers that keep state are not supported. Each micro-batch has a key
    of its own, the one that it has under `MicroBatches`. Nothing flows back to the batch: its cotangent is None.
    Raises InputError for an objective, a mesh or a batch that cannot be cut so.
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
        if "stage" not in self.mesh.shape or not {"stage", *CUT_BATCH} >= set(self.mesh.shape):
            wants = "stage, and beside it data or fsdp, say data=2,stage=4"
            raise InputError(f"Pipeline: the mesh has the axes {', '.join(self.mesh.shape)}; wants {wants}")
        inner = _untied(self.objective)
        if not isinstance(inner, Objective):
            raise InputError(f"Pipeline: got {type(inner).__name__}; wants an Objective(model, cost), or a Tied one")
        links = _links(inner)
        places = [i for i, link in enumerate(links) if isinstance(link.layer, Repeat)]
        if len(places) != 1:
            names = ", ".join(type(link.layer).__name__ for link in links)
            raise InputError(f"Pipeline: {len(places)} of {names} are a Repeat; wants one, to cut into stages")
        if links[places[0]].layer.n % self.stages:
            n = links[places[0]].layer.n
            raise InputError(f"Pipeline: {self.stages} stages do not divide the {n} layers of the Repeat")
        object.__setattr__(self, "middle", places[0])

    @property
    def stages(self) -> int:
        return self.mesh.shape["stage"]

    @property
    def table(self) -> Timetable:
        return timetable(self.schedule, self.stages, self.micro_batches)

    def init(self, key, batch):
        return self.objective.init(key, batch)

    def apply(self, params, state, batch):
        C, _ = self._on_mesh(_Program.cost, params, state, batch, None, PartitionSpec())
        return C

    def forward(self, params, state, batch, key=None):
        specs = _Three(PartitionSpec(), PartitionSpec("stage"), PartitionSpec())
        C, found = self._on_mesh(_Program.gradient, params, state, batch, key, specs)
        dparams = _spread(self.objective, params)
        links = _links(_untied(self.objective))
        for link, d in zip(links, (*found.before, found.stage, *found.after[0], found.after[1]), strict=True):
            dparams = put(dparams, link.at, d)
        return C, state, ahead(_summed(self.objective, dparams), batch)

    def _on_mesh(self, run: Callable, params, state, batch, key, specs):
        """The cost, and what else a program gives, of all devices."""
        self._want_no_state(state)
        self._want_parts(batch)
        params = self._three(_spread(self.objective, params))
        of_params = _Three(PartitionSpec(), PartitionSpec("stage"), PartitionSpec())
        return jax.shard_map(
            lambda params, batch, key: run(_Program(self, params, self._three(state), batch, key)),
            mesh=self.mesh,
            in_specs=(of_params, of_batch(self.mesh), PartitionSpec()),
            out_specs=(PartitionSpec(), specs),
            check_vma=False,
        )(params, batch, key)

    def _three(self, tree) -> _Three:
        """Of params, or state, what belongs to the layers of each kind: after the stages, layers and the cost."""
        *found, of_cost = (get(tree, link.at) for link in _links(_untied(self.objective)))
        at = self.middle
        return _Three(tuple(found[:at]), found[at], (tuple(found[at + 1 :]), of_cost))

    def _want_no_state(self, state) -> None:
        for leaf, at in leaves(self.objective):
            if jax.tree.leaves(get(state, at)):
                raise InputError(
                    f"Pipeline: {leaf!r} keeps state, which stages cannot; wants another layer, as LayerNorm"
                )

    def _want_parts(self, batch) -> None:
        n = parts(self.mesh)
        for leaf in jax.tree.leaves(batch):
            if not jnp.shape(leaf) or leaf.shape[0] % (n * self.micro_batches):
                shape, times = jnp.shape(leaf), f"{n} × " if n > 1 else ""
                raise InputError(
                    f"Pipeline: {times}{self.micro_batches} micro-batches do not divide a batch of {shape}"
                )


def _untied(objective: Layer) -> Layer:
    return _untied(objective.layer) if isinstance(objective, Tied) else objective


def _spread(objective: Layer, params):
    """The parameters of what is within `Tied`."""
    return _spread(objective.layer, objective.spread(params)) if isinstance(objective, Tied) else params


def _summed(objective: Layer, dparams):
    """The gradient of the parameters that `_spread` took."""
    return objective.summed(_summed(objective.layer, dparams)) if isinstance(objective, Tied) else dparams


# ── the program of a device ──────────────────────────────────────────────────────────────────────────────────────────


class _Now(NamedTuple):
    """Numbers of micro-batches, -1 for none, in a tick on a stage."""

    forward: Any
    backward: Any
    weights: Any
    y: Any  # on the last stage, the one that goes forward: dy is made of it
    x: Any  # that arrives from the stage before, when the tick ends
    dy: Any  # that arrives from the stage after


class _Rings(NamedTuple):
    """What waits on a stage: of micro-batch i at the place i modulo the number of places."""

    x: Any
    dy: Any
    residuals: Any
    owed: Any  # what dw is made of, where it is made apart


class _Sums(NamedTuple):
    """Over the micro-batches, in at least float32."""

    C: Any
    dparams: _Three


class _Program:
    """What a device does, by the numbers of micro-batches."""

    def __init__(self, of: Pipeline, params: _Three, state: _Three, batch, key):
        self.of, self.params, self.state = of, params, state
        self.S, self.M, self.table = of.stages, of.micro_batches, of.table
        self.stage = lax.axis_index("stage")
        self.is_first, self.is_last = self.stage == 0, self.stage == self.S - 1
        self.batch = jax.tree.map(lambda leaf: leaf.reshape(self.M, -1, *leaf.shape[1:]), batch)
        self.batch_axes = tuple(name for name in CUT_BATCH if name in of.mesh.shape)
        if key is not None and parts(of.mesh) > 1:
            key = jax.random.fold_in(key, lax.axis_index(self.batch_axes))
        self.keys = None if key is None else jax.random.split(key, self.M)
        counts = jax.vmap(lambda part: jnp.asarray(of.count(part), float))(self.batch)
        total = lax.psum(jnp.sum(counts), self.batch_axes)
        self.shares = counts / jnp.where(total == 0, 1, total)

        links, at = [_WithKey(link.layer) for link in _links(_untied(of.objective))], of.middle
        repeat = links[at].layer
        self.before = _Chain(*links[:at])
        self.layers = Repeat(_WithKey(repeat.layer), repeat.n // self.S)
        self.after = Objective(_Chain(*links[at + 1 : -1]), links[-1])
        self.apart = self.table.weights is not None
        if self.apart:
            self.layers = split(self.layers)

    def states(self, i) -> _Three:
        """With the keys of micro-batch i."""
        links, at, n = (
            _links(_untied(self.of.objective), None if self.keys is None else self.keys[i]),
            self.of.middle,
            0,
        )
        keys = [link.key for link in links]
        if self.keys is not None:
            n = self.layers.n
            keys[at] = lax.dynamic_slice_in_dim(jax.random.split(keys[at], n * self.S), self.stage * n, n)
        before, stage, (after, cost) = self.state
        pairs = lambda states, keys: tuple(zip(states, keys, strict=True))
        after = pairs(after, keys[at + 1 : -1]), (cost, keys[-1])
        return _Three(pairs(before, keys[:at]), (stage, keys[at]), after)

    def enter(self, i):
        """x of the first stage, and the residuals of what is before it."""
        x, _, residuals = self.before.forward(self.params.before, self.states(i).before, _at(self.batch, i)[0])
        return x, residuals

    def forward(self, i, x):
        """y, and the residuals: on other stages than the first, zeros for those of what is before it."""
        _, nothing = _zeros(self.enter, 0)
        x, entering = lax.cond(self.is_first, lambda: self.enter(i), lambda: (x, nothing))
        y, _, residuals = self.layers.forward(self.params.stage, self.states(i).stage, x)
        return y, (entering, residuals)

    def end(self, i, y):
        """C, and the residuals of what is after the stages."""
        C, _, residuals = self.after.forward(self.params.after, self.states(i).after, (y, _at(self.batch, i)[1]))
        return C, residuals

    def turn(self, i, y, sums: _Sums):
        """dy on the last stage, where the chain ends and begins, with C and the gradient of what is after the stages."""
        C, residuals = self.end(i, y)
        share = self.shares[i].astype(C.dtype)
        dafter, (dy, _) = self.after.backward(self.params.after, residuals, share)
        return dy, _Sums(sums.C + share * C, _added(sums.dparams, after=dafter))

    def backward(self, i, residuals, dy, sums: _Sums):
        """dx, what dw is made of where it is made apart, and the sums."""
        dy, sums = lax.cond(self.is_last, lambda: self.turn(i, dy, sums), lambda: (dy, sums))
        made, dx = self.layers.backward(self.params.stage, residuals[1], dy)
        enter = lambda: self.before.backward(self.params.before, residuals[0], dx)[0]
        before = lambda: _added(sums.dparams, before=enter())
        sums = _Sums(sums.C, lax.cond(self.is_first, before, lambda: sums.dparams))
        if self.apart:
            return dx, made, sums
        return dx, (), _Sums(sums.C, _added(sums.dparams, stage=made))

    def weights(self, owed, sums: _Sums) -> _Sums:
        dw = settled(self.layers, self.params.stage, owed)
        return _Sums(sums.C, _added(sums.dparams, stage=dw))

    def gradient(self):
        """C, and its gradient: `_Three`."""
        x, _ = _zeros(self.enter, 0)
        _, residuals = _zeros(self.forward, 0, x)
        C, _ = _zeros(self.end, 0, x)
        wide = lambda leaf: jnp.zeros(leaf.shape, wide_dtype(leaf.dtype))
        sums = _Sums(*jax.tree.map(wide, (C, self.params)))
        _, owed, _ = _zeros(self.backward, 0, residuals, x, sums)
        forward, backward, weights = self.table
        rings = _Rings(
            _ring(x, places(forward[:-1] + 1, forward[1:]) if self.S > 1 else 1),
            _ring(x, places(np.concatenate([backward[1:] + 1, forward[-1:]]), backward)),
            _ring(residuals, places(forward, backward)),
            _ring(owed, places(backward, weights) if self.apart else 1),
        )

        def tick(carry, now: _Now):
            """Forward, backward, dw: in an order in which the compiler can write into the rings, and not into copies."""
            rings, sums = carry
            f, b, w = now.forward, now.backward, now.weights
            y, residuals = lax.cond(
                f >= 0, lambda: self.forward(f, _at(rings.x, f)), lambda: (x, _at(rings.residuals, f))
            )
            rings = rings._replace(residuals=_put(rings.residuals, f, residuals), dy=_arrived(rings.dy, now.y, y))
            dx, owed, sums = lax.cond(
                b >= 0,
                lambda: self.backward(b, _at(rings.residuals, b), _at(rings.dy, b), sums),
                lambda: (x, _at(rings.owed, b), sums),
            )
            rings = rings._replace(owed=_put(rings.owed, b, owed))
            if self.apart:
                sums = lax.cond(w >= 0, lambda: self.weights(_at(rings.owed, w), sums), lambda: sums)
            x_ring, dy_ring = _arrived(rings.x, now.x, self.sent(y, 1)), _arrived(rings.dy, now.dy, self.sent(dx, -1))
            return (rings._replace(x=x_ring, dy=dy_ring), sums), None

        (_, sums), _ = lax.scan(tick, (rings, sums), self.now())
        every = ("stage", *self.batch_axes)
        axes = _Three(every, self.batch_axes, every)
        dparams = _Three(*(lax.psum(d, names) for d, names in zip(sums.dparams, axes, strict=True)))
        dparams = jax.tree.map(lambda d, p: d.astype(p.dtype), dparams, self.params)
        return lax.psum(sums.C, every).astype(C.dtype), dparams

    def cost(self):
        """C, as for evaluation: forward alone, micro-batch i on stage s in tick s + i."""
        now = (jnp.arange(self.M + self.S - 1) - self.stage).astype(jnp.int32)
        x, _ = _zeros(self.enter, 0)
        C, _ = _zeros(self.end, 0, x)

        def run(i, x):
            states, (inputs, target) = self.states(i), _at(self.batch, i)
            enter = lambda: self.before.apply(self.params.before, states.before, inputs)
            x = lax.cond(self.is_first, enter, lambda: x)
            y = self.layers.apply(self.params.stage, states.stage, x)
            end = lambda: self.after.apply(self.params.after, states.after, (y, target))
            return y, self.shares[i].astype(C.dtype) * lax.cond(self.is_last, end, lambda: C)

        def tick(x, i):
            y, C_i = lax.cond((i >= 0) & (i < self.M), lambda: run(i, x), lambda: (x, C))
            return self.sent(y, 1), C_i

        _, Cs = lax.scan(tick, x, now)
        return lax.psum(jnp.sum(Cs), ("stage", *self.batch_axes)), ()

    def now(self) -> _Now:
        """On this stage, [ticks] each."""
        forward, backward, weights = (None if when is None else self.table.at_work(when) for when in self.table)
        none = np.full((self.table.ticks, 1), -1, np.int32)
        y = np.concatenate([np.repeat(none, self.S - 1, 1), forward[:, -1:]], 1)
        x = np.concatenate([none, forward[:, :-1]], 1)
        dy = np.concatenate([backward[:, 1:], none], 1)
        now = _Now(forward, backward, weights, y, x, dy)
        return jax.tree.map(lambda i: jnp.asarray(i)[:, self.stage], now)

    def sent(self, tree, to: int):
        """What the stage before has sent, to = 1, or the one after, to = -1; zeros where there is none."""
        pairs = [(s, s + to) for s in range(self.S) if 0 <= s + to < self.S]
        return jax.tree.map(lambda leaf: lax.ppermute(leaf, "stage", pairs), tree)


def _zeros(function: Callable, *args):
    """As the function of these would give."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(function, *args))


def _added(sums: _Three, **more) -> _Three:
    return sums._replace(**{name: sum_over_paths(getattr(sums, name), d) for name, d in more.items()})


def _ring(tree, places: int):
    return jax.tree.map(lambda leaf: jnp.zeros((places, *leaf.shape), leaf.dtype), tree)


def _at(tree, i):
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, i % leaf.shape[0], keepdims=False), tree)


def _put(tree, i, value):
    put = lambda leaf, new: lax.dynamic_update_index_in_dim(leaf, new, i % leaf.shape[0], 0)
    return jax.tree.map(put, tree, value)


def _arrived(tree, i, value):
    """The ring with micro-batch i put into it; as it was where there is none."""
    return _put(tree, i, jax.tree.map(partial(jnp.where, i >= 0), value, _at(tree, i)))
