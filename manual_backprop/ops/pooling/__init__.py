"""Pooling and upsampling: many positions to one, one to many."""

from manual_backprop.ops.pooling.adaptive_pool import adaptive_average_pool, adaptive_max_pool
from manual_backprop.ops.pooling.average_pool import average_pool
from manual_backprop.ops.pooling.global_pool import global_average_pool, global_max_pool
from manual_backprop.ops.pooling.max_pool import max_pool
from manual_backprop.ops.pooling.upsample_bilinear import upsample_bilinear
from manual_backprop.ops.pooling.upsample_nearest import upsample_nearest

__all__ = [
    "adaptive_average_pool",
    "adaptive_max_pool",
    "average_pool",
    "global_average_pool",
    "global_max_pool",
    "max_pool",
    "upsample_bilinear",
    "upsample_nearest",
]
