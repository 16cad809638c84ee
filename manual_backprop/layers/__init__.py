"""Layers: an op, the names of its parameters, and how they start. One file per family of ops."""

from manual_backprop.layers.activations import PReLU
from manual_backprop.layers.base import Apply, Identity, Initializer, OpLayer, lecun_normal, ones, zeros
from manual_backprop.layers.linear import Dense
from manual_backprop.layers.norms import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from manual_backprop.layers.routing import Dropout, StochasticDepth

__all__ = [
    "Apply",
    "BatchNorm",
    "Dense",
    "Dropout",
    "GroupNorm",
    "Identity",
    "Initializer",
    "InstanceNorm",
    "LayerNorm",
    "OpLayer",
    "PReLU",
    "RMSNorm",
    "StochasticDepth",
    "lecun_normal",
    "ones",
    "zeros",
]
