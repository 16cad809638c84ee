"""What lives where on a mesh of devices, by a walk over the layers.

An axis of the mesh has one of four names:

    data     the batch is cut; parameters are whole on each device
    fsdp     the batch is cut, and so are parameters and what the optimiser remembers of them, each along its largest
             axis that the mesh divides (ZeRO, Rajbhandari 2020, arXiv:1910.02054); gathered layer by layer
    model    matrices are cut: dense layers that follow one another in turn by columns and by rows, so that what is
             between them is cut, and one sum ends the two (Megatron-LM, Shoeybi 2019, arXiv:1909.08053); the tables of
             embeddings and heads by vocabulary, or by features where the mesh does not divide that
    stage    the axis along which `Repeat` stacks is cut: each stage has layers of its own, for `pipeline.Pipeline`

What the mesh does not divide stays whole; so does the axis along which `Repeat` stacks, but for stages. The compiler
finds out what has to be sent; the values are the same whatever is cut.

    mesh = mesh_of(axes("data=4,model=2"))
    objective = on_mesh(objective, mesh)            before Descent is made of it
    specs = of_params(objective, params, mesh)      of_mirrors(state, params, specs) for the optimiser's state
    jax.device_put(params, placed(specs, mesh))

Where columns of several kinds are fused in one matrix, as queries, keys and values are, a device holds neighbouring
columns, not its share of each kind: the compiler then sends them to where the split wants them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from manual_backprop.combinators import Parallel, Repeat, Residual, Reversible
from manual_backprop.combinators.deferred import is_owed
from manual_backprop.combinators.walk import children, is_several, map_leaves
from manual_backprop.contract import Layer
from manual_backprop.errors import InputError, choose
from manual_backprop.layers import Dense, Embedding, LinearCrossEntropy
from manual_backprop.ops.costs.labels import signed
from manual_backprop.training.descent import Weights

NAMES = ("data", "fsdp", "model", "stage")
CUT_BATCH = ("data", "fsdp")
MOST = 1024  # devices; each that is simulated has threads of its own

# Of a layer's parameters, the axes that `model` may cut: the first that it divides.
COLUMNS, ROWS = (("w", (-1,)), ("b", (-1,))), (("w", (-2,)),)
TABLE = (("table", (-2, -1)), ("weight", (-2, -1)))


# ── the mesh ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def axes(text: str) -> dict[str, int]:
    """{"data": 4, "model": 2} for 'data=4,model=2'. Raises InputError."""
    found = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        if not name or not (number.isascii() and number.isdecimal()):
            raise InputError(f"mesh {text!r} is not understood; wants, say, data=4,model=2")
        choose("mesh: axis", name, dict.fromkeys(NAMES))
        if name in found:
            raise InputError(f"mesh {text!r} has the axis {name} twice; wants each once, say data=4,model=2")
        found[name] = int(number)
        if not 1 <= math.prod(found.values()) <= MOST:
            raise InputError(f"mesh {text!r} has {math.prod(found.values())} devices; wants 1 to {MOST}")
    return found


def mesh_of(axes: dict[str, int], platform: str | None = None) -> Mesh:
    """Of the first devices that JAX has, or of the host's where these are too few: they can be simulated.

    platform: cpu, gpu or tpu, whose devices alone are meant.

    Raises InputError where there are not so many of either.
    """
    n = math.prod(axes.values())
    devices = jax.devices(platform)
    if len(devices) < n and platform is None:
        with suppress(RuntimeError):  # JAX may have been told to do without the host
            devices = jax.devices("cpu")
    if len(devices) < n:
        raise InputError(
            f"mesh: {n} devices are wanted, there are {len(devices)}; to simulate them, before JAX is first used: "
            f'jax.config.update("jax_num_cpu_devices", {n})'
        )
    grid = np.array(devices[:n]).reshape(tuple(axes.values()))
    return Mesh(grid, tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def parts(mesh: Mesh) -> int:
    """In how many parts the batch is cut."""
    return math.prod(mesh.shape.get(name, 1) for name in CUT_BATCH)


# ── what lives where: a PartitionSpec for each array ─────────────────────────────────────────────────────────────────


def of_batch(mesh: Mesh) -> PartitionSpec:
    """Of each array of a batch: the examples are along its first axis."""
    cut = tuple(name for name in CUT_BATCH if name in mesh.shape)
    return PartitionSpec(cut) if cut else PartitionSpec()


def of_params(objective: Layer, params, mesh: Mesh):
    """Of each of a layer's parameters: arrays, or shapes and dtypes."""
    places, _ = _flow(objective, False)

    def one(path, leaf):
        steps = tuple(map(_name, path))
        place = next((places[steps[:n]] for n in range(len(steps) + 1) if steps[:n] in places), _Place())
        return _spec(leaf.shape, dict(place.choices).get(steps[-1], ()), place.stacked, mesh.shape)

    return jax.tree_util.tree_map_with_path(one, params)


def of_mirrors(tree, params, specs):
    """Of each leaf of what is made of parameters: what an optimiser remembers of them, or `Descent.start`.

    A leaf takes the spec of the parameter of its own shape whose path begins and ends most as its own does. A leaf of a
    shape that no parameter has is whole.
    """
    with_path = jax.tree_util.tree_flatten_with_path(params)[0]
    known = [(path, leaf.shape, spec) for (path, leaf), spec in zip(with_path, jax.tree.leaves(specs), strict=True)]

    def one(path, leaf):
        alike = [(_alike(path, other), spec) for other, shape, spec in known if shape == leaf.shape]
        return max(alike, key=lambda found: found[0])[1] if alike else PartitionSpec()

    return jax.tree_util.tree_map_with_path(one, tree)


def placed(specs, mesh: Mesh):
    """The specs as shardings: for `jax.device_put`, and for jit's in_shardings and out_shardings."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


class _Place(NamedTuple):
    """Of a layer that is no combinator."""

    choices: tuple = ()  # which axes of its parameters `model` may cut
    cut_x: bool = False  # whether `model` cuts the last axis of x
    cut_y: bool = False
    stacked: int = 0  # how many axes of the parameters are those of `Repeat`s


def _flow(layer: Layer, cut: bool, stacked: int = 0, at: tuple[int, ...] = ()) -> tuple[dict[tuple, _Place], bool]:
    """The layers by their places in params, and whether the last axis of y is cut, given that of x."""
    inner, several = children(layer), is_several(layer)
    if not inner:
        choices, after = (), cut
        if isinstance(layer, Dense):
            choices, after = (ROWS, False) if cut else (COLUMNS, True)
        elif isinstance(layer, Embedding | LinearCrossEntropy):
            choices, after = TABLE, False
        return {at: _Place(choices, cut, after, stacked)}, after
    side_by_side = isinstance(layer, Parallel | Reversible)
    stacked += isinstance(layer, Repeat | Reversible)
    places, cuts = {}, [cut]
    for i, child in enumerate(inner):
        found, after = _flow(child, cut if side_by_side else cuts[-1], stacked, (*at, i) if several else at)
        places |= found
        cuts.append(after)
    if isinstance(layer, Residual | Repeat | Reversible):  # y is as x
        return places, cut
    return places, any(cuts[1:]) if side_by_side else cuts[-1]


def _spec(shape: tuple[int, ...], choices: tuple[int, ...], stacked: int, sizes: Mapping[str, int]) -> PartitionSpec:
    names, left = [()] * len(shape), list(shape)
    by_name = {"model": [axis % len(shape) for axis in choices], "fsdp": range(stacked, len(shape))}
    for name, axes in (by_name | {"stage": range(min(stacked, 1))}).items():
        n = sizes.get(name, 1)
        fits = [axis for axis in axes if n > 1 and left[axis] % n == 0]
        if fits:
            axis = fits[0] if name == "model" else max(fits, key=left.__getitem__)
            names[axis] += (name,)
            left[axis] //= n
    return PartitionSpec(*(name or None for name in names))


def _name(key):
    """A step of a path in a tree, as it is in `Tied`'s places."""
    return getattr(key, "idx", getattr(key, "key", None))


def _alike(path, other) -> int:
    """How many steps of the other path are at the beginning or the end of this one."""

    def common(a, b) -> int:
        return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))

    return min(len(other), common(path, other) + common(path[::-1], other[::-1]))


# ── the objective, as a mesh computes it ─────────────────────────────────────────────────────────────────────────────


def on_mesh(objective: Layer, mesh: Mesh, sequence: bool = False) -> Layer:
    """The same objective, with the same parameters and values, told what is cut; for use inside jit.

    Left to itself, the compiler may cut activations as `fsdp` and `model` cut the weights, and gather the whole batch.
    So every y and dx is held to the batch's axes, a layer's parameters are gathered over `fsdp` where it uses them, and
    their gradients are cut again.

    A `LinearCrossEntropy` goes through its tokens in slices. A slice of all tokens lies on one device, and all would
    compute it: so each goes through its own. Slices of classes likewise lie on one device of `model`: there the head
    goes by tokens, in slices of the default length.

    sequence: what `model` does not cut, of activations [batch, positions, ...], is held cut along the positions over
    `model`, where it divides them (Korthikanti 2022, arXiv:2205.05198).  Raises InputError for a mesh without `model`.
    """
    want_model(mesh, sequence)
    if mesh.size == 1:
        return objective
    places, _ = _flow(objective, False)
    return map_leaves(objective, lambda layer, at: _Placed(_own_slices(layer, mesh), mesh, places[at], sequence))


def want_model(mesh: Mesh, sequence: bool) -> None:
    """Raises InputError where positions are to be cut and there is nothing to cut them along."""
    if sequence and mesh.shape.get("model", 1) == 1:
        raise InputError(f"--sequence cuts positions along model, the mesh has {dict(mesh.shape)}; wants an axis model")


def _own_slices(layer: Layer, mesh: Mesh) -> Layer:
    if type(layer) is not LinearCrossEntropy:
        return layer
    options = {field.name: getattr(layer, field.name) for field in dataclasses.fields(layer)} | {"mesh": mesh}
    if layer.weights or layer.reduction == "none":
        return _Head(**options)
    if layer.gradients == "backward" and mesh.shape.get("model", 1) > 1:
        options |= {"gradients": "forward", "chunk": LinearCrossEntropy.chunk}
    return (_HeadInParts if options["gradients"] == "forward" else _Head)(**options)


def _held(tree, specs, mesh: Mesh):
    return jax.tree.map(lax.with_sharding_constraint, tree, placed(specs, mesh))


def _held_params(params, choices, sizes: Mapping[str, int], mesh: Mesh):
    """Parameters of a layer, or their gradients, cut along such axes of the mesh."""
    spec = lambda path, leaf: _spec(leaf.shape, dict(choices).get(_name(path[-1]), ()), 0, sizes)
    return _held(params, jax.tree_util.tree_map_with_path(spec, params), mesh)


def _gathered(params, choices, mesh: Mesh):
    return _held_params(params, choices, {"model": mesh.shape.get("model", 1)}, mesh)


@dataclass(frozen=True, repr=False)
class _Placed(Layer):
    layer: Layer
    mesh: Mesh
    place: _Place
    sequence: bool

    def __repr__(self) -> str:
        return repr(self.layer)

    def init(self, key, x):
        return self.layer.init(key, x)

    def apply(self, params, state, x):
        return self._on_batch(self.layer.apply(self._whole(params), state, x), self.place.cut_y)

    def forward(self, params, state, x, key=None):
        y, state, residuals = self.layer.forward(self._whole(params), state, x, key)
        return self._on_batch(y, self.place.cut_y), state, residuals

    def backward(self, params, residuals, dy):
        late = isinstance(params, Weights)  # `Descent` makes new ones of them: they stay cut
        dparams, dx = self.layer.backward(params if late else self._whole(params), residuals, dy)
        if not is_owed(dparams):
            dparams = _held_params(dparams, self.place.choices, self.mesh.shape, self.mesh)
        return dparams, self._on_batch(dx, self.place.cut_x)

    def _whole(self, params):
        return _gathered(params, self.place.choices, self.mesh)

    def _on_batch(self, tree, cut: bool):
        n, free = parts(self.mesh), PartitionSpec.UNCONSTRAINED if cut else None

        def spec(x):
            if not x.ndim:
                return PartitionSpec()
            first = of_batch(self.mesh)[0] if n > 1 and x.shape[0] % n == 0 else free
            by_position = self.sequence and not cut and x.ndim > 2 and x.shape[1] % self.mesh.shape["model"] == 0
            return PartitionSpec(first, *["model" if by_position else free] * (x.ndim > 1), *[free] * (x.ndim - 2))

        return _held(tree, jax.tree.map(spec, tree), self.mesh)


@dataclass(frozen=True, repr=False)
class _Head(LinearCrossEntropy):
    """dw is put together slice by slice: it is cut when all of it is there.

    It has no layer in it, where `Descent` would update the weights before that.
    """

    mesh: Mesh | None = None

    def backward(self, params, residuals, dy):
        dparams, dx = super().backward(params, residuals, dy)
        return _gathered(dparams, TABLE, self.mesh), dx


@dataclass(frozen=True, repr=False)
class _HeadInParts(_Head):
    """Over equal parts of the batch, all at once: C = Σᵢ shareᵢ Cᵢ, dw = Σᵢ shareᵢ dwᵢ."""

    def run(self, params, x):
        x = self._cut(x)
        share = self._shares(x[1])
        C, residuals = jax.vmap(lambda x: super(_Head, self).run(params, x))(x)
        return jnp.sum(share.astype(C.dtype) * C), (residuals, share)

    def apply(self, params, state, x):
        x = self._cut(x)
        C = jax.vmap(lambda x: super(_Head, self).apply(params, state, x))(x)
        return jnp.sum(self._shares(x[1]).astype(C.dtype) * C)

    def backward(self, params, residuals, dy):
        residuals, share = residuals
        back = lambda residuals, dy: super(_Head, self).backward(params, residuals, dy)
        dparams, dx = jax.vmap(back)(residuals, (share * dy).astype(dy.dtype))
        dparams = jax.tree.map(lambda d: jnp.sum(d, 0), dparams)
        return _gathered(dparams, TABLE, self.mesh), jax.tree.map(lambda d: d.reshape(-1, *d.shape[2:]), dx)

    def _cut(self, x):
        n = parts(self.mesh)
        if not x[1].ndim or x[1].shape[0] % n:
            raise InputError(f"mesh: {n} devices do not divide a batch of labels {x[1].shape}")
        return jax.tree.map(lambda leaf: leaf.reshape(n, -1, *leaf.shape[1:]), x)

    def _shares(self, labels) -> jax.Array:
        if self.reduction == "sum":
            return jnp.ones(labels.shape[0])
        counted = True if self.ignored is None else signed(labels) != self.ignored
        count = jnp.sum(jnp.broadcast_to(counted, labels.shape), tuple(range(1, labels.ndim)), dtype=jnp.float32)
        return count / jnp.maximum(jnp.sum(count), 1)
