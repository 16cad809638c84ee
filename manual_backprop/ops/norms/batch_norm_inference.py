"""Batch normalisation by statistics that are given (Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 2, step 11).

For each channel of x [..., channels]:

    y = scale · x̂ + bias,    x̂ = (x - mean) · rstd,    rstd = 1/√(variance + eps)

Examples do not meet: mean and variance are arguments. ∂x̂/∂mean = -rstd and ∂x̂/∂variance = -½ rstd² x̂, so with
the sums over all axes but the last

    dbias = Σ dy,    dscale = rstd · Σ dy · (x - mean),    dx = dy · scale · rstd
    dmean = -scale · rstd · dbias,    dvariance = -½ scale · rstd² · dscale

Saved: the arguments, nothing new.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.contract import op
from manual_backprop.ops.arrays import wide
from manual_backprop.ops.norms.affine import affine, given, result_dtype
from manual_backprop.ops.norms.batch_norm import check
from manual_backprop.options import want_not_negative


class Residuals(NamedTuple):
    x: jax.Array  # [..., channels]
    scale: jax.Array | None  # [channels]
    bias: jax.Array | None  # [channels]
    mean: jax.Array  # [channels]
    variance: jax.Array  # [channels]


@op
def batch_norm_inference(*, eps: float = 1e-5, scale: bool = True, bias: bool = True):
    """x [..., channels]; scale, bias, mean, variance [channels] → y, by the statistics given; cotangents for all five.

    `scale=False` and `bias=False` take no such argument. y has the dtype of x, scale and bias; those of mean and
    variance, often wider, do not count.  Derivation: the module.
    Raises InputError when an argument does not fit x, and for a negative eps.
    """
    want_not_negative("batch_norm_inference", eps=eps)

    def forward(x, scale, bias, mean, variance):
        check("batch_norm_inference", x, scale=scale, bias=bias, mean=mean, variance=variance)
        y = affine((wide(x) - mean) * lax.rsqrt(wide(variance) + eps), scale, bias)
        return y.astype(result_dtype(x, scale, bias)), Residuals(x, scale, bias, mean, variance)

    def backward(residuals, dy):
        x, scale, bias, mean, variance = residuals
        leading = tuple(range(x.ndim - 1))
        dy, rstd = wide(dy), lax.rsqrt(wide(variance) + eps)
        a = rstd if scale is None else scale * rstd
        dbias = jnp.sum(dy, leading)
        dscale = jnp.sum(dy * (wide(x) - mean), leading) * rstd
        dx = dy * a
        dmean = -a * dbias
        dvariance = -0.5 * (a * rstd) * dscale
        return given(
            dx.astype(x.dtype),
            None if scale is None else dscale.astype(scale.dtype),
            None if bias is None else dbias.astype(bias.dtype),
            dmean.astype(mean.dtype),
            dvariance.astype(variance.dtype),
        )

    taking = {
        (True, True): forward,
        (True, False): lambda x, scale, mean, variance: forward(x, scale, None, mean, variance),
        (False, True): lambda x, bias, mean, variance: forward(x, None, bias, mean, variance),
        (False, False): lambda x, mean, variance: forward(x, None, None, mean, variance),
    }
    return taking[scale, bias], backward
