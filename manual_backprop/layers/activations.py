"""Activations with parameters; those without are `Apply(ops.gelu())`."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from manual_backprop import ops
from manual_backprop.contract import Op
from manual_backprop.layers.base import OpLayer, vectors


@dataclass(frozen=True, repr=False)
class PReLU(OpLayer):
    """y = x where x ≥ 0, else slope · x: x [..., d] → [..., d]; slope [d], or [] if shared. The op: `ops.prelu`."""

    shared: bool = False
    start: float = 0.25  # of every slope: He, Zhang, Ren & Sun 2015

    @property
    def op(self) -> Op:
        return ops.prelu()

    def parameters(self, key, x):
        shape, dtype = vectors("PReLU", x)
        return {"slope": jnp.full(() if self.shared else shape[-1:], self.start, dtype)}
