"""Layer normalisation over the trailing axes (Ba, Kiros & Hinton 2016, arXiv:1607.06450, eq. 4).

For each vector x of d entries, ⟨·⟩ the mean over them:

    y = scale · x̂ + bias,    x̂ = (x - mean) · rstd,    mean = ⟨x⟩,    rstd = 1/√(⟨(x - mean)²⟩ + eps)

xᵢ reaches y by three paths: itself, the mean, and rstd, where ∂rstd/∂xᵢ = -rstd² x̂ᵢ / d. With g = dy · scale the sum is

    dx = rstd · (g - ⟨g⟩ - x̂ · ⟨g · x̂⟩),    dscale = Σ dy · x̂,    dbias = Σ dy      (Σ over the leading axes)

⟨g · x̂⟩ and dscale are sums of one table, t = dy · x̂: along its rows with the weights scale / d, and along its columns.
The weighted sums are matrices times vectors: faster than to multiply first and then to add.

Saved: x and two numbers a vector; x̂ is recomputed, a few flops for a third of the memory.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.contract import op
from manual_backprop.errors import InputError, want_count
from manual_backprop.ops.arrays import wide
from manual_backprop.ops.norms.affine import affine, given, result_dtype, taking, want_parameters
from manual_backprop.options import want_not_negative


class Residuals(NamedTuple):
    x: jax.Array  # [..., *d], d the trailing axes
    scale: jax.Array | None  # [*d]
    bias: jax.Array | None  # [*d]
    mean: jax.Array  # [..., *1]
    rstd: jax.Array  # [..., *1]


@op
def layer_norm(*, eps: float = 1e-5, trailing_axes: int = 1, scale: bool = True, bias: bool = True):
    """x [..., *d], scale [*d], bias [*d] → y [..., *d], where d are the last `trailing_axes` axes.

    `scale=False` and `bias=False` take no such argument. Statistics in at least float32, in two passes: the variance of
    entries far from zero is as accurate as they are. Entries above 1e19/√d in float32 have squares beyond its end:
    rstd is then 0, and so is dx. A constant vector has x̂ = 0. Derivation: the module.
    Raises InputError when scale or bias do not fit x, when there is nothing to normalise, and for a negative eps.
    """
    want_not_negative("layer_norm", eps=eps)
    trailing_axes = want_count("layer_norm: trailing_axes", trailing_axes)
    axes = tuple(range(-trailing_axes, 0))

    def forward(x, scale, bias):
        check("layer_norm", x, trailing_axes, scale=scale, bias=bias)
        x_ = wide(x)
        mean = jnp.mean(x_, axes, keepdims=True)
        rstd = lax.rsqrt(jnp.mean(jnp.square(x_ - mean), axes, keepdims=True) + eps)
        y = affine((x_ - mean) * rstd, scale, bias)
        return y.astype(result_dtype(x, scale, bias)), Residuals(x, scale, bias, mean, rstd)

    def backward(residuals, dy):
        x, scale, bias, mean, rstd = residuals
        dy, x_hat = wide(dy), (wide(x) - mean) * rstd
        t = dy * x_hat
        d, leading = math.prod(x.shape[-trailing_axes:]), tuple(range(x.ndim - trailing_axes))
        mean_g, mean_g_x_hat = row_sums(dy, scale, axes) / d, row_sums(t, scale, axes) / d
        g = dy if scale is None else dy * scale
        dx = rstd * (g - mean_g - x_hat * mean_g_x_hat)
        dscale = None if scale is None else jnp.sum(t, leading).astype(scale.dtype)
        dbias = None if bias is None else jnp.sum(dy, leading).astype(bias.dtype)
        return given(dx.astype(x.dtype), dscale, dbias)

    return taking(forward, scale, bias), backward


def row_sums(t, weights, axes) -> jax.Array:
    """Σ over the trailing axes of t · weights, which may be None: [..., *d] → [..., *1]."""
    if weights is None:
        return jnp.sum(t, axes, keepdims=True)
    return jnp.expand_dims(jnp.tensordot(t, weights, len(axes), precision=lax.Precision.HIGHEST), axes)


def check(op: str, x, trailing_axes: int, **parameters) -> None:
    """Raises InputError unless x has so many trailing axes, not empty, and the parameters their shape."""
    trailing = x.shape[-trailing_axes:]
    if x.ndim < trailing_axes or 0 in trailing:
        wanted = "a last axis" if trailing_axes == 1 else f"{trailing_axes} trailing axes"
        raise InputError(f"{op}: x has shape {x.shape}; wants {wanted} of at least one entry")
    want_parameters(op, x, trailing, **parameters)
