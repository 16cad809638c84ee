"""Linear layers."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from manual_backprop import ops
from manual_backprop.contract import Op, want_count
from manual_backprop.layers.base import Initializer, OpLayer, lecun_normal, vectors, zeros


@dataclass(frozen=True, repr=False)
class Dense(OpLayer):
    """z = x w + b: x [..., in] → [..., features]; w [in, features], b [features] in x's dtype. The op: `ops.dense`."""

    features: int
    bias: bool = True
    w_init: Initializer = lecun_normal
    b_init: Initializer = zeros

    def __post_init__(self):
        object.__setattr__(self, "features", want_count("Dense: features", self.features))

    @property
    def op(self) -> Op:
        return ops.dense(bias=self.bias)

    def parameters(self, key, x):
        shape, dtype = vectors("Dense", x)
        w_key, b_key = jax.random.split(key)
        params = {"w": self.w_init(w_key, (shape[-1], self.features), dtype)}
        return params | {"b": self.b_init(b_key, (self.features,), dtype)} if self.bias else params
