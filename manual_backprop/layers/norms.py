"""Normalising layers."""

from __future__ import annotations

from dataclasses import dataclass

from manual_backprop import ops
from manual_backprop.contract import Op
from manual_backprop.layers.base import OpLayer, ones, vectors, zeros


@dataclass(frozen=True, repr=False)
class LayerNorm(OpLayer):
    """Layer normalisation over the last axis of x [..., d], with scale [d] and bias [d]. The op: `ops.layer_norm`."""

    eps: float = 1e-5

    @property
    def op(self) -> Op:
        return ops.layer_norm(eps=self.eps)

    def parameters(self, key, x):
        shape, dtype = vectors("LayerNorm", x)
        return {"scale": ones(key, shape[-1:], dtype), "bias": zeros(key, shape[-1:], dtype)}
