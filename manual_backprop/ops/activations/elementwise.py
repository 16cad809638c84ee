"""Activations: a = f(z) for each number alone, so ∂C/∂z = ∂C/∂a · f′(z).

The formulas are calculus; each rule says what it saves, and why that is the cheapest thing to save: where f′ can be had
from the output, nothing new is kept, since the next layer keeps that output as its input.
`jax.nn` has the same functions. All are computed in at least float32 and return the dtype of x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.contract import op
from manual_backprop.ops.arrays import want_float, wide


class FromInput(NamedTuple):
    x: jax.Array  # [...]


class FromOutput(NamedTuple):
    y: jax.Array  # [...]


class FromMask(NamedTuple):
    positive: jax.Array  # [...], bool


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


@op
def sigmoid():
    """y = 1 / (1 + e⁻ˣ);  dx = dy · y (1 - y).  Saved: y.  (Rumelhart, Hinton & Williams 1986.)"""
    return from_output("sigmoid", lax.logistic, lambda y: y * (1 - y))


@op
def tanh():
    """y = tanh x;  dx = dy · (1 - y²), as (1 - y)(1 + y): 1 - y is exact where y is near 1.  Saved: y.

    (LeCun, Bottou, Orr & Müller 1998, "Efficient BackProp".)
    """
    return from_output("tanh", lax.tanh, lambda y: (1 - y) * (1 + y))


@op
def relu():
    """y = max(x, 0);  dx = dy where y > 0, else 0; at the kink 0, as jax.nn.relu.  Saved: y.  (Nair & Hinton 2010.)"""

    def forward(x):
        want_float("relu", x=x)
        y = jnp.maximum(x, 0)
        return y, FromOutput(y)

    def backward(residuals, dy):
        return (jnp.where(residuals.y > 0, dy, 0),)

    return forward, backward


@op
def leaky_relu(*, negative_slope: float = 0.01):
    """y = x where x ≥ 0, else s x;  dx = dy where x ≥ 0, else s dy, for the slope s.

    Saved: the sign, one byte a number. (y's sign will not do: s x can underflow to zero, and s can be negative.)
    (Maas, Hannun & Ng 2013.)
    """

    def forward(x):
        want_float("leaky_relu", x=x)
        positive = x >= 0
        y = jnp.where(positive, wide(x), negative_slope * wide(x))
        return y.astype(x.dtype), FromMask(positive)

    def backward(residuals, dy):
        dx = jnp.where(residuals.positive, wide(dy), negative_slope * wide(dy))
        return (dx.astype(dy.dtype),)

    return forward, backward


@op
def softplus():
    """y = ln(1 + eˣ), as max(x, 0) + ln(1 + e⁻|ˣ|), which cannot overflow;  dx = dy · σ(x) = dy · (1 - e⁻ʸ).

    Saved: y.  (Dugas, Bengio, Bélisle, Nadeau & Garcia 2001.)
    """
    return from_output(
        "softplus",
        lambda x: jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x))),
        lambda y: -jnp.expm1(-y),
    )


@op
def silu():
    """y = x σ(x);  dx = dy · (σ + x σ (1 - σ)).  Saved: x, since y takes values twice.  (arXiv:1606.08415, 2016.)"""

    def derivative(x):
        s = lax.logistic(x)
        return s + x * s * (1 - s)

    return from_input("silu", lambda x: x * lax.logistic(x), derivative)


@op
def gelu(*, approximate: bool = True):
    """y = x Φ(x), Φ the normal distribution function.  Saved: x, since y takes values twice.  (arXiv:1606.08415, 2016.)

    exactly:              Φ = ½ erfc(-x/√2),   Φ′ = e^(-x²/2) / √(2π)
    `approximate=True`:   Φ = ½ (1 + t),  t = tanh u,  u = √(2/π) (x + 0.044715 x³),   Φ′ = ½ (1 - t²) u′

        dx = dy · (Φ + x Φ′)
    """

    def exact(x):
        return 0.5 * lax.erfc(-x * math.sqrt(0.5)), jnp.exp(-0.5 * x * x) * math.sqrt(0.5 / math.pi)

    def with_tanh(x):
        t = jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))
        du = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
        return 0.5 * (1 + t), 0.5 * (1 - t) * (1 + t) * du

    distribution = with_tanh if approximate else exact

    def derivative(x):
        phi, dphi = distribution(x)
        return phi + x * dphi

    return from_input("gelu", lambda x: x * distribution(x)[0], derivative)


ACTIVATIONS = {rule.__name__: rule for rule in (sigmoid, tanh, relu, leaky_relu, softplus, silu, gelu)}
