"""What a device of a mesh runs: layers of its own columns, heads, classes and positions, collectives between them.

Along `model` what flows between two layers is whole, cut along a dim, copies or a partial sum (see
`ops/collectives/devices.py`); the step from what a layer gives to what the next one wants is one collective:

    dense, cut by columns    wants copies, gives a part of the columns: heads, or hidden neurons
    dense, cut by rows       wants a part of the columns, gives a partial sum; the bias is added after the sum
    embedding, cut by rows   gives a partial sum;  head, cut by classes: wants copies, gives the whole cost
    norms and what is added  whole, or a part of the positions: then gathers and reduce-scatters are in the place of
                             copies and all-reduces (sequence parallelism, Korthikanti 2022, arXiv:2205.05198)

Parameters are of the same four kinds. Along `fsdp` they are cut, and copies where a layer uses them: an all-gather on
the way forward, another on the way back, and a reduce-scatter of the gradient. A parameter of which every device of
`model` has all, and which it uses for its part of the positions, is copies too: its gradient is an all-reduce.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from manual_backprop import ops
from manual_backprop.combinators import (
    MicroBatches,
    Objective,
    Parallel,
    Precision,
    Recompute,
    Repeat,
    Residual,
    Reversible,
    Serial,
    Tied,
)
from manual_backprop.combinators.micro_batches import equal
from manual_backprop.combinators.walk import children, with_children
from manual_backprop.contract import Layer, Op
from manual_backprop.errors import InputError
from manual_backprop.layers import (
    Apply,
    Dense,
    Embedding,
    Identity,
    LayerNorm,
    LinearCrossEntropy,
    PositionalEmbedding,
    RMSNorm,
    Rotary,
)
from manual_backprop.ops.activations import ACTIVATIONS
from manual_backprop.ops.arrays import Nothing, is_float
from manual_backprop.ops.linear.dense import bias_gradient

WHOLE, COPIES, PARTIAL = "whole", "copies", "partial"
ENTRY_BY_ENTRY = {*ACTIVATIONS, "add", "swiglu", "geglu"}


class Cut(NamedTuple):
    """Cut along a dim, counted from the end."""

    dim: int
    size: int = 0  # of the whole, in blocks of columns; 0: not known
    block: int = 1  # columns
    dense: tuple | None = None  # the place in params of the layer whose columns these are


# ── from what a layer gives to what the next one wants ───────────────────────────────────────────────────────────────


def turn(before, after, axis: str = "model") -> Op | None:
    """The collective that makes of one thing another; None where nothing is to be done."""
    if isinstance(before, Cut) and isinstance(after, Cut):
        same = before.dim == after.dim
        return None if same else ops.all_to_all(axis=axis, split=after.dim, join=before.dim)
    if isinstance(before, Cut):
        return (ops.all_gather if after == COPIES else ops.gather_parts)(axis=axis, dim=before.dim)
    if isinstance(after, Cut):
        return (ops.reduce_scatter if before == PARTIAL else ops.own_part)(axis=axis, dim=after.dim)
    if before == after:
        return None
    return {WHOLE: ops.copy_to_devices, PARTIAL: ops.all_reduce}[before](axis=axis)


def _forward(op: Op | None, x):
    """Of every leaf of floating point. These ops save nothing."""
    return x if op is None else jax.tree.map(lambda leaf: op.forward(leaf)[0] if is_float(leaf) else leaf, x)


def _backward(op: Op | None, dy):
    return dy if op is None else jax.tree.map(lambda d: op.backward(Nothing(), d)[0], dy)


@dataclass(frozen=True, repr=False)
class _Turned(Layer):
    """A layer between two collectives, and its parameters after some: params are (name, ops in order)."""

    layer: Layer
    before: Op | None = None
    after: Op | None = None
    turned: tuple[tuple[str, tuple[Op, ...]], ...] = ()

    def __repr__(self):
        return repr(self.layer)

    def apply(self, params, state, x):
        return _forward(self.after, self.layer.apply(self._used(params), state, _forward(self.before, x)))

    def forward(self, params, state, x, key=None):
        y, state, residuals = self.layer.forward(self._used(params), state, _forward(self.before, x), key)
        return _forward(self.after, y), state, residuals

    def backward(self, params, residuals, dy):
        dparams, dx = self.layer.backward(self._used(params), residuals, _backward(self.after, dy))
        for name, collectives in self.turned:
            for op in reversed(collectives):
                dparams = dparams | {name: _backward(op, dparams[name])}
        return dparams, _backward(self.before, dx)

    def _used(self, params):
        for name, collectives in self.turned:
            for op in collectives:
                params = params | {name: _forward(op, params[name])}
        return params


def _turned(layer: Layer, before, after, at_end: bool = True) -> Layer:
    op = turn(before, after)
    if op is None:
        return layer
    return _Turned(layer, after=op) if at_end else _Turned(layer, before=op)


@dataclass(frozen=True, repr=False)
class _Rows(Layer):
    """A dense layer of some rows: the sum over devices, then the bias, which counts once."""

    dense: Dense
    sum: Op

    def __repr__(self):
        return repr(self.dense)

    def apply(self, params, state, x):
        return self.forward(params, state, x)[0]

    def forward(self, params, state, x, key=None):
        y, residuals = self._product.run({"w": params["w"]}, x)
        y, _ = self.sum.forward(y)
        return (y + params["b"]).astype(y.dtype) if self.dense.bias else y, state, residuals

    def backward(self, params, residuals, dy):
        db = {"b": bias_gradient(dy, params["b"])} if self.dense.bias else {}
        dparams, dx = self._product.backward({"w": params["w"]}, residuals, *self.sum.backward(Nothing(), dy))
        return dparams | db, dx

    @property
    def _product(self) -> Dense:
        return Dense(self.dense.features, bias=False)


@dataclass(frozen=True, repr=False)
class _OwnPositions(Layer):
    """A positional embedding of a device's part of the positions."""

    layer: PositionalEmbedding
    model: int

    def __repr__(self):
        return repr(self.layer)

    def apply(self, params, state, x):
        return self.forward(params, state, x)[0]

    def forward(self, params, state, x, key=None):
        y, residuals = self.layer.run({"table": self._own.forward(self._used(params, x))[0]}, x)
        return y, state, residuals

    def backward(self, params, residuals, dy):
        used = self._used(params, dy)
        dparams, dx = self.layer.backward({"table": self._own.forward(used)[0]}, residuals, dy)
        dused = self._own.backward(Nothing(), dparams["table"])[0]
        return {"table": jnp.pad(dused, ((0, len(params["table"]) - len(dused)), (0, 0)))}, dx

    def _used(self, params, x):
        return params["table"][: self.model * x.shape[-2]]

    @property
    def _own(self) -> Op:
        return ops.own_part(axis="model")


# ── the walk over the layers ─────────────────────────────────────────────────────────────────────────────────────────


def on_device(objective: Layer, specs, model: int, sequence: bool) -> tuple[Layer, dict]:
    """What a device runs; and by their places the layers of which columns are reordered, with the sizes of their kinds.

    specs: of the parameters.  model: how many devices there are along it.
    """
    walk = _Walk(model, Cut(-2) if sequence else WHOLE)
    local, kind = walk.local(objective, specs, WHOLE, ())
    return _turned(local, kind, WHOLE), walk.sections


@dataclass
class _Walk:
    """local(layer, specs, kind of x, place) → what a device runs, and the kind of its y."""

    model: int  # devices
    between: Any  # the kind of what flows between tensor-parallel layers
    sections: dict = field(default_factory=dict)  # by place: of a dense layer the sizes of its kinds of columns

    def local(self, layer: Layer, specs, kind, at: tuple) -> tuple[Layer, Any]:
        if isinstance(layer, Serial | Objective):
            return self._in_turn(layer, specs, kind, at)
        if isinstance(layer, Residual | Repeat):
            inner = self._kept(children(layer)[0], specs, at)
            return _turned(with_children(layer, lambda *_: inner), kind, self.between, at_end=False), self.between
        if isinstance(layer, Reversible | Parallel):
            # Of a Parallel no branch may take what is cut apart: another may want the columns in their order.
            x = self.between if isinstance(layer, Reversible) else Cut(kind.dim) if isinstance(kind, Cut) else kind
            found = [self.local(child, specs[i], x, (*at, i)) for i, child in enumerate(children(layer))]
            kinds = {Cut(given.dim) if isinstance(given, Cut) else given for _, given in found}
            given = self.between if isinstance(layer, Reversible) else kinds.pop() if len(kinds) == 1 else WHOLE
            new = with_children(layer, lambda _, i: _turned(*found[i], given))
            return _turned(new, kind, x, at_end=False), given
        if isinstance(layer, MicroBatches) and layer.count is equal:
            inner, given = self.local(layer.objective, specs, kind, at)
            return MicroBatches(inner, layer.n), given  # products of all parts at once would owe their collectives too
        if isinstance(layer, Recompute | Precision):
            inner, given = self.local(children(layer)[0], specs, kind, at)
            return with_children(layer, lambda *_: inner), given
        if isinstance(layer, Tied):
            inner, given = self.local(layer.layer, layer.spread(specs), kind, at)
            if any(layer.ties(place[len(at) :]) for place in self.sections):
                raise InputError(
                    "by_hand: Tied ties columns of several kinds; wants a layer that is not tied, or on_mesh"
                )
            return with_children(layer, lambda *_: inner), given
        if children(layer):
            raise _unknown(layer)
        return self._leaf(layer, specs, kind, at)

    def _in_turn(self, layer, specs, kind, at):
        found = []
        for i, child in enumerate(children(layer)):
            new, kind = self.local(child, specs[i], kind, (*at, i))
            if isinstance(layer, Objective) and not i and not _takes_copies(layer.cost):  # and the target is whole
                new, kind = _turned(new, kind, WHOLE), WHOLE
            found.append(new)
        return with_children(layer, lambda _, i: found[i]), kind

    def _kept(self, layer, specs, at):
        """A layer of which y is as x."""
        return _turned(*self.local(layer, specs, self.between, at), self.between)

    def _leaf(self, layer, specs, kind, at):
        """With the collectives for x, y and the parameters around it."""
        cut = {name: dim_of(spec, "model") for name, spec in specs.items()}
        new, wants, gives, after, uses = self._rule(layer, cut, kind, at)
        collectives = {}
        for name, dim in cut.items():
            held, over_fsdp = WHOLE if dim is None else Cut(dim), dim_of(specs[name], "fsdp")
            gathered = None if over_fsdp is None else turn(Cut(over_fsdp), COPIES, "fsdp")
            collectives[name] = tuple(filter(None, (gathered, turn(held, uses.get(name, held)))))
        before, end = turn(kind, wants), turn(gives, after)
        if before or end or any(collectives.values()):
            new = _Turned(new, before, end, tuple(collectives.items()))
        return new, after

    def _rule(self, layer, cut, kind, at):
        """What a device runs; what it wants of x, gives, and y is to be; and as what parameters are used."""
        between = self.between
        stays = kind if kind in (WHOLE, between) else between
        by_position = layer, stays, stays, stays, dict.fromkeys(cut, WHOLE if stays == WHOLE else COPIES)
        whole = layer, WHOLE, WHOLE, WHOLE, dict.fromkeys(cut, WHOLE)
        if isinstance(layer, Dense) and cut["w"] == -1:
            columns = Cut(-1, layer.features, 1, at)
            return layer, COPIES, columns, columns, {}
        if isinstance(layer, Dense) and cut["w"] == -2:
            uses = {"b": WHOLE if between == WHOLE else COPIES}
            return _Rows(layer, turn(PARTIAL, between)), Cut(-1), between, between, uses
        if isinstance(layer, Embedding) and cut["table"] == -2:
            looked_up = Apply(ops.parallel_embedding(axis="model", padding_id=layer.padding_id))
            return looked_up, WHOLE, PARTIAL, between, {}
        if isinstance(layer, Embedding):
            return layer, WHOLE, WHOLE if cut["table"] is None else Cut(-1), between, {}
        if isinstance(layer, LinearCrossEntropy) and cut["weight"] == -2 and _takes_copies(layer):
            options = dict(layer.op.options)
            # In slices of tokens; those of a schedule by classes are no measure of them.
            chunk = layer.chunk if layer.gradients == "forward" else LinearCrossEntropy.chunk
            same = ("label_smoothing", "z_loss", "ignored", "softcap", "reduction")
            head = ops.parallel_cross_entropy(axis="model", chunk=chunk, **{name: options[name] for name in same})
            return Apply(head), COPIES, WHOLE, WHOLE, {}
        if isinstance(layer, PositionalEmbedding) and stays != WHOLE:
            return _OwnPositions(layer, self.model), stays, stays, stays, {}
        if isinstance(layer, Dense) or (isinstance(layer, LayerNorm | RMSNorm) and layer.trailing_axes == 1):
            return by_position
        if isinstance(layer, Identity) or (isinstance(layer, Rotary) and kind == _heads(kind)):
            return layer, kind, kind, kind, {}
        if isinstance(layer, LinearCrossEntropy | LayerNorm | RMSNorm | PositionalEmbedding | Rotary):
            return whole
        if isinstance(layer, Apply):
            new, after = self._op(layer, kind)
            return whole if new is None else (new, kind, after, after, {})
        raise _unknown(layer)

    def _op(self, layer: Apply, kind) -> tuple[Layer | None, Any]:
        """Of an op on what is cut: what a device runs, None: it wants the whole, and how y is cut."""
        name, options = layer.op.name, dict(layer.op.options)
        attention = name in ("attention", "chunked_attention") and layer.op.arguments == ("q", "k", "v")
        if name in ENTRY_BY_ENTRY or (attention and not options.get("lse") and kind == _heads(kind)):
            return layer, kind
        if name == "flatten" and options["from_axis"] == -2 and kind == _heads(kind):
            return layer, Cut(-1)
        if name == "reshape" and options["from_axis"] == -1 and options["shape"][0] == -1 and isinstance(kind, Cut):
            block = math.prod(options["shape"][1:])
            blocks, left = divmod(kind.size, block)
            if kind.dim == -1 and kind.block == 1 and blocks and not left and blocks % self.model == 0:
                return layer, Cut(-len(options["shape"]), blocks, block, kind.dense)
        if name == "split" and isinstance(kind, Cut) and options["axis"] < 0:
            sections, axis = options["sections"], options["axis"]
            sizes = [kind.size // sections] * sections if isinstance(sections, int) else sections
            if axis != kind.dim:
                return layer, kind
            if sum(sizes) == kind.size > 0 and not any(size % self.model for size in sizes):
                self.sections[kind.dense] = [size * kind.block for size in sizes]
                return Apply(ops.split(sections=tuple(size // self.model for size in sizes), axis=axis)), Cut(axis)
        if attention or name in ("flatten", "reshape", "split") or "reduction" in options:
            return None, WHOLE
        raise _unknown(layer)


def _heads(kind):
    """The kind, where it is what attention and its neighbours want, cut along the axis of heads, else None."""
    return kind if isinstance(kind, Cut) and kind.dim == -2 else None


def _takes_copies(cost: Layer) -> bool:
    """Whether the cost may be of a device's own classes."""
    while children(cost):
        cost = children(cost)[0]
    return isinstance(cost, LinearCrossEntropy) and not cost.weights and cost.reduction != "none"


def _unknown(layer: Layer) -> InputError:
    return InputError(f"by_hand: {layer!r} is not known to be cut by hand; wants sharding.on_mesh, for any layer")


def dim_of(spec: PartitionSpec, axis: str) -> int | None:
    """The dim that an axis of the mesh cuts, counted from the end."""
    cuts = [i for i, names in enumerate(spec) if axis in ((names,) if isinstance(names, str) else names or ())]
    return cuts[0] - len(spec) if cuts else None
