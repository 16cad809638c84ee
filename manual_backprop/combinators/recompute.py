"""Which intermediate values to keep: none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from jax import lax

from manual_backprop.contract import Layer, want_layer


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
