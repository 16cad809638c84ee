"""A dense map with a change of low rank: y = x w + scale · (x a) b, the adapter known as LoRA.

w [in, out] is a trained weight, a [in, rank] and b [rank, out] are what a fine-tuning learns. With h = x a:

    yⱼ = Σₖ xₖ wₖⱼ + scale · Σᵣ hᵣ bᵣⱼ,    hᵣ = Σₖ xₖ aₖᵣ

x reaches y by two paths, w and h. The gradient at h is dh = scale · dy bᵀ, a vector of only `rank` entries, and

    dx = dy wᵀ + dh aᵀ,    dw = Σ xᵀ dy,    da = Σ xᵀ dh,    db = scale · Σ hᵀ dy      (Σ over the leading axes)

`frozen=True` holds w constant, which is the point of the method: dw = 0, and no [in, out] product is formed.
Source: Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang & Chen 2021, arXiv:2106.09685, eq. 3; scale is their α/r.
Saved: the arguments. h is recomputed: rank products for each entry of x, where dx alone takes `out` of them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.contract import op
from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import want_float
from manual_backprop.ops.linear.dense import product


class Residuals(NamedTuple):
    x: jax.Array  # [..., in]
    w: jax.Array  # [in, out]
    a: jax.Array  # [in, rank]
    b: jax.Array  # [rank, out]


@op
def low_rank_dense(*, scale: float = 1.0, frozen: bool = False):
    """x [..., in], w [in, out], a [in, rank], b [rank, out] → y = x w + scale · (x a) b [..., out].

    `frozen=True`: w is a constant, its cotangent is zero. Products are summed in at least float32.
    Raises InputError when the inner sizes differ. Derivation: the module.
    """

    def forward(x, w, a, b):
        check(x, w, a, b)
        h = product(x, (-1,), a, (0,))
        y = product(x, (-1,), w, (0,)) + scale * product(h, (-1,), b, (0,))
        return y.astype(jnp.result_type(x, w, a, b)), Residuals(x, w, a, b)

    def backward(residuals, dy):
        x, w, a, b = residuals
        leading = tuple(range(x.ndim - 1))
        w = lax.stop_gradient(w) if frozen else w
        h = product(x, (-1,), a, (0,))
        dh = scale * product(dy, (-1,), b, (1,))
        dx = product(dy, (-1,), w, (1,)) + product(dh, (-1,), a, (1,))
        dw = jnp.zeros(w.shape) if frozen else product(x, leading, dy, leading)
        da = product(x, leading, dh, leading)
        db = scale * product(h, leading, dy, leading)
        return dx.astype(x.dtype), dw.astype(w.dtype), da.astype(a.dtype), db.astype(b.dtype)

    return forward, backward


def check(x, w, a, b) -> None:
    want_float("low_rank_dense", x=x, w=w, a=a, b=b)
    if w.ndim != 2 or a.ndim != 2 or b.ndim != 2:
        shapes = f"w has shape {w.shape}, a {a.shape}, b {b.shape}"
        raise InputError(f"low_rank_dense: {shapes}; wants [in, out], [in, rank], [rank, out]")
    if x.ndim == 0 or x.shape[-1] != w.shape[0]:
        raise InputError(f"low_rank_dense: x has shape {x.shape}, w {w.shape}; x's last axis must be {w.shape[0]}")
    rank = a.shape[1]
    if a.shape[0] != w.shape[0] or b.shape != (rank, w.shape[1]):
        wants = f"a ({w.shape[0]}, rank), b (rank, {w.shape[1]})"
        raise InputError(f"low_rank_dense: a has shape {a.shape}, b {b.shape}, w {w.shape}; wants {wants}")
