"""Normalisations: each number reaches y by itself and through the statistics."""

from manual_backprop.ops.norms.layer_norm import layer_norm

__all__ = ["layer_norm"]
