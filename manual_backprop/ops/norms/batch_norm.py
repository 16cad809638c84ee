"""Batch normalisation (Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 1).

For each channel of x [..., channels], ⟨·⟩ the mean over all the other axes, n values:

    y = scale · x̂ + bias,    x̂ = (x - mean) · rstd,    rstd = 1/√(variance + eps)
    mean = ⟨x⟩,    variance = ⟨(x - mean)²⟩

Every example reaches the y of every other one through mean and variance. With g = dy · scale the paths add up to
dx = rstd · (g - ⟨g⟩ - x̂ · ⟨g · x̂⟩), as in `layer_norm`; here scale and rstd are constant in the mean, so

    dbias = Σ dy,    dscale = rstd · Σ dy · (x - mean)
    dx = scale · rstd · (dy - dbias / n - (x - mean) · rstd · dscale / n)

which is two sums over dy and x, and one affine pass.

Saved: x and two numbers a channel, mean and variance, from which a layer updates its running statistics.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.contract import op
from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import wide
from manual_backprop.ops.norms.affine import affine, given, result_dtype, taking, want_parameters
from manual_backprop.options import want_not_negative


class Residuals(NamedTuple):
    x: jax.Array  # [..., channels]
    scale: jax.Array | None  # [channels]
    bias: jax.Array | None  # [channels]
    mean: jax.Array  # [channels]
    variance: jax.Array  # [channels], that of the batch: Σ (x - mean)² / n


@op
def batch_norm(*, eps: float = 1e-5, scale: bool = True, bias: bool = True):
    """x [..., channels], scale [channels], bias [channels] → y, by the statistics of this batch: for training.

    `scale=False` and `bias=False` take no such argument. Statistics in at least float32, in two passes; of an empty
    batch they are 0.  Derivation: the module.
    Raises InputError where a channel has one value alone, when scale or bias do not fit x, and for a negative eps.
    """
    want_not_negative("batch_norm", eps=eps)

    def forward(x, scale, bias):
        check("batch_norm", x, scale=scale, bias=bias)
        if count(x) == 1:
            raise InputError(
                f"batch_norm: x has shape {x.shape}, one value a channel; a variance wants at least two: "
                "a larger batch, or batch_norm_inference"
            )
        leading, n = tuple(range(x.ndim - 1)), max(count(x), 1)
        x_ = wide(x)
        mean = jnp.sum(x_, leading) / n
        variance = jnp.sum(jnp.square(x_ - mean), leading) / n
        y = affine((x_ - mean) * lax.rsqrt(variance + eps), scale, bias)
        return y.astype(result_dtype(x, scale, bias)), Residuals(x, scale, bias, mean, variance)

    def backward(residuals, dy):
        x, scale, bias, mean, variance = residuals
        leading, n = tuple(range(x.ndim - 1)), max(count(x), 1)
        dy, rstd = wide(dy), lax.rsqrt(variance + eps)
        # The zero waits for dy: else a CPU computes x - mean with the forward pass, and keeps it, as large as x.
        centred = wide(x) - (mean + 0 * jnp.sum(dy.reshape(-1, dy.shape[-1])[:1], 0))
        a = rstd if scale is None else scale * rstd
        dbias = jnp.sum(dy, leading)
        dscale = jnp.sum(dy * centred, leading) * rstd
        dx = a * (dy - dbias / n - centred * (rstd * dscale / n))
        return given(
            dx.astype(x.dtype),
            None if scale is None else dscale.astype(scale.dtype),
            None if bias is None else dbias.astype(bias.dtype),
        )

    return taking(forward, scale, bias), backward


def count(x) -> int:
    """How many values a channel has."""
    return x.size // x.shape[-1]


def check(op: str, x, **parameters) -> None:
    if x.ndim == 0 or x.shape[-1] == 0:
        raise InputError(f"{op}: x has shape {x.shape}; wants [..., channels], at least one channel")
    want_parameters(op, x, x.shape[-1:], **parameters)
