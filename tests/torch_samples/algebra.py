"""PyTorch's functions of this family, in our ops."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import manual_backprop as mb

o = mb.ops


def linalg_solve(A, B):
    return o.solve()(A, B)


def linalg_solve_triangular(A, B, *, upper, left=True, unitriangular=False):
    """PyTorch broadcasts the leading axes, we do not."""
    leading = jnp.broadcast_shapes(A.shape[:-2], B.shape[:-2])
    A, B = (jnp.broadcast_to(a, (*leading, *a.shape[-2:])) for a in (A, B))
    return o.triangular_solve(lower=not upper, left=left, unit_diagonal=unitriangular)(A, B)


def triangular_solve(b, A, upper=True, transpose=False, unitriangular=False):
    y = o.triangular_solve(lower=not upper, transpose=transpose, unit_diagonal=unitriangular)(A, b)
    return y, A


def linalg_inv(A):
    return o.inverse()(A)


def linalg_cholesky(A, *, upper=False):
    return o.cholesky(upper=upper)(A)


def linalg_slogdet(A):
    return jnp.linalg.slogdet(A)[0], o.log_determinant()(A)


def logdet(A):
    """NaN where the determinant is negative."""
    sign = jnp.linalg.slogdet(A)[0]
    return jnp.where(sign < 0, jnp.nan, o.log_determinant()(A))


def linalg_eigvalsh(A, UPLO="L"):
    """PyTorch reads one triangle, and gives the gradient of a symmetric matrix."""
    triangle = jnp.tril(A) if UPLO == "L" else jnp.triu(A)
    symmetric = triangle + jnp.swapaxes(triangle, -1, -2) - triangle * jnp.eye(A.shape[-1])
    return o.symmetric_eigenvalues()(A + jax.lax.stop_gradient(symmetric - A))
