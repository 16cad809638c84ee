"""Activations: a = f(z) for each number alone, and the gated ones, where one half opens and closes the other."""

from manual_backprop.ops.activations.elementwise import (
    ACTIVATIONS,
    gelu,
    leaky_relu,
    relu,
    sigmoid,
    silu,
    softplus,
    tanh,
)

__all__ = ["ACTIVATIONS", "gelu", "leaky_relu", "relu", "sigmoid", "silu", "softplus", "tanh"]
