"""Cosine similarity of vectors along one axis.

    y = u · v / (|u| |v|),    |u| = max(√Σuⱼ², eps),    |v| likewise

u reaches y by the product and by its own length, where ∂|u|/∂u = u / |u|, or 0 where eps stands for the length. With
[…] = 1 where it holds, else 0, and Σ over the copies of a u that was broadcast:

    du = Σ dy · (v / (|u| |v|) - y u [|u| > eps] / |u|²),    dv likewise

Source: the quotient rule; the use of eps is that of `torch.nn.functional.cosine_similarity` (Paszke 2019).
Saved: the arguments and three numbers a pair (y and the two lengths).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from manual_backprop.contract import op
from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import sum_to, want_axis, want_float, wide
from manual_backprop.options import want_positive


class Residuals(NamedTuple):
    u: jax.Array  # [..., d, ...]
    v: jax.Array  # [..., d, ...]
    y: jax.Array  # [..., 1, ...]
    u_length: jax.Array  # [..., 1, ...]
    v_length: jax.Array  # [..., 1, ...]


@op
def cosine_similarity(*, axis: int = -1, eps: float = 1e-8):
    """u, v of shapes that broadcast → y of their shape without `axis`, and of their dtype.

    It is no mean and no cost yet: 1 - y is what one minimises.
    Raises InputError unless eps > 0, for an axis out of range and for shapes that do not broadcast.
    """
    want_positive("cosine_similarity", eps=eps)

    def forward(u, v):
        u_, v_, along = aligned(u, v, axis)
        u_length, v_length = length(u_, along, eps), length(v_, along, eps)
        y = jnp.sum(u_ * v_, along, keepdims=True) / (u_length * v_length)
        return jnp.squeeze(y, along).astype(jnp.result_type(u, v)), Residuals(u, v, y, u_length, v_length)

    def backward(residuals, dy):
        u, v, y, u_length, v_length = residuals
        u_, v_, along = aligned(u, v, axis)
        dy = jnp.expand_dims(wide(dy), along)
        du = dy / (u_length * v_length) * v_ - dy * y * own(u_length, eps) * u_
        dv = dy / (u_length * v_length) * u_ - dy * y * own(v_length, eps) * v_
        return sum_to(du, u.shape).astype(u.dtype), sum_to(dv, v.shape).astype(v.dtype)

    def own(size, eps):
        """[|u| > eps] / |u|²."""
        return jnp.where(size > eps, 1 / (size * size), 0)

    return forward, backward


def length(x, along: int, eps: float) -> jax.Array:
    """|x| along one axis, which stays with size 1."""
    square = jnp.sum(jnp.square(x), along, keepdims=True)
    return jnp.sqrt(jnp.where(square > eps * eps, square, eps * eps))


def aligned(u, v, axis: int) -> tuple[jax.Array, jax.Array, int]:
    """u and v in at least float32, with as many axes as each other and as many entries along the axis; the axis."""
    want_float("cosine_similarity", u=u, v=v)
    try:
        shape = np.broadcast_shapes(u.shape, v.shape)
    except ValueError:
        raise InputError(
            f"cosine_similarity: u has shape {u.shape}, v {v.shape}; wants shapes that broadcast"
        ) from None
    along = want_axis("cosine_similarity", axis, len(shape))

    def stretched(x):
        x = x.reshape((1,) * (len(shape) - x.ndim) + x.shape)
        return jnp.broadcast_to(wide(x), (*x.shape[:along], shape[along], *x.shape[along + 1 :]))

    return *map(stretched, (u, v)), along
