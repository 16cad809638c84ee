"""Vectors of length one: each vector x along the axes over its own length.

    y = x / n,    n = max(‖x‖, eps),    ‖x‖ = m √Σ (x/m)²,    m = max |x|

x reaches y by itself, and through n where that is not eps. There ∂n/∂x = x / n; elsewhere n is constant. With w = 1/n
where ‖x‖ > eps and w = 0 elsewhere, the two paths are

    dx = (dy - x · (Σ dy · w · x) / n) / n      (Σ along the axes)

m takes nothing from the result: no square is beyond the end of the dtype, nor all of them below its start. A vector of
zeros has a gradient, dy / eps, where the square root has none. (The code takes the root of no number below the smallest
normal one: second derivatives are finite there too.)

Source: Salimans & Kingma 2016, arXiv:1602.07868, eq. 3, the projection away from x.
Saved: x and n, one number a vector.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.contract import op
from manual_backprop.ops.arrays import want_axes, want_float, wide
from manual_backprop.options import want_not_negative


class Residuals(NamedTuple):
    x: jax.Array  # [...]
    n: jax.Array  # x's shape, the axes of size 1


@op
def l2_norm(*, axis: int | tuple[int, ...] | None = -1, eps: float = 1e-12):
    """x [...] → y [...], of length one along the axis, the axes, or, for None, all of them; shorter where ‖x‖ < eps.

    Squares are summed in at least float32.
    Raises InputError for an axis that x has not, and for a negative eps.
    """
    want_not_negative("l2_norm", eps=eps)

    def forward(x):
        want_float("l2_norm", x=x)
        axes = want_axes("l2_norm", axis, x.ndim)
        n = jnp.maximum(length(wide(x), axes), eps)
        return (wide(x) / n).astype(x.dtype), Residuals(x, n)

    def backward(residuals, dy):
        x, n = residuals
        axes = want_axes("l2_norm", axis, x.ndim)
        dy, x_ = wide(dy), wide(x)
        w = jnp.where(n > eps, 1 / n, 0)
        dx = (dy - x_ * (jnp.sum(dy * w * x_, axes, keepdims=True) / n)) / n
        return (dx.astype(x.dtype),)

    return forward, backward


def length(x, axes: tuple[int, ...]) -> jax.Array:
    """‖x‖ along the axes, of size 1 there."""
    tiny = jnp.finfo(x.dtype).tiny  # m and 1/m are normal numbers
    m = lax.stop_gradient(jnp.clip(jnp.max(jnp.abs(x), axes, keepdims=True, initial=0), tiny, 1 / tiny))
    squares = jnp.sum(jnp.square(x * (1 / m)), axes, keepdims=True)
    return m * jnp.sqrt(jnp.maximum(squares, tiny))
