"""Normalisations: each number reaches y by itself and through the statistics."""

from manual_backprop.ops.norms.batch_norm import batch_norm
from manual_backprop.ops.norms.batch_norm_inference import batch_norm_inference
from manual_backprop.ops.norms.group_norm import group_norm, instance_norm
from manual_backprop.ops.norms.l2_norm import l2_norm
from manual_backprop.ops.norms.layer_norm import layer_norm
from manual_backprop.ops.norms.rms_norm import rms_norm

__all__ = [
    "batch_norm",
    "batch_norm_inference",
    "group_norm",
    "instance_norm",
    "l2_norm",
    "layer_norm",
    "rms_norm",
]
