"""Layers on the way to attention."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from manual_backprop import ops
from manual_backprop.contract import Op, Stateless
from manual_backprop.errors import InputError


@dataclass(frozen=True, repr=False)
class Rotary(Stateless):
    """Queries and keys turned by their positions, 0 … T - 1; values as they are. The op: `ops.rotary_embedding`.

    (q [..., T, N, H], k [..., T, K, H], v) → alike.
    """

    base: float = 10000.0
    interleaved: bool = False
    fraction: float = 1.0

    def __post_init__(self):
        _ = self.op  # a wrong option is told here

    @property
    def op(self) -> Op:
        return ops.rotary_embedding(base=self.base, interleaved=self.interleaved, fraction=self.fraction)

    def run(self, params, x):
        if not isinstance(x, tuple) or len(x) != 3:
            raise InputError(f"Rotary: x is a {type(x).__name__}; wants a tuple (q, k, v)")
        q, k, v = x
        (q, of_q), (k, of_k) = (self.op.forward(x, jnp.arange(x.shape[-3])) for x in (q, k))
        return (q, k, v), (of_q, of_k)

    def backward(self, params, residuals, dy):
        dq, dk, dv = dy
        (dq, _), (dk, _) = (self.op.backward(r, d) for r, d in zip(residuals, (dq, dk), strict=True))
        return {}, (dq, dk, dv)
