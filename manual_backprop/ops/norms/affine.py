"""What every norm shares: a scale and a bias, where its options say so, and the checks of them."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import want_float


def taking(forward: Callable, scale: bool, bias: bool) -> Callable:
    """forward(x, scale, bias) as a function of those of its arguments that the options leave; the others are None."""
    if scale and bias:
        return forward
    if scale:
        return lambda x, scale: forward(x, scale, None)
    if bias:
        return lambda x, bias: forward(x, None, bias)
    return lambda x: forward(x, None, None)


def affine(x_hat, scale, bias):
    """scale · x̂ + bias, or what is left of it."""
    y = x_hat if scale is None else scale * x_hat
    return y if bias is None else y + bias


def given(*values) -> tuple:
    """The values that are not None."""
    return tuple(value for value in values if value is not None)


def result_dtype(*arguments) -> jnp.dtype:
    return jnp.result_type(*given(*arguments))


def want_parameters(op: str, x, shape: tuple[int, ...], **parameters) -> None:
    """Raises InputError where x or a parameter is not of a floating dtype, or a parameter not of this shape."""
    parameters = {name: value for name, value in parameters.items() if value is not None}
    want_float(op, x=x, **parameters)
    for name, value in parameters.items():
        if value.shape != shape:
            raise InputError(f"{op}: {name} has shape {value.shape}, x {x.shape}; {name} must be {shape}")
