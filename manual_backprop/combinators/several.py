"""Several layers: one after another, or side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax

from manual_backprop.combinators.shapes import output, sum_over_paths
from manual_backprop.contract import Layer, want_layer
from manual_backprop.errors import InputError, inside


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
                x = output(layer, p, s, x)
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
        return tuple(dp for dp, _ in paths), sum_over_paths(*(dx for _, dx in paths))
