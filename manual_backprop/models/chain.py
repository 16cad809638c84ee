"""The single-neuron network: one neuron a layer, so every sum of the chain rule has one term."""

from __future__ import annotations

from manual_backprop import ops
from manual_backprop.combinators import Serial
from manual_backprop.contract import Op
from manual_backprop.errors import InputError
from manual_backprop.models.mlp import mlp


def chain(depth: int = 3, activation: Op | None = None) -> Serial:
    """`depth` layers of one neuron, a⁽ᴸ⁾ = f(w⁽ᴸ⁾ a⁽ᴸ⁻¹⁾ + b⁽ᴸ⁾): x [..., 1] → [..., 1].

    By default three weights and three biases.
    activation: f, by default the sigmoid. Raises InputError for a depth below 1.
    """
    if depth < 1:
        raise InputError(f"chain: depth is {depth}; wants at least one layer")
    f = ops.sigmoid() if activation is None else activation
    return mlp(*[1] * depth, activation=f, last=f)
