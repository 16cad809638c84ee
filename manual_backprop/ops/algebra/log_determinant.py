"""The logarithm of a determinant's absolute value (Giles 2008, "Collected matrix derivative results", section 2.2.4).

With L U = P a, the determinant is ± Πᵢ Uᵢᵢ, so

    y = ln |det a| = Σᵢ ln |Uᵢᵢ|

∂ det a / ∂aᵢⱼ is the cofactor of aᵢⱼ, det a · (a⁻¹)ⱼᵢ (Jacobi), and dividing by det a leaves

    da = dy · a⁻ᵀ

Saved: the LU factors, from which the backward pass has a⁻ᵀ without factoring again.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from manual_backprop.contract import op
from manual_backprop.ops.algebra.matrices import LU, identity_like, lu, lu_solve_transposed, want_square
from manual_backprop.ops.arrays import Spec, spec, wide


class Residuals(NamedTuple):
    lu: LU
    of_a: Spec


@op
def log_determinant():
    """a [..., n, n] → ln |det a| [...], in at least float32. Derivation: the module.

    Of a singular matrix -inf, and a gradient of inf or NaN. Raises InputError for an a that is not square.
    """

    def forward(a):
        want_square("log_determinant", a=a)
        factors = lu(wide(a))
        y = jnp.sum(jnp.log(jnp.abs(jnp.diagonal(factors.factors, axis1=-2, axis2=-1))), -1)
        return y.astype(a.dtype), Residuals(factors, spec(a))

    def backward(residuals, dy):
        factors, of_a = residuals
        da = wide(dy)[..., None, None] * lu_solve_transposed(factors, identity_like(factors.factors))
        return (da.astype(of_a.dtype),)

    return forward, backward
