"""One parameter in several places."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import reduce
from itertools import combinations

from manual_backprop.combinators.deferred import Deferred
from manual_backprop.combinators.objective import Objective
from manual_backprop.combinators.recompute import Recompute
from manual_backprop.combinators.residual import Residual
from manual_backprop.combinators.several import Parallel, Serial
from manual_backprop.combinators.shapes import shapes, sum_over_paths, text
from manual_backprop.combinators.walk import children, is_several, map_leaves
from manual_backprop.contract import Layer, want_layer
from manual_backprop.errors import InputError
from manual_backprop.layers import Embedding

Path = tuple[Hashable, ...]


@dataclass(frozen=True, repr=False, init=False)
class Tied(Layer):
    """One parameter used in several places of a layer: the sum over paths, one through each place: ∂C/∂w = Σ ∂C/∂wₚ.

    `Tied(Serial(Dense(5), Dense(5)), (0, "w"), (1, "w"))`: a place is the path to a leaf, or a subtree, of the layer's
    params. The parameter is kept at the first place, where its gradient is the sum; the other places hold None.
    The table of an `Embedding` at the first place adds its rows to that sum: there is no second table.
    """

    layer: Layer
    places: tuple[Path, ...]

    def __init__(self, layer: Layer, *places: Path):
        want_layer("Tied", layer)
        if len(places) < 2:
            raise InputError(f"Tied: got {len(places)} places; wants at least two")
        for a, b in combinations(places, 2):
            if _overlap(a, b):
                raise InputError(f"Tied: {a} and {b} are one place, or one holds the other; wants separate places")
        object.__setattr__(self, "layer", layer)
        object.__setattr__(self, "places", tuple(map(tuple, places)))

    def __repr__(self):
        return f"Tied({', '.join(map(repr, (self.layer, *self.places)))})"

    def init(self, key, x):
        params, state = self.layer.init(key, x)
        first, *others = self.places
        for place in others:
            kept, copy = self._found(params, first), self._found(params, place)
            if shapes(kept) != shapes(copy):
                raise InputError(
                    f"Tied: {first} holds {text(kept)}, {place} holds {text(copy)}; wants one shape and dtype"
                )
            params = put(params, place, None)
        return params, state

    def apply(self, params, state, x):
        return self.layer.apply(self.spread(params), state, x)

    def forward(self, params, state, x, key=None):
        return self.layer.forward(self.spread(params), state, x, key)

    def backward(self, params, residuals, dy):
        at = self.places[0][:-1]
        table = _leaf(self.layer, at)
        if not isinstance(table, Embedding):
            dparams, dx = self.layer.backward(self.spread(params), residuals, dy)
            return self.summed(dparams), dx
        waiting = map_leaves(self.layer, lambda leaf, place: Deferred(leaf) if place == at else leaf)
        dparams, dx = waiting.backward(self.spread(params), residuals, dy)
        owed, dparams = get(dparams, at), put(dparams, at, {"table": None})
        dparams = self.summed(dparams)
        return put(dparams, at, table.added(get(dparams, at), *owed)), dx

    def summed(self, dparams):
        """The sum over the places, at the first."""
        first, *others = self.places
        paths = [path for place in self.places if (path := get(dparams, place)) is not None]
        for place in others:
            dparams = put(dparams, place, None)
        return put(dparams, first, sum_over_paths(*paths))

    def ties(self, at: Path) -> bool:
        """Whether a parameter of the layer at that place, within, is one of the places, or part of one."""
        return any(_overlap(place, at) for place in self.places)

    def _found(self, params, place):
        try:
            return get(params, place)
        except KeyError:
            raise InputError(f"Tied: there is no place {place} in the parameters of {self.layer!r}") from None

    def spread(self, params):
        """The parameters of the layer within: the one at the first place, at every place."""
        first, *others = self.places
        for place in others:
            params = put(params, place, get(params, first))
        return params


def _leaf(layer: Layer, path: Path) -> Layer | None:
    """The layer at a place in params; None where a combinator on the way does something to gradients."""
    while children(layer):
        if not isinstance(layer, Serial | Parallel | Residual | Recompute | Objective):
            return None
        if not is_several(layer):
            layer = children(layer)[0]
        elif path:
            layer, path = children(layer)[path[0]], path[1:]
        else:
            return None
    return None if path else layer


def _overlap(a: Path, b: Path) -> bool:
    return a[: len(b)] == b[: len(a)]


def get(tree, path: Path):
    """What is at a place of params."""
    return reduce(lambda node, step: _children(node)[step], path, tree)


def put(tree, path: Path, value):
    """The params with a value at a place."""
    if not path:
        return value
    step, *rest = path
    children = _children(tree)
    children[step] = put(children[step], rest, value)
    return children if isinstance(tree, dict) else tuple(children.values())


def _children(tree) -> dict:
    """What a dict or a tuple of parameters holds, by key or by place; a leaf holds nothing."""
    if isinstance(tree, dict):
        return dict(tree)
    return dict(enumerate(tree)) if isinstance(tree, tuple) else {}
