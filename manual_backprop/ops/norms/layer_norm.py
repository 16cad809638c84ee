"""Layer normalisation over the last axis (Ba, Kiros & Hinton 2016, arXiv:1607.06450, eq. 4).

For each vector x of d entries, ⟨·⟩ the mean over them:

    y = scale · x̂ + bias,    x̂ = (x - ⟨x⟩) · rstd,    rstd = 1/√(⟨(x - ⟨x⟩)²⟩ + eps)

xᵢ reaches y by three paths: itself, the mean, and rstd, where ∂rstd/∂xᵢ = -rstd² x̂ᵢ / d. With g = dy · scale the sum is

    dx = rstd · (g - ⟨g⟩ - x̂ · ⟨g · x̂⟩),    dscale = Σ dy · x̂,    dbias = Σ dy      (Σ over the leading axes)

Saved: x and two numbers a vector; x̂ is recomputed, a few flops for a third of the memory.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.contract import InputError, op
from manual_backprop.ops.arrays import want_float, wide


class Residuals(NamedTuple):
    x: jax.Array  # [..., d]
    scale: jax.Array  # [d]
    bias: jax.Array  # [d]
    mean: jax.Array  # [..., 1]
    rstd: jax.Array  # [..., 1]


@op
def layer_norm(*, eps: float = 1e-5):
    """x [..., d], scale [d], bias [d] → y [..., d], statistics in at least float32.

    Raises InputError when scale or bias do not fit x's last axis. Derivation: the module.
    """

    def forward(x, scale, bias):
        check(x, scale, bias)
        x_ = wide(x)
        mean = jnp.mean(x_, -1, keepdims=True)
        rstd = lax.rsqrt(jnp.mean(jnp.square(x_ - mean), -1, keepdims=True) + eps)
        y = scale * ((x_ - mean) * rstd) + bias
        return y.astype(jnp.result_type(x, scale, bias)), Residuals(x, scale, bias, mean, rstd)

    def backward(residuals, dy):
        x, scale, bias, mean, rstd = residuals
        leading = tuple(range(x.ndim - 1))
        dy = wide(dy)
        x_hat = (wide(x) - mean) * rstd
        g = dy * scale
        dx = rstd * (g - jnp.mean(g, -1, keepdims=True) - x_hat * jnp.mean(g * x_hat, -1, keepdims=True))
        dscale = jnp.sum(dy * x_hat, leading)
        dbias = jnp.sum(dy, leading)
        return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)

    return forward, backward


def check(x, scale, bias) -> None:
    want_float("layer_norm", x=x, scale=scale, bias=bias)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise InputError(f"layer_norm: x has shape {x.shape}; wants a last axis of at least one entry")
    for name, value in (("scale", scale), ("bias", bias)):
        if value.shape != x.shape[-1:]:
            raise InputError(f"layer_norm: {name} has shape {value.shape}, x {x.shape}; {name} must be {x.shape[-1:]}")
