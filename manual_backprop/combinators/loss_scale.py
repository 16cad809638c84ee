"""A cost made larger for the backward pass, so that small cotangents are not rounded to nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from manual_backprop.combinators.ahead import GradientAhead, ahead
from manual_backprop.combinators.deferred import owes
from manual_backprop.contract import Layer, want_layer
from manual_backprop.errors import InputError, inside, want_count


class Scale(NamedTuple):
    """The state."""

    scale: jax.Array  # a number, float32
    finite_steps: jax.Array  # how many steps in a row had a finite gradient at this scale
    of_objective: Any


@dataclass(frozen=True, repr=False)
class LossScale(GradientAhead):
    """An objective whose backward pass starts with ∂C/∂C = scale: float16 rounds what is below 6e-8 to zero.

        s ∂C/∂w from the backward pass,    ∂C/∂w = (s ∂C/∂w) / s

    A gradient that is not finite comes back as it is, for the optimiser to leave out (`optax.apply_if_finite`), and the
    next scale is half of this one; after `patience` finite ones in a row it is twice. A power of two loses no digit.
    (Micikevicius 2018, arXiv:1710.03740, 3.2.) It is for `Precision(…, "float16")`: bfloat16 has float32's exponents.
    The gradient is computed in the forward pass, where the state is. Nothing flows back to the batch: None.
    """

    objective: Layer
    initial: float = 2.0**15
    patience: int = 2000

    def __post_init__(self):
        want_layer("LossScale", self.objective)
        if isinstance(self.objective, GradientAhead):
            raise InputError(
                f"LossScale: {type(self.objective).__name__} goes backward in its forward pass, where the scale is not "
                f"known; wants LossScale within {type(self.objective).__name__}"
            )
        object.__setattr__(self, "patience", want_count("LossScale: patience", self.patience))
        if not isinstance(self.initial, int | float) or not 0 < self.initial < math.inf:
            raise InputError(f"LossScale: initial is {self.initial!r}; wants a positive number, best a power of two")

    def init(self, key, batch):
        params, state = self.objective.init(key, batch)
        return params, Scale(jnp.float32(self.initial), jnp.int32(0), state)

    def apply(self, params, state, batch):
        return self.objective.apply(params, state.of_objective, batch)

    def forward(self, params, state, batch, key=None):
        scale, finite_steps, of_objective = state
        with inside(f"LossScale {self.objective!r}"):
            C, of_objective, residuals = self.objective.forward(params, of_objective, batch, key)
            scaled, _ = self.objective.backward(params, residuals, scale.astype(C.dtype))
            if owes(scaled):
                raise InputError("gradients are owed, and cannot be rescaled yet; wants an objective that is not split")
        dparams = jax.tree.map(lambda d: (d / scale).astype(d.dtype), scaled)
        finite = jnp.bool(True)
        for d in jax.tree.leaves(scaled):
            finite &= jnp.all(jnp.isfinite(d))
        grows = finite_steps + 1 >= self.patience
        next_scale = jnp.where(finite, jnp.where(grows, 2 * scale, scale), jnp.maximum(scale / 2, 1))
        next_scale = jnp.where(jnp.isfinite(next_scale), next_scale, scale)
        state = Scale(next_scale, jnp.where(finite & ~grows, finite_steps + 1, 0), of_objective)
        return C, state, ahead(dparams, batch)
