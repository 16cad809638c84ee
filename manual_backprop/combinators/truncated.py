"""Backpropagation through time that ends after so many steps."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.combinators.deferred import owes
from manual_backprop.combinators.shapes import shapes, sum_over_paths, text
from manual_backprop.combinators.tied import get
from manual_backprop.combinators.walk import leaves
from manual_backprop.contract import Layer, want_layer
from manual_backprop.errors import InputError, inside, want_count
from manual_backprop.ops.arrays import wide_dtype


@dataclass(frozen=True, repr=False)
class Truncated(Layer):
    """The layer on x [..., time, in] in parts of so many steps: values go on from part to part, the gradient does not.

    Forward it is the layer on the whole of x; ∂C/∂x and ∂C/∂params are those of each part alone, its first state a
    constant, summed over the parts.  (Werbos 1990; Williams & Peng 1990.)
    The recurrent layers within must be `carried`, and no other may have a state: the state is then the memory, zero
    before x; or with `carried`, what the batch before left there, as theirs is.
    `apply` takes x whole. Raises InputError for a number of steps that `steps` does not divide.
    """

    layer: Layer
    steps: int
    carried: bool = False

    def __post_init__(self):
        want_layer("Truncated", self.layer)
        object.__setattr__(self, "steps", want_count("Truncated: steps", self.steps))
        recurrent = [leaf for leaf, _ in leaves(self.layer) if hasattr(leaf, "carried")]
        for leaf in recurrent or [self.layer]:
            if not (recurrent and leaf.carried and leaf.axis == -2):
                raise InputError(f"Truncated: got {leaf!r}; wants recurrent layers with carried=True, time at axis -2")

    def init(self, key, x):
        with inside(f"Truncated {self.layer!r}"):
            params, state = self.layer.init(key, shapes(x))
        for leaf, at in leaves(self.layer):
            if not hasattr(leaf, "carried") and jax.tree.leaves(get(state, at)):
                raise InputError(f"Truncated: {leaf!r} has a state that is no memory; wants it outside of Truncated")
        return params, state if self.carried else ()

    def apply(self, params, state, x):
        with inside(f"Truncated {self.layer!r}"):
            return self.layer.apply(params, self._start(state, x), x)

    def forward(self, params, state, x, key=None):
        def step(memory, here):
            y, memory, residuals = self.layer.forward(params, memory, *here)
            if not hasattr(y, "shape") or y.shape[-2:-1] != (self.steps,):
                raise InputError(f"maps {self.steps} steps to {text(y)}; wants every step's output")
            return memory, (y, residuals)

        with inside(f"Truncated {self.layer!r}"):
            parts = self.parts(x)
            keys = None if key is None else jax.random.split(key, len(parts))
            memory, (y, residuals) = lax.scan(step, self._start(state, x), (parts, keys))
        return joined(y), memory if self.carried else state, residuals

    def backward(self, params, residuals, dy):
        def step(sums, here):
            dparams, dx = self.layer.backward(params, *here)
            if owes(dparams):
                raise InputError("Truncated: gradients are owed, of which there is no sum; wants a layer not split")
            return sum_over_paths(sums, dparams), dx

        nothing = jax.tree.map(lambda p: jnp.zeros_like(p, wide_dtype(p.dtype)), params)
        dparams, dx = lax.scan(step, nothing, (residuals, self.parts(dy)))
        return jax.tree.map(lambda d, p: d.astype(p.dtype), dparams, params), joined(dx)

    def parts(self, x) -> jax.Array:
        """[..., time, d] → [parts, ..., steps, d]."""
        if not hasattr(x, "shape") or x.ndim < 2:
            raise InputError(f"x is {text(x)}; wants one array [..., time, in]")
        *batch, time, d = x.shape
        if time < self.steps:
            raise InputError(f"x has shape {x.shape}, {time} steps; wants at least the {self.steps} of a part")
        if time % self.steps:
            raise InputError(f"x has shape {x.shape}, {time} steps; wants a multiple of {self.steps}, those of a part")
        return jnp.moveaxis(x.reshape(*batch, time // self.steps, self.steps, d), -3, 0)

    def _start(self, state, x):
        """The memory before x."""
        if self.carried:
            return state
        of_x = jax.eval_shape(lambda x: self.layer.init(jax.random.key(0), x)[1], shapes(x))
        return jax.tree.map(lambda memory: jnp.zeros_like(x, memory.dtype, memory.shape), of_x)


def joined(parts) -> jax.Array:
    """[parts, ..., steps, d] → [..., time, d]."""
    x = jnp.moveaxis(parts, 0, -3)
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])
