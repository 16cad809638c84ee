"""Combinators: layers made of layers. Each is one sentence of the calculus, whatever the layers are.

`params` and `state` of a combinator of several layers are tuples, one entry a layer. A PRNG key is split, one a layer.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.contract import InputError, Layer, inside, want_layer

Path = tuple[Hashable, ...]


@dataclass(frozen=True, repr=False, init=False)
class _Several(Layer):
    """What `Serial` and `Parallel` share: a tuple of layers, at least so many."""

    layers: tuple[Layer, ...]
    _least: ClassVar[int] = 1

    def __init__(self, *layers: Layer):
        name = type(self).__name__
        if len(layers) < self._least:
            raise InputError(f"{name}: got {len(layers)} layers; wants at least {self._least}")
        for layer in layers:
            want_layer(name, layer)
        object.__setattr__(self, "layers", layers)

    def __repr__(self):
        return f"{type(self).__name__}({', '.join(map(repr, self.layers))})"

    def _at(self, i: int):
        return inside(f"{type(self).__name__}[{i}] {self.layers[i]!r}")

    def keys(self, key) -> Sequence:
        """A key for each layer, or None for each where there is none."""
        return [None] * len(self.layers) if key is None else jax.random.split(key, len(self.layers))


@dataclass(frozen=True, repr=False, init=False)
class Serial(_Several):
    """One layer after another: the chain rule. With x⁰ = x and xⁱ = fᵢ(xⁱ⁻¹),

    ∂C/∂xⁱ⁻¹ = ∂C/∂xⁱ · ∂xⁱ/∂xⁱ⁻¹,  from the last layer back to the first.
    """

    def init(self, key, x):
        params, state = [], []
        for i, (layer, layer_key) in enumerate(zip(self.layers, jax.random.split(key, len(self.layers)), strict=True)):
            with self._at(i):
                p, s = layer.init(layer_key, x)
                x = _output(layer, p, s, x)
            params.append(p)
            state.append(s)
        return tuple(params), tuple(state)

    def apply(self, params, state, x):
        for i, (layer, p, s) in enumerate(zip(self.layers, params, state, strict=True)):
            with self._at(i):
                x = layer.apply(p, s, x)
        return x

    def forward(self, params, state, x, key=None):
        new_state, residuals = [], []
        for i, (layer, p, s, k) in enumerate(zip(self.layers, params, state, self.keys(key), strict=True)):
            with self._at(i):
                x, s, r = layer.forward(p, s, x, k)
            new_state.append(s)
            residuals.append(r)
        return x, tuple(new_state), tuple(residuals)

    def backward(self, params, residuals, dy):
        dparams = []
        for layer, p, r in reversed(list(zip(self.layers, params, residuals, strict=True))):
            dp, dy = layer.backward(p, r, dy)
            dparams.append(dp)
        return tuple(reversed(dparams)), dy


@dataclass(frozen=True, repr=False, init=False)
class Parallel(_Several):
    """The same x to every layer, y the tuple of what they make of it: the sum over paths.

    x reaches C through each of them, so ∂C/∂x = Σᵢ ∂C/∂yᵢ · ∂yᵢ/∂x.
    """

    _least = 2

    def init(self, key, x):
        keys = jax.random.split(key, len(self.layers))
        params, state = [], []
        for i, layer in enumerate(self.layers):
            with self._at(i):
                p, s = layer.init(keys[i], x)
            params.append(p)
            state.append(s)
        return tuple(params), tuple(state)

    def apply(self, params, state, x):
        y = []
        for i, (layer, p, s) in enumerate(zip(self.layers, params, state, strict=True)):
            with self._at(i):
                y.append(layer.apply(p, s, x))
        return tuple(y)

    def forward(self, params, state, x, key=None):
        y, new_state, residuals = [], [], []
        for i, (layer, p, s, k) in enumerate(zip(self.layers, params, state, self.keys(key), strict=True)):
            with self._at(i):
                out, s, r = layer.forward(p, s, x, k)
            y.append(out)
            new_state.append(s)
            residuals.append(r)
        return tuple(y), tuple(new_state), tuple(residuals)

    def backward(self, params, residuals, dy):
        paths = [layer.backward(p, r, d) for layer, p, r, d in zip(self.layers, params, residuals, dy, strict=True)]
        return tuple(dp for dp, _ in paths), _sum(*(dx for _, dx in paths))


@dataclass(frozen=True, repr=False)
class Residual(Layer):
    """y = x + f(x): the sum over two paths, one of which changes nothing: ∂C/∂x = ∂C/∂y + ∂C/∂y · ∂f/∂x."""

    layer: Layer

    def __post_init__(self):
        want_layer("Residual", self.layer)

    def init(self, key, x):
        with inside(f"Residual {self.layer!r}"):
            params, state = self.layer.init(key, x)
            _want_same_shape(x, _output(self.layer, params, state, x))
        return params, state

    def apply(self, params, state, x):
        with inside(f"Residual {self.layer!r}"):
            y = self.layer.apply(params, state, x)
            _want_same_shape(x, y)
        return _sum(x, y)

    def forward(self, params, state, x, key=None):
        with inside(f"Residual {self.layer!r}"):
            y, state, residuals = self.layer.forward(params, state, x, key)
            _want_same_shape(x, y)
        return _sum(x, y), state, residuals

    def backward(self, params, residuals, dy):
        dparams, dx = self.layer.backward(params, residuals, dy)
        return dparams, _sum(dy, dx)


@dataclass(frozen=True, repr=False)
class Repeat(Layer):
    """n layers of one code, parameters stacked on a leading axis: the chain rule as two `lax.scan`s.

    Forward carries x and stacks residuals; backward carries ∂C/∂xⁱ from n to 1 and stacks ∂C/∂params. The program does
    not grow with n. `Repeat(f, n)` is `Serial(f, …, f)` with its parameters stacked.
    """

    layer: Layer
    n: int

    def __post_init__(self):
        want_layer("Repeat", self.layer)
        if self.n < 1:
            raise InputError(f"Repeat: n is {self.n}; wants at least one layer")

    def init(self, key, x):
        x = _shapes(x)
        with inside(f"Repeat {self.layer!r}"):
            params, state = jax.vmap(lambda k: self.layer.init(k, x))(jax.random.split(key, self.n))
            first = jax.tree.map(lambda stacked: stacked[0], (params, state))
            _want_same_shape(x, _output(self.layer, *first, x))
        return params, state

    def apply(self, params, state, x):
        def step(x, layer):
            y = self.layer.apply(*layer, x)
            _want_same_shape(x, y)
            return y, None

        with inside(f"Repeat {self.layer!r}"):
            return lax.scan(step, x, (params, state), length=self.n)[0]

    def forward(self, params, state, x, key=None):
        def step(x, layer):
            p, s, k = layer
            y, s, residuals = self.layer.forward(p, s, x, k)
            _want_same_shape(x, y)
            return y, (s, residuals)

        keys = None if key is None else jax.random.split(key, self.n)
        with inside(f"Repeat {self.layer!r}"):
            y, (state, residuals) = lax.scan(step, x, (params, state, keys), length=self.n)
        return y, state, residuals

    def backward(self, params, residuals, dy):
        def step(dy, layer):
            dparams, dx = self.layer.backward(*layer, dy)
            return dx, dparams

        dx, dparams = lax.scan(step, dy, (params, residuals), length=self.n, reverse=True)
        return dparams, dx


@dataclass(frozen=True, repr=False, init=False)
class Tied(Layer):
    """One parameter used in several places of a layer: the sum over paths, one through each place: ∂C/∂w = Σ ∂C/∂wₚ.

    `Tied(Serial(Dense(5), Dense(5)), (0, "w"), (1, "w"))`: a place is the path to a leaf, or a subtree, of the layer's
    params. The parameter is kept at the first place, where its gradient is the sum; the other places hold None.
    """

    layer: Layer
    places: tuple[Path, ...]

    def __init__(self, layer: Layer, *places: Path):
        want_layer("Tied", layer)
        if len(places) < 2:
            raise InputError(f"Tied: got {len(places)} places; wants at least two")
        for a, b in combinations(places, 2):
            if a[: len(b)] == b[: len(a)]:
                raise InputError(f"Tied: {a} and {b} are one place, or one holds the other; wants separate places")
        object.__setattr__(self, "layer", layer)
        object.__setattr__(self, "places", places)

    def __repr__(self):
        return f"Tied({', '.join(map(repr, (self.layer, *self.places)))})"

    def init(self, key, x):
        params, state = self.layer.init(key, x)
        first, *others = self.places
        for place in others:
            kept, copy = self._found(params, first), self._found(params, place)
            if _shapes(kept) != _shapes(copy):
                raise InputError(
                    f"Tied: {first} holds {_text(kept)}, {place} holds {_text(copy)}; wants one shape and dtype"
                )
            params = _put(params, place, None)
        return params, state

    def apply(self, params, state, x):
        return self.layer.apply(self._spread(params), state, x)

    def forward(self, params, state, x, key=None):
        return self.layer.forward(self._spread(params), state, x, key)

    def backward(self, params, residuals, dy):
        dparams, dx = self.layer.backward(self._spread(params), residuals, dy)
        first, *others = self.places
        total = _sum(*(_get(dparams, place) for place in self.places))
        for place in others:
            dparams = _put(dparams, place, None)
        return _put(dparams, first, total), dx

    def _found(self, params, place):
        try:
            return _get(params, place)
        except KeyError:
            raise InputError(f"Tied: there is no place {place} in the parameters of {self.layer!r}") from None

    def _spread(self, params):
        first, *others = self.places
        for place in others:
            params = _put(params, place, _get(params, first))
        return params


class _Replay(NamedTuple):
    state: Any
    x: Any
    key: Any


@dataclass(frozen=True, repr=False)
class Recompute(Layer):
    """The same derivatives from fewer residuals: only the input is kept, and the layer runs forward again in backward.

    The chain rule asks for intermediate values, not where they come from. Costs one more forward pass of the layer.
    Under `Repeat` it always saves memory. Elsewhere the compiler must keep the barrier below, as for `jax.checkpoint`:
    jaxlib 0.10 drops it on a CPU.
    """

    layer: Layer

    def __post_init__(self):
        want_layer("Recompute", self.layer)

    def init(self, key, x):
        return self.layer.init(key, x)

    def apply(self, params, state, x):
        return self.layer.apply(params, state, x)

    def forward(self, params, state, x, key=None):
        y, new_state, _ = self.layer.forward(params, state, x, key)
        return y, new_state, _Replay(state, x, key)

    def backward(self, params, residuals, dy):
        # The barrier keeps the compiler from finding that it has all of this already, and storing it after all.
        (state, x, key), dy = lax.optimization_barrier((residuals, dy))
        _, _, residuals = self.layer.forward(params, state, x, key)
        return self.layer.backward(params, residuals, dy)


@dataclass(frozen=True, repr=False)
class Objective(Layer):
    """The whole of C as one layer, from (x, target) to cost(model(x), target): the chain rule's last link.

    The cost averages over the examples, so every derivative that comes back is an average over them.
    """

    model: Layer
    cost: Layer

    def __post_init__(self):
        want_layer("Objective's model", self.model)
        want_layer("Objective's cost", self.cost)

    def init(self, key, batch):
        x, target = _pair(batch)
        model_key, cost_key = jax.random.split(key)
        with inside("model"):
            params, state = self.model.init(model_key, x)
            prediction = _output(self.model, params, state, x)
        with inside("cost"):
            cost_params, cost_state = self.cost.init(cost_key, (prediction, _shapes(target)))
        return (params, cost_params), (state, cost_state)

    def apply(self, params, state, batch):
        x, target = _pair(batch)
        with inside("model"):
            prediction = self.model.apply(params[0], state[0], x)
        with inside("cost"):
            return self.cost.apply(params[1], state[1], (prediction, target))

    def forward(self, params, state, batch, key=None):
        x, target = _pair(batch)
        model_key, cost_key = (None, None) if key is None else jax.random.split(key)
        with inside("model"):
            prediction, model_state, model_residuals = self.model.forward(params[0], state[0], x, model_key)
        with inside("cost"):
            cost, cost_state, cost_residuals = self.cost.forward(params[1], state[1], (prediction, target), cost_key)
        return cost, (model_state, cost_state), (model_residuals, cost_residuals)

    def backward(self, params, residuals, dy):
        dcost_params, (dprediction, dtarget) = self.cost.backward(params[1], residuals[1], dy)
        dparams, dx = self.model.backward(params[0], residuals[0], dprediction)
        return (dparams, dcost_params), (dx, dtarget)


def _pair(batch) -> tuple:
    if not (isinstance(batch, tuple | list) and len(batch) == 2):
        raise InputError(f"Objective: the batch is a {type(batch).__name__}; wants a pair (x, target)")
    return tuple(batch)


def _sum(*paths):
    """Σ over paths, leaf by leaf."""
    return jax.tree.map(lambda *leaves: reduce(jnp.add, leaves), *paths)


def _shapes(x):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), x)


def _output(layer: Layer, params, state, x):
    """Shapes and dtypes of what the layer makes of x."""
    return jax.eval_shape(layer.apply, params, state, x)


def _want_same_shape(x, y) -> None:
    if _shapes(x) != _shapes(y):
        raise InputError(f"maps {_text(x)} to {_text(y)}; wants the input's shape and dtype kept")


def _text(x) -> str:
    """Shapes and dtypes for people: float32[7, 5]."""
    shapes = jax.tree.map(lambda leaf: f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}", x)
    return shapes if isinstance(shapes, str) else str(shapes)


def _get(tree, path: Path):
    return reduce(lambda node, step: _children(node)[step], path, tree)


def _put(tree, path: Path, value):
    if not path:
        return value
    step, *rest = path
    children = _children(tree)
    children[step] = _put(children[step], rest, value)
    return children if isinstance(tree, dict) else tuple(children.values())


def _children(tree) -> dict:
    """What a dict or a tuple of parameters holds, by key or by place; a leaf holds nothing."""
    if isinstance(tree, dict):
        return dict(tree)
    return dict(enumerate(tree)) if isinstance(tree, tuple) else {}
