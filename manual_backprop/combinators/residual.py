"""A path around a layer."""

from __future__ import annotations

from dataclasses import dataclass

from manual_backprop.combinators.shapes import output, sum_over_paths, want_same_shape
from manual_backprop.contract import Layer, want_layer
from manual_backprop.errors import inside


@dataclass(frozen=True, repr=False)
class Residual(Layer):
    """y = x + f(x): the sum over two paths, one of which changes nothing: ∂C/∂x = ∂C/∂y + ∂C/∂y · ∂f/∂x."""

    layer: Layer

    def __post_init__(self):
        want_layer("Residual", self.layer)

    def init(self, key, x):
        with inside(f"Residual {self.layer!r}"):
            params, state = self.layer.init(key, x)
            want_same_shape(x, output(self.layer, params, state, x))
        return params, state

    def apply(self, params, state, x):
        with inside(f"Residual {self.layer!r}"):
            y = self.layer.apply(params, state, x)
            want_same_shape(x, y)
        return sum_over_paths(x, y)

    def forward(self, params, state, x, key=None):
        with inside(f"Residual {self.layer!r}"):
            y, state, residuals = self.layer.forward(params, state, x, key)
            want_same_shape(x, y)
        return sum_over_paths(x, y), state, residuals

    def backward(self, params, residuals, dy):
        dparams, dx = self.layer.backward(params, residuals, dy)
        return dparams, sum_over_paths(dy, dx)
