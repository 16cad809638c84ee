"""Root mean square normalisation over the trailing axes (Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4).

Layer normalisation that does not centre. For each vector x of d entries, ⟨·⟩ the mean over them:

    y = scale · x̂,    x̂ = x · rstd,    rstd = 1/√(⟨x²⟩ + eps)

xᵢ reaches y by two paths: itself, and rstd, where ∂rstd/∂xᵢ = -rstd² x̂ᵢ / d. With g = dy · scale the sum is

    dx = rstd · (g - x̂ · ⟨g · x̂⟩),    dscale = Σ dy · x̂        (Σ over the leading axes)

⟨g · x̂⟩ and dscale are sums of one table, t = dy · x̂, by rows and by columns, as in `layer_norm`.

Saved: x and one number a vector, rstd.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.contract import op
from manual_backprop.errors import want_count
from manual_backprop.ops.arrays import wide
from manual_backprop.ops.norms.affine import affine, given, result_dtype, taking
from manual_backprop.ops.norms.layer_norm import check, row_sums
from manual_backprop.options import want_not_negative


class Residuals(NamedTuple):
    x: jax.Array  # [..., *d], d the trailing axes
    scale: jax.Array | None  # [*d]
    rstd: jax.Array  # [..., *1]


@op
def rms_norm(*, eps: float = 1e-6, trailing_axes: int = 1, scale: bool = True):
    """x [..., *d], scale [*d] → y [..., *d], where d are the last `trailing_axes` axes; `scale=False` takes x alone.

    Squares are summed in at least float32; entries above 1e19/√d have squares beyond its end: y and dx are then 0.
    Raises InputError when scale does not fit x, when there is nothing to normalise, and for a negative eps.
    """
    want_not_negative("rms_norm", eps=eps)
    trailing_axes = want_count("rms_norm: trailing_axes", trailing_axes)
    axes = tuple(range(-trailing_axes, 0))

    def forward(x, scale, _):
        check("rms_norm", x, trailing_axes, scale=scale)
        rstd = lax.rsqrt(jnp.mean(jnp.square(wide(x)), axes, keepdims=True) + eps)
        y = affine(wide(x) * rstd, scale, None)
        return y.astype(result_dtype(x, scale)), Residuals(x, scale, rstd)

    def backward(residuals, dy):
        x, scale, rstd = residuals
        dy, x_hat = wide(dy), wide(x) * rstd
        t = dy * x_hat
        mean_g_x_hat = row_sums(t, scale, axes) / math.prod(x.shape[-trailing_axes:])
        g = dy if scale is None else dy * scale
        dx = rstd * (g - x_hat * mean_g_x_hat)
        dscale = None if scale is None else jnp.sum(t, tuple(range(x.ndim - trailing_axes))).astype(scale.dtype)
        return given(dx.astype(x.dtype), dscale)

    return taking(forward, scale, bias=False), backward
