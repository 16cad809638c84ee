"""What each device of a pipeline does: its layers for one micro-batch after another, when the timetable says so.

A device has a stage: some of the layers of a `Repeat`. The first has what is before the `Repeat` as well, the last what
is after it, with the cost. A tick of the timetable is a turn of a `lax.scan`: forward, backward, dw, each where the
table has it; then y goes to the stage after, dx to the one before. What a micro-batch leaves behind on its way forward
is a value, its residuals: they wait in a ring for its way back. Nothing is computed twice for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from manual_backprop.combinators import Objective, Repeat, Serial
from manual_backprop.combinators.shapes import sum_over_paths
from manual_backprop.combinators.split import settled, split
from manual_backprop.combinators.tied import get, put
from manual_backprop.contract import Layer
from manual_backprop.errors import InputError, inside
from manual_backprop.ops.arrays import wide_dtype
from manual_backprop.training.timetable import Timetable, places

# ── the objective, cut ───────────────────────────────────────────────────────────────────────────────────────────────


class Three(NamedTuple):
    """What belongs to the layers before the stages, to those of the stages, and after them: (layers, cost)."""

    before: Any
    stage: Any
    after: Any


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


@dataclass(frozen=True)
class Cut:
    """An objective before, at and after the one `Repeat` among the layers that follow one another.

    Raises InputError where there is none, or more than one.
    """

    objective: Objective

    def __post_init__(self):
        n = sum(isinstance(link.layer, Repeat) for link in _links(self.objective))
        if n != 1:
            names = ", ".join(type(link.layer).__name__ for link in _links(self.objective))
            raise InputError(f"Pipeline: there are {n or 'no'} Repeats among {names}; wants one, to cut into stages")

    @cached_property
    def middle(self) -> int:
        return next(i for i, link in enumerate(_links(self.objective)) if isinstance(link.layer, Repeat))

    @property
    def layers(self) -> Three:
        return self._three([link.layer for link in _links(self.objective)])

    def of(self, tree) -> Three:
        """Of params, or of a state."""
        return self._three([get(tree, link.at) for link in _links(self.objective)])

    def keys(self, key) -> Three:
        """That the layers get where the objective gets this one."""
        return self._three([link.key for link in _links(self.objective, key)])

    def together(self, tree, three: Three):
        """Params with what belongs to the layers put into them: `of` the other way round."""
        found = (*three.before, three.stage, *three.after[0], three.after[1])
        for link, value in zip(_links(self.objective), found, strict=True):
            tree = put(tree, link.at, value)
        return tree

    def _three(self, found: list) -> Three:
        at = self.middle
        return Three(tuple(found[:at]), found[at], (tuple(found[at + 1 : -1]), found[-1]))


class _Chain(Serial):
    """Layers one after another, be it none."""

    _least = 0

    def _at(self, i: int):
        return inside(repr(self.layers[i]))


@dataclass(frozen=True, repr=False)
class _Keyed(Layer):
    """A layer with its key beside its state: so the layers of a stage have theirs of all that `Repeat` would split."""

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


# ── the program of a device ──────────────────────────────────────────────────────────────────────────────────────────


class _Now(NamedTuple):
    """Numbers of micro-batches, -1 for none, in a tick on a stage."""

    forward: Any
    backward: Any
    weights: Any
    y: Any  # on the last stage, the one that goes forward: the cost makes dy of it
    x: Any  # that arrives from the stage before, when the tick ends
    dy: Any  # that arrives from the stage after


class _Rings(NamedTuple):
    """What waits on a stage: of micro-batch i at the place i modulo the number of places."""

    x: Any
    dy: Any  # on the last stage, y
    residuals: Any
    owed: Any  # what dw is made of, where it is made apart


class _Sums(NamedTuple):
    """Over the micro-batches, in at least float32."""

    C: Any
    dparams: Three


class Program:
    """What a device does with its part of the batch, inside `jax.shard_map`; on the mesh's axes, one of them `stage`.

    batch_axes: those of the mesh that cut the batch.  count: see `MicroBatches`.  params: of the stage, its own layers.
    """

    def __init__(
        self, cut: Cut, table: Timetable, batch_axes: tuple[str, ...], count: Callable, params: Three, state, batch, key
    ):
        self.cut, self.table, self.batch_axes = cut, table, batch_axes
        self.params, self.state = params, cut.of(state)
        self.S, self.M = table.forward.shape
        self.stage = lax.axis_index("stage")
        self.is_first, self.is_last = self.stage == 0, self.stage == self.S - 1
        self.batch = jax.tree.map(lambda leaf: leaf.reshape(self.M, -1, *leaf.shape[1:]), batch)
        self.keys = None
        if key is not None:
            keys, first = jax.random.split(key, self.M * lax.psum(1, batch_axes)), self.M * lax.axis_index(batch_axes)
            self.keys = lax.dynamic_slice_in_dim(keys, first, self.M)
        counts = jax.vmap(lambda part: jnp.asarray(count(part), float))(self.batch)
        total = lax.psum(jnp.sum(counts), batch_axes)
        self.shares = counts / jnp.where(total == 0, 1, total)

        before, repeat, (after, cost) = cut.layers
        self.before, self.after = _Chain(*map(_Keyed, before)), Objective(_Chain(*map(_Keyed, after)), _Keyed(cost))
        layers = Repeat(_Keyed(repeat.layer), repeat.n // self.S)
        self.apart = table.weights is not None
        self.layers = split(layers) if self.apart else layers

    def states(self, i) -> Three:
        """Of the layers, each beside its key for micro-batch i."""
        before, stage, (after, cost) = self.state
        keys = self.cut.keys(None if self.keys is None else self.keys[i])
        n, of_stage = self.layers.n, None
        if keys.stage is not None:
            of_stage = lax.dynamic_slice_in_dim(jax.random.split(keys.stage, n * self.S), self.stage * n, n)
        beside = lambda states, keys: tuple(zip(states, keys, strict=True))
        return Three(
            beside(before, keys.before), (stage, of_stage), (beside(after, keys.after[0]), (cost, keys.after[1]))
        )

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
        """dy of the last stage, where the way forward ends and the way back begins."""
        C, residuals = self.end(i, y)
        share = self.shares[i].astype(C.dtype)
        dafter, (dy, _) = self.after.backward(self.params.after, residuals, share)
        return dy, _Sums(sums.C + share * C, _added(sums.dparams, after=dafter))

    def backward(self, i, residuals, dy, sums: _Sums):
        """dx; what dw is made of, where it is made apart; and the sums."""
        entering, residuals = residuals
        dy, (C, dparams) = lax.cond(self.is_last, lambda: self.turn(i, dy, sums), lambda: (dy, sums))
        dstage, dx = self.layers.backward(self.params.stage, residuals, dy)
        dbefore = lambda: self.before.backward(self.params.before, entering, dx)[0]
        dparams = lax.cond(self.is_first, lambda: _added(dparams, before=dbefore()), lambda: dparams)
        if self.apart:
            return dx, dstage, _Sums(C, dparams)
        return dx, (), _Sums(C, _added(dparams, stage=dstage))

    def weights(self, owed, sums: _Sums) -> _Sums:
        dstage = settled(self.layers, self.params.stage, owed)
        return _Sums(sums.C, _added(sums.dparams, stage=dstage))

    def gradient(self) -> tuple[jax.Array, Three]:
        """C and its gradient, of all devices: that of the stage's own layers, and of the others."""
        x, _ = _zeros(self.enter, 0)
        C, _ = _zeros(self.end, 0, x)
        _, residuals = _zeros(self.forward, 0, x)
        sums = _Sums(*jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, wide_dtype(leaf.dtype)), (C, self.params)))
        _, owed, _ = _zeros(self.backward, 0, residuals, x, sums)
        forward, backward, weights = self.table
        rings = _Rings(
            _ring(x, places(forward[:-1] + 1, forward[1:])),
            _ring(x, places(np.concatenate([backward[1:] + 1, forward[-1:]]), backward)),
            _ring(residuals, places(forward, backward)),
            _ring(owed, places(backward, weights) if self.apart else 1),
        )

        def tick(carry, now: _Now):
            # Each ring is written after it was read, or before: so the compiler writes in place, and copies none.
            (xs, dys, kept, owing), sums = carry
            f, b, w = now.forward, now.backward, now.weights
            y, residuals = lax.cond(f >= 0, lambda: self.forward(f, _at(xs, f)), lambda: (x, _at(kept, f)))
            kept, dys = _put(kept, f, residuals), _arrived(dys, now.y, y)
            back = lambda: self.backward(b, _at(kept, b), _at(dys, b), sums)
            dx, owed, sums = lax.cond(b >= 0, back, lambda: (x, _at(owing, b), sums))
            owing = _put(owing, b, owed)
            if self.apart:
                sums = lax.cond(w >= 0, lambda: self.weights(_at(owing, w), sums), lambda: sums)
            xs, dys = _arrived(xs, now.x, self.sent(y, 1)), _arrived(dys, now.dy, self.sent(dx, -1))
            return (_Rings(xs, dys, kept, owing), sums), None

        (_, sums), _ = lax.scan(tick, (rings, sums), self.now())
        every = ("stage", *self.batch_axes)
        of_all = Three(every, self.batch_axes, every)
        dparams = Three(*(lax.psum(d, names) for d, names in zip(sums.dparams, of_all, strict=True)))
        dparams = jax.tree.map(lambda d, p: d.astype(p.dtype), dparams, self.params)
        return lax.psum(sums.C, every).astype(C.dtype), dparams

    def cost(self) -> jax.Array:
        """C, as for evaluation: forward alone, micro-batch i on stage s in tick s + i."""
        x, _ = _zeros(self.enter, 0)
        C, _ = _zeros(self.end, 0, x)

        def run(i, x):
            states, (inputs, target) = self.states(i), _at(self.batch, i)
            enter = lambda: self.before.apply(self.params.before, states.before, inputs)
            y = self.layers.apply(self.params.stage, states.stage, lax.cond(self.is_first, enter, lambda: x))
            end = lambda: self.after.apply(self.params.after, states.after, (y, target))
            return y, self.shares[i].astype(C.dtype) * lax.cond(self.is_last, end, lambda: C)

        def tick(x, i):
            y, C_i = lax.cond((i >= 0) & (i < self.M), lambda: run(i, x), lambda: (x, C))
            return self.sent(y, 1), C_i

        _, Cs = lax.scan(tick, x, jnp.arange(self.M + self.S - 1) - self.stage)
        return lax.psum(jnp.sum(Cs), ("stage", *self.batch_axes))

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


def _added(sums: Three, **more) -> Three:
    return sums._replace(**{name: sum_over_paths(getattr(sums, name), d) for name, d in more.items()})


def _ring(tree, n: int):
    return jax.tree.map(lambda leaf: jnp.zeros((n, *leaf.shape), leaf.dtype), tree)


def _at(tree, i):
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, i % leaf.shape[0], keepdims=False), tree)


def _put(tree, i, value):
    put = lambda leaf, new: lax.dynamic_update_index_in_dim(leaf, new, i % leaf.shape[0], 0)
    return jax.tree.map(put, tree, value)


def _arrived(tree, i, value):
    """The ring with micro-batch i put into it; as it was where there is none."""
    return _put(tree, i, jax.tree.map(partial(jnp.where, i >= 0), value, _at(tree, i)))
