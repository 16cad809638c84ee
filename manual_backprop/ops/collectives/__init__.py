"""Collectives: what devices send each other, and what comes back. In `devices.py`, which turns what into what."""

from manual_backprop.ops.collectives.all_gather import all_gather, reduce_scatter
from manual_backprop.ops.collectives.all_reduce import all_reduce, copy_to_devices
from manual_backprop.ops.collectives.all_to_all import all_to_all
from manual_backprop.ops.collectives.collective_permute import collective_permute
from manual_backprop.ops.collectives.own_part import gather_parts, own_part
from manual_backprop.ops.collectives.parallel_cross_entropy import parallel_cross_entropy
from manual_backprop.ops.collectives.parallel_embedding import parallel_embedding

__all__ = [
    "all_gather",
    "all_reduce",
    "all_to_all",
    "collective_permute",
    "copy_to_devices",
    "gather_parts",
    "own_part",
    "parallel_cross_entropy",
    "parallel_embedding",
    "reduce_scatter",
]
