"""A bilinear map: for each output a quadratic form in two vectors, plus a bias.

    y_o = Σᵢⱼ x1ᵢ w_oij x2ⱼ + b_o

It is linear in each of x1, w and x2, so each cotangent is the sum over paths of dy times the other two:

    dx1ᵢ = Σ_oj dy_o w_oij x2ⱼ,    dx2ⱼ = Σ_oi dy_o x1ᵢ w_oij,    dw_oij = Σ dy_o x1ᵢ x2ⱼ,    db = Σ dy

The order of the products decides the cost. Through pᵢⱼ = x1ᵢ x2ⱼ it is a dense map, y = w p, and one product dp = w dy
serves both dx1 = dp x2 and dx2 = x1 dp. Through u_oi = Σⱼ w_oij x2ⱼ it is y = u x1, and one du_oi = dy_o x1ᵢ serves
dx2 and dw; dx1 = dy u. Both take three large products; u is smaller than p when there are fewer outputs than entries
of x2, as in a score of one output.

Source: Tenenbaum & Freeman 2000, "Separating style and content with bilinear models", eq. 2 (their A, b and W).
Saved: the arguments; by way of u, u too, for a second computation would be a fourth large product.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from manual_backprop.contract import op
from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import Spec, spec, want_float, wide
from manual_backprop.ops.linear.dense import bias_gradient, product


class Residuals(NamedTuple):
    x1: jax.Array  # [..., in1]
    x2: jax.Array  # [..., in2]
    w: jax.Array  # [out, in1, in2]
    of_b: Spec | None  # [out]
    u: jax.Array | None  # [..., out, in1]


@op
def bilinear(*, bias: bool = True):
    """x1 [..., in1], x2 [..., in2], w [out, in1, in2], b [out] → y [..., out]; `bias=False` takes (x1, x2, w) alone.

    Products are summed in at least float32. Raises InputError for shapes that do not fit. Derivation: the module.
    """

    def forward(x1, x2, w, b):
        y, residuals = forward_without_bias(x1, x2, w)
        check_bias(w, b)
        dtype = jnp.result_type(y, b)
        return (y + b).astype(dtype), residuals._replace(of_b=spec(b))

    def forward_without_bias(x1, x2, w):
        check(x1, x2, w)
        if through_u(w):
            u = product(x2, (-1,), w, (2,))
            y = apply(u, x1)
        else:
            u = None
            y = product(outer(x1, x2), (-2, -1), w, (1, 2))
        return y.astype(jnp.result_type(x1, x2, w)), Residuals(x1, x2, w, None, u)

    def backward(residuals, dy):
        x1, x2, w, of_b, u = residuals
        leading = tuple(range(x1.ndim - 1))
        if through_u(w):
            du = outer(dy, x1)
            dx1 = apply(jnp.swapaxes(u, -1, -2), dy)
            dx2 = product(du, (-2, -1), w, (0, 1))
            dw = product(du, leading, x2, leading)
        else:
            dp = product(dy, (-1,), w, (0,))
            dx1 = apply(dp, x2)
            dx2 = apply(jnp.swapaxes(dp, -1, -2), x1)
            dw = product(dy, leading, outer(x1, x2), leading)
        cotangents = dx1.astype(x1.dtype), dx2.astype(x2.dtype), dw.astype(w.dtype)
        return (*cotangents, bias_gradient(dy, of_b)) if bias else cotangents

    return (forward if bias else forward_without_bias), backward


def through_u(w) -> bool:
    """Whether u [out, in1] is smaller than p [in1, in2]."""
    out, _, in2 = w.shape
    return out < in2


def outer(a, b) -> jax.Array:
    """aᵢ bⱼ, in at least float32."""
    return wide(a)[..., :, None] * wide(b)[..., None, :]


def apply(m, v) -> jax.Array:
    """Σⱼ mᵢⱼ vⱼ for each m [..., i, j] and v [..., j]."""
    return jnp.einsum("...ij,...j->...i", m, v)


def check(x1, x2, w) -> None:
    want_float("bilinear", x1=x1, x2=x2, w=w)
    if w.ndim != 3:
        raise InputError(f"bilinear: w has shape {w.shape}; wants [out, in1, in2]")
    if 0 in (x1.ndim, x2.ndim) or (x1.shape[-1], x2.shape[-1]) != w.shape[1:] or x1.shape[:-1] != x2.shape[:-1]:
        shapes = f"x1 has shape {x1.shape}, x2 {x2.shape}, w {w.shape}"
        raise InputError(f"bilinear: {shapes}; wants x1 [..., {w.shape[1]}] and x2 [..., {w.shape[2]}], ... alike")


def check_bias(w, b) -> None:
    want_float("bilinear", b=b)
    if b.shape != w.shape[:1]:
        raise InputError(f"bilinear: b has shape {b.shape}, w {w.shape}; b must be {w.shape[:1]}")
