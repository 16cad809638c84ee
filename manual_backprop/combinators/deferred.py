"""A layer whose gradient is not computed yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from manual_backprop.contract import Layer, want_layer


class Owed(NamedTuple):
    """What the gradient of a layer's parameters is made of."""

    residuals: Any
    dy: Any


@dataclass(frozen=True, repr=False)
class Deferred(Layer):
    """The layer, whose backward pass gives dx, and in the place of dparams what they are made of: `Owed`.

    dparams = layer.settled(params, owed) is the same backward pass, of which now the other half is asked for: compiled,
    what nobody asks for is not computed. A layer without parameters owes nothing.
    """

    layer: Layer

    def __post_init__(self):
        want_layer("Deferred", self.layer)

    def init(self, key, x):
        return self.layer.init(key, x)

    def apply(self, params, state, x):
        return self.layer.apply(params, state, x)

    def forward(self, params, state, x, key=None):
        return self.layer.forward(params, state, x, key)

    def backward(self, params, residuals, dy):
        dparams, dx = self.layer.backward(params, residuals, dy)
        return Owed(residuals, dy) if jax.tree.leaves(params) else dparams, dx

    def settled(self, params, owed):
        return self.layer.backward(params, *owed)[0]


def is_owed(node) -> bool:
    return isinstance(node, Owed)


def owes(dparams) -> bool:
    """Whether some of the gradients are owed."""
    return any(map(is_owed, jax.tree.leaves(dparams, is_leaf=is_owed)))
