"""The solution of linear equations: a x = b for x (Giles 2008, "Collected matrix derivative results", section 2.3.1).

da x + a dx = db as differentials gives dx = a⁻¹ (db - da x). What multiplies db and da in ⟨x's cotangent, dx⟩ are the
cotangents; with y the solution and dy its cotangent,

    db = a⁻ᵀ dy,    da = -db yᵀ          (summed over the columns of y)

Saved: the LU factors of a, with which the backward pass solves aᵀ without factoring again, and y.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from manual_backprop.contract import op
from manual_backprop.ops.algebra.matrices import (
    LU,
    as_columns,
    lu,
    lu_solve,
    lu_solve_transposed,
    product,
    transposed,
    want_right_side,
    want_square,
)
from manual_backprop.ops.arrays import Spec, spec, wide


class Residuals(NamedTuple):
    lu: LU
    y: jax.Array  # [..., n, m]
    of_a: Spec
    of_b: Spec


@op
def solve():
    """a [..., n, n], b [..., n] or [..., n, m], the same leading axes → a⁻¹ b, shaped as b.

    In at least float32. A singular a gives inf or NaN, as jnp.linalg.solve. Derivation: the module.
    Raises InputError for an a that is not square, or a b that does not fit it.
    """

    def forward(a, b):
        want_square("solve", a=a)
        want_right_side("solve", a, b)
        factors = lu(wide(a))
        y = lu_solve(factors, wide(as_columns(a, b)))
        dtype = jnp.result_type(a, b)
        return y.reshape(b.shape).astype(dtype), Residuals(factors, y, spec(a), spec(b))

    def backward(residuals, dy):
        factors, y, of_a, of_b = residuals
        db = lu_solve_transposed(factors, wide(dy).reshape(y.shape))
        da = -product(db, transposed(y))
        return da.astype(of_a.dtype), db.reshape(of_b.shape).astype(of_b.dtype)

    return forward, backward
