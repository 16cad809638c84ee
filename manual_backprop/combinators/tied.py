"""One parameter in several places."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import reduce
from itertools import combinations

from manual_backprop.combinators.shapes import shapes, sum_over_paths, text
from manual_backprop.contract import Layer, want_layer
from manual_backprop.errors import InputError

Path = tuple[Hashable, ...]


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
        dparams, dx = self.layer.backward(self.spread(params), residuals, dy)
        first, *others = self.places
        total = sum_over_paths(*(get(dparams, place) for place in self.places))
        for place in others:
            dparams = put(dparams, place, None)
        return put(dparams, first, total), dx

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
