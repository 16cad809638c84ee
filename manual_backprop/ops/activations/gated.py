"""Gated activations: one number opens and closes the way of another.

    y = a · value,    a = f(gate):    da = dy · value,    dgate = da · f′(gate),    dvalue = dy · a

Saved: the arguments alone; autodiff keeps what it computed of them as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.contract import op
from manual_backprop.errors import InputError
from manual_backprop.ops.activations.gelu import normal_distribution
from manual_backprop.ops.activations.rules import FromInput
from manual_backprop.ops.arrays import want_axis, want_float, want_shape, wide


class Residuals(NamedTuple):
    gate: jax.Array  # [...]
    value: jax.Array  # [...]


@op
def glu(*, axis: int = -1):
    """x is split into halves a, b along the axis: y = a σ(b);  dx = (dy · σ, dy · a σ (1 - σ)).  Saved: x.

    Raises InputError when the axis is of odd size.  (Dauphin, Fan, Auli & Grangier 2017, arXiv:1612.08083.)
    """

    def forward(x):
        check_halves(x, axis)
        a, b = jnp.split(wide(x), 2, axis)
        return (a * lax.logistic(b)).astype(x.dtype), FromInput(x)

    def backward(residuals, dy):
        (x,), dy = residuals, wide(dy)
        a, b = jnp.split(wide(x), 2, axis)
        s = lax.logistic(b)
        dx = jnp.concatenate([dy * s, dy * (a * s * (1 - s))], axis)
        return (dx.astype(x.dtype),)

    return forward, backward


@op
def geglu(*, approximate: bool = True):
    """gate [...], value [...] → y = a · value, a = gelu(gate) = gate Φ(gate).

    da = dy · value,  dgate = da · (Φ + gate Φ′),  dvalue = dy · a.  Saved: the arguments.
    (Shazeer 2020, arXiv:2002.05202, eq. 6.)
    """

    def gelu(x):
        phi, dphi = normal_distribution(x, approximate)
        return x * phi, phi + x * dphi

    return gated("geglu", gelu)


@op
def swiglu():
    """gate [...], value [...] → y = a · value, a = silu(gate) = gate σ(gate).

    da = dy · value,  dgate = da · σ (1 + gate (1 - σ)),  dvalue = dy · a.  Saved: the arguments.
    (Shazeer 2020, arXiv:2002.05202, eq. 6.)
    """

    def silu(x):
        s = lax.logistic(x)
        return x * s, s * (1 + x * (1 - s))

    return gated("swiglu", silu)


def gated(name: str, f: Callable):
    """y = f(gate) · value, for f that gives its value and its derivative."""

    def forward(gate, value):
        want_float(name, gate=gate, value=value)
        want_shape(name, gate.shape, "as gate", value=value)
        a, _ = f(wide(gate))
        y = a * wide(value)
        return y.astype(jnp.result_type(gate, value)), Residuals(gate, value)

    def backward(residuals, dy):
        gate, value = residuals
        dy = wide(dy)
        a, derivative = f(wide(gate))
        da = dy * wide(value)
        dgate = da * derivative
        dvalue = dy * a
        return dgate.astype(gate.dtype), dvalue.astype(value.dtype)

    return forward, backward


def check_halves(x, axis: int) -> None:
    want_float("glu", x=x)
    number = want_axis("glu", axis, x.ndim)
    if x.shape[number] % 2:
        raise InputError(f"glu: x has shape {x.shape}; wants axis {axis} of even size, to be halved")
