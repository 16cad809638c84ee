"""The inverse of a matrix (Giles 2008, "Collected matrix derivative results", section 2.2.3).

y a = 1, so dy a + y da = 0 as differentials: y changes by -y da y. With dy now the cotangent of y,

    da = -yᵀ dy yᵀ

Saved: y alone.
"""

from __future__ import annotations

from typing import NamedTuple

import jax

from manual_backprop.contract import op
from manual_backprop.ops.algebra.matrices import identity_like, lu, lu_solve, product, transposed, want_square
from manual_backprop.ops.arrays import Spec, spec, wide


class Residuals(NamedTuple):
    y: jax.Array  # [..., n, n]
    of_a: Spec


@op
def inverse():
    """a [..., n, n] → a⁻¹ [..., n, n], in at least float32; of a singular matrix inf or NaN. Derivation: the module.

    To solve a x = b, `solve` is faster and more accurate. Raises InputError for an a that is not square.
    """

    def forward(a):
        want_square("inverse", a=a)
        y = lu_solve(lu(wide(a)), identity_like(wide(a)))
        return y.astype(a.dtype), Residuals(y, spec(a))

    def backward(residuals, dy):
        y, of_a = residuals
        y_t = transposed(y)
        da = -product(product(y_t, wide(dy)), y_t)
        return (da.astype(of_a.dtype),)

    return forward, backward
