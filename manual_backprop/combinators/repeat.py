"""Many layers of one code."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from jax import lax

from manual_backprop.combinators.shapes import output, shapes, want_same_shape
from manual_backprop.contract import Layer, want_layer
from manual_backprop.errors import inside, want_count


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
        object.__setattr__(self, "n", want_count("Repeat: n", self.n))

    def init(self, key, x):
        x = shapes(x)
        with inside(f"Repeat {self.layer!r}"):
            params, state = jax.vmap(lambda k: self.layer.init(k, x))(jax.random.split(key, self.n))
            first = jax.tree.map(lambda stacked: stacked[0], (params, state))
            want_same_shape(x, output(self.layer, *first, x))
        return params, state

    def apply(self, params, state, x):
        def step(x, layer):
            y = self.layer.apply(*layer, x)
            want_same_shape(x, y)
            return y, None

        with inside(f"Repeat {self.layer!r}"):
            return lax.scan(step, x, (params, state), length=self.n)[0]

    def forward(self, params, state, x, key=None):
        def step(x, layer):
            p, s, k = layer
            y, s, residuals = self.layer.forward(p, s, x, k)
            want_same_shape(x, y)
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
