"""Activations: a = f(z) for each number alone, and the gated ones, where one half opens and closes the other."""

from manual_backprop.ops.activations.gated import geglu, glu, swiglu
from manual_backprop.ops.activations.gelu import gelu
from manual_backprop.ops.activations.piecewise import (
    hard_sigmoid,
    hard_silu,
    hard_tanh,
    hardshrink,
    leaky_relu,
    relu,
    relu6,
    softshrink,
    squared_relu,
    threshold,
)
from manual_backprop.ops.activations.prelu import prelu
from manual_backprop.ops.activations.smooth import (
    celu,
    elu,
    log_sigmoid,
    mish,
    selu,
    sigmoid,
    silu,
    softplus,
    softsign,
    tanh,
    tanhshrink,
)

# Those of each number alone, by name.
ACTIVATIONS = {
    rule.__name__: rule
    for rule in (
        sigmoid,
        log_sigmoid,
        tanh,
        relu,
        relu6,
        squared_relu,
        leaky_relu,
        elu,
        selu,
        celu,
        softplus,
        softsign,
        silu,
        mish,
        gelu,
        hard_sigmoid,
        hard_silu,
        hard_tanh,
        hardshrink,
        softshrink,
        tanhshrink,
        threshold,
    )
}

__all__ = ["ACTIVATIONS", "geglu", "glu", "prelu", "swiglu", *ACTIVATIONS]
