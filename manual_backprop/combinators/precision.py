"""Which dtype a layer computes in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from manual_backprop.combinators.shapes import shapes
from manual_backprop.contract import Layer, want_layer
from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import Spec, is_float, spec

DTYPES = ("bfloat16", "float16", "float32", "float64")


class _Rounded(NamedTuple):
    of_x: Any  # a Spec for each leaf of x
    residuals: Any  # of the layer


@dataclass(frozen=True, repr=False)
class Precision(Layer):
    """The layer in another dtype: its parameters stay as they are, and are rounded on their way in, as x is.

    Rounding counts as the identity: of y = f(round(w), round(x)), dw is ∂f/∂w in w's dtype, dx is ∂f/∂x in x's.
    So parameters, and what an optimiser adds up, stay in `params`; matrix products are of `compute`. Norms, softmax,
    costs and every sum are in at least float32 in any case: the ops see to that. State is not rounded.
    Put it inside `Repeat`, so that the rounded weights of one layer exist at a time.
    """

    layer: Layer
    compute: str = "bfloat16"
    params: str = "float32"

    def __post_init__(self):
        want_layer("Precision", self.layer)
        for name in ("compute", "params"):
            if getattr(self, name) not in DTYPES:
                raise InputError(f"Precision: {name} is {getattr(self, name)!r}; wants one of {', '.join(DTYPES)}")

    def init(self, key, x):
        x = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, self.params) if is_float(s) else s, shapes(x))
        return self.layer.init(key, x)

    def apply(self, params, state, x):
        return self.layer.apply(self.rounded(params), state, self.rounded(x))

    def forward(self, params, state, x, key=None):
        y, state, residuals = self.layer.forward(self.rounded(params), state, self.rounded(x), key)
        return y, state, _Rounded(jax.tree.map(spec, x), residuals)

    def backward(self, params, residuals, dy):
        dparams, dx = self.layer.backward(self.rounded(params), residuals.residuals, dy)
        return self.dparams(params, dparams), self.dx(residuals, dx)

    def dparams(self, params, dparams):
        """The gradient of what was rounded as that of what it was rounded from."""
        return jax.tree.map(lambda d, p: d.astype(p.dtype), dparams, params)

    def dx(self, residuals, dx):
        """As `dparams`, of x."""
        back = lambda s, d: None if d is None else d.astype(s.dtype)
        return jax.tree.map(back, residuals.of_x, dx, is_leaf=lambda s: isinstance(s, Spec))

    def rounded(self, tree):
        """Its floating-point leaves in the dtype `compute`."""
        return jax.tree.map(lambda leaf: leaf.astype(self.compute) if is_float(leaf) else leaf, tree)
