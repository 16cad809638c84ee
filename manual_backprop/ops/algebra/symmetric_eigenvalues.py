"""The eigenvalues of a symmetric matrix: a vᵢ = yᵢ vᵢ (Giles 2008, "Collected matrix derivative results", section 3.1).

In the differential of this equation, multiplied by vᵢᵀ from the left, the terms in dvᵢ cancel, for vᵢᵀ a = yᵢ vᵢᵀ:
yᵢ changes by vᵢᵀ da vᵢ, so with V the matrix whose columns are the vᵢ,

    da = V diag(dy) Vᵀ

Where eigenvalues coincide this is one of several subgradients, and their second derivatives do not exist.
Saved: V.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from manual_backprop.contract import op
from manual_backprop.ops.algebra.matrices import product, symmetrized, transposed, want_square
from manual_backprop.ops.arrays import Spec, spec, wide


class Residuals(NamedTuple):
    v: jax.Array  # [..., n, n]
    of_a: Spec


@op
def symmetric_eigenvalues():
    """a [..., n, n] → its eigenvalues [..., n], ascending, in at least float32. Derivation: the module.

    a counts as (a + aᵀ) / 2, as `jnp.linalg.eigvalsh` has it. Raises InputError for an a that is not square.
    """

    def forward(a):
        want_square("symmetric_eigenvalues", a=a)
        y, v = jnp.linalg.eigh(symmetrized(wide(a)), symmetrize_input=False)
        return y.astype(a.dtype), Residuals(v, spec(a))

    def backward(residuals, dy):
        v, of_a = residuals
        da = product(v * wide(dy)[..., None, :], transposed(v))
        return (da.astype(of_a.dtype),)

    return forward, backward
