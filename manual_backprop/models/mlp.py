"""The multilayer perceptron: the documented network with indices j, k."""

from __future__ import annotations

from manual_backprop import ops
from manual_backprop.combinators import Serial
from manual_backprop.contract import Op
from manual_backprop.errors import InputError
from manual_backprop.layers import Apply, Dense


def mlp(*sizes: int, activation: Op | None = None, last: Op | None = None) -> Serial:
    """Layers of the given sizes, aⁱ = f(wⁱ aⁱ⁻¹ + bⁱ): x [..., in] → [..., sizes[-1]].

    sizes: neurons in each layer, the input not counted.  activation: f, by default the sigmoid.
    last: the activation of the last layer; None leaves its weighted inputs as they are, as for logits.
    Raises InputError for no sizes or a size below 1.
    """
    if not sizes:
        raise InputError("mlp: got no sizes; wants at least one layer")
    *hidden, outputs = sizes
    f = Apply(ops.sigmoid() if activation is None else activation)
    layers = [layer for size in hidden for layer in (Dense(size), f)]
    return Serial(*layers, Dense(outputs), *([] if last is None else [Apply(last)]))
