"""The three kinds of elementwise rule, y = f(x) and dx = dy · f′(x), by what they save for f′.

x; or y, where f′ is a short formula of it, for the next layer often keeps y too; or, where f is linear on either
side of a kink, the side: one byte a number. All compute in at least float32 and return the dtype of x.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from manual_backprop.ops.arrays import want_float, wide


class FromInput(NamedTuple):
    x: jax.Array  # [...]


class FromOutput(NamedTuple):
    y: jax.Array  # [...]


class FromMask(NamedTuple):
    passes: jax.Array  # [...], bool


def from_input(name: str, f: Callable, derivative: Callable):
    """dx = dy · f′(x), x saved."""

    def forward(x):
        want_float(name, x=x)
        return f(wide(x)).astype(x.dtype), FromInput(x)

    def backward(residuals, dy):
        dx = wide(dy) * derivative(wide(residuals.x))
        return (dx.astype(residuals.x.dtype),)

    return forward, backward


def from_output(name: str, f: Callable, derivative: Callable):
    """dx = dy · f′ written in y = f(x), y saved."""

    def forward(x):
        want_float(name, x=x)
        y = f(wide(x)).astype(x.dtype)
        return y, FromOutput(y)

    def backward(residuals, dy):
        dx = wide(dy) * derivative(wide(residuals.y))
        return (dx.astype(residuals.y.dtype),)

    return forward, backward


def from_mask(name: str, f: Callable, passes: Callable, slope: float = 1):
    """dx = slope · dy where passes(x), else 0; one byte a number saved."""

    def forward(x):
        want_float(name, x=x)
        y = f(wide(x)).astype(x.dtype)
        return y, FromMask(passes(wide(x)))

    def backward(residuals, dy):
        dx = jnp.where(residuals.passes, slope * wide(dy), 0)
        return (dx.astype(dy.dtype),)

    return forward, backward
