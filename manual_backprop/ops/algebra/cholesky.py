"""The Cholesky factor: L Lᵀ = a, L lower triangular, for a symmetric positive definite a.

As differentials, dL Lᵀ + L dLᵀ = da; between L⁻¹ and L⁻ᵀ the two terms are a lower triangular matrix and its transpose:

    L⁻¹ dL + (L⁻¹ dL)ᵀ = L⁻¹ da L⁻ᵀ,    so    dL = L Φ(L⁻¹ da L⁻ᵀ)

Φ takes the lower triangle, and half of the diagonal, which both terms share. Φ is its own adjoint, so with dL now the
cotangent of L,

    s = L⁻ᵀ Φ(Lᵀ dL) L⁻¹,    da = (s + sᵀ) / 2

a counts as (a + aᵀ) / 2, as `jnp.linalg.cholesky` has it: da is symmetric, and entries across the diagonal share.
Source: Murray 2016, "Differentiation of the Cholesky decomposition", arXiv:1602.07527, eqs. 8-10.
Saved: L alone.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import linalg

from manual_backprop.contract import op
from manual_backprop.ops.algebra.matrices import product, symmetrized, transposed, want_square
from manual_backprop.ops.arrays import Spec, spec, wide


class Residuals(NamedTuple):
    lower: jax.Array  # [..., n, n]
    of_a: Spec


@op
def cholesky(*, upper: bool = False):
    """a [..., n, n], symmetric → L [..., n, n] with L Lᵀ = a, or Lᵀ with `upper`; in at least float32.

    Of a matrix that is not positive definite NaN. Derivation: the module.
    Raises InputError for an a that is not square.
    """

    def forward(a):
        want_square("cholesky", a=a)
        lower = jnp.tril(linalg.cholesky(symmetrized(wide(a)), symmetrize_input=False))
        y = transposed(lower) if upper else lower
        return y.astype(a.dtype), Residuals(lower, spec(a))

    def backward(residuals, dy):
        lower, of_a = residuals
        dlower = wide(transposed(dy) if upper else dy)
        s = phi(product(transposed(lower), dlower))
        s = linalg.triangular_solve(lower, s, left_side=True, lower=True, transpose_a=True)
        s = linalg.triangular_solve(lower, s, left_side=False, lower=True)
        da = symmetrized(s)
        return (da.astype(of_a.dtype),)

    return forward, backward


def phi(a) -> jax.Array:
    """The lower triangle with half of the diagonal."""
    return jnp.tril(a) - jnp.tril(jnp.triu(a)) / 2
