"""Ops: arrays in, arrays out, one file per derivation. Each name is a constructor that binds options and gives an `Op`:

y = mb.ops.layer_norm(eps=1e-6)(x, scale, bias)
"""

from manual_backprop.ops.activations import ACTIVATIONS, gelu, leaky_relu, relu, sigmoid, silu, softplus, tanh
from manual_backprop.ops.dense import dense
from manual_backprop.ops.layer_norm import layer_norm
from manual_backprop.ops.softmax_cross_entropy import softmax_cross_entropy
from manual_backprop.ops.squared_error import squared_error

__all__ = [
    "ACTIVATIONS",
    "dense",
    "gelu",
    "layer_norm",
    "leaky_relu",
    "relu",
    "sigmoid",
    "silu",
    "softmax_cross_entropy",
    "softplus",
    "squared_error",
    "tanh",
]
