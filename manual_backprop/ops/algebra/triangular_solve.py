"""The solution of linear equations with a triangular matrix (Giles 2008, "Collected matrix derivative results").

With t = a or aᵀ, of a only one triangle, the other being zero whatever is stored there:

    t y = b:    db = t⁻ᵀ dy,    dt = -db yᵀ
    y t = b:    db = dy t⁻ᵀ,    dt = -yᵀ db          (`left=False`)

as for any matrix (see `solve`), and da = dt or dtᵀ on the triangle, 0 off it; 0 on a diagonal that counts as ones too.
Saved: a and y. Nothing is factored.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import linalg

from manual_backprop.contract import op
from manual_backprop.ops.algebra.matrices import as_columns, product, transposed, want_right_side, want_square
from manual_backprop.ops.arrays import Spec, spec, wide


class Residuals(NamedTuple):
    a: jax.Array  # [..., n, n]
    y: jax.Array  # [..., n, m], or [..., m, n]
    of_b: Spec


@op
def triangular_solve(*, lower: bool = True, transpose: bool = False, unit_diagonal: bool = False, left: bool = True):
    """a [..., n, n], b [..., n] or [..., n, m], the same leading axes → y shaped as b, in at least float32.

    lower: which triangle of a is read.  transpose: aᵀ y = b.  unit_diagonal: the diagonal counts as ones.
    `left=False`: y a = b, with b [..., m, n]. A zero on the diagonal gives inf or NaN. Derivation: the module.
    Raises InputError for an a that is not square, or a b that does not fit it.
    """

    def solved(a, b, transpose):
        return linalg.triangular_solve(
            a, b, left_side=left, lower=lower, transpose_a=transpose, unit_diagonal=unit_diagonal
        )

    def forward(a, b):
        want_square("triangular_solve", a=a)
        want_right_side("triangular_solve", a, b, left)
        common = jnp.result_type(wide(a), b)
        y = solved(a.astype(common), as_columns(a, b).astype(common), transpose)
        return y.reshape(b.shape).astype(jnp.result_type(a, b)), Residuals(a, y, spec(b))

    def backward(residuals, dy):
        a, y, of_b = residuals
        db = solved(a.astype(y.dtype), dy.reshape(y.shape).astype(y.dtype), not transpose)
        dt = -product(db, transposed(y)) if left else -product(transposed(y), db)
        da = triangle(transposed(dt) if transpose else dt)
        return da.astype(a.dtype), db.reshape(of_b.shape).astype(of_b.dtype)

    def triangle(a):
        off = 1 if unit_diagonal else 0
        return jnp.tril(a, -off) if lower else jnp.triu(a, off)

    return forward, backward
