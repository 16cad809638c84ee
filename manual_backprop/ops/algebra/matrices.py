"""What the functions of a matrix share: products in full precision, the LU factors, and what does not fit."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.lax import linalg

from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import want_float


def product(a, b) -> jax.Array:
    """a b over the last two axes, no precision lost: what these functions solve for amplifies every rounding error."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def transposed(a) -> jax.Array:
    return jnp.swapaxes(a, -1, -2)


def symmetrized(a) -> jax.Array:
    return (a + transposed(a)) / 2


class LU(NamedTuple):
    """P a = L U: L below the diagonal of `factors` and one on it, U on and above."""

    factors: jax.Array  # [..., n, n]
    permutation: jax.Array  # [..., n]: row i of P a is row permutation[i] of a


def lu(a) -> LU:
    factors, _, permutation = linalg.lu(a)
    return LU(factors, permutation)


def lu_solve(lu: LU, b) -> jax.Array:
    """a⁻¹ b = U⁻¹ L⁻¹ P b, for b [..., n, m]."""
    factors, permutation = lu
    b = jnp.take_along_axis(b, permutation[..., None], -2)
    b = linalg.triangular_solve(factors, b, left_side=True, lower=True, unit_diagonal=True)
    return linalg.triangular_solve(factors, b, left_side=True, lower=False)


def lu_solve_transposed(lu: LU, b) -> jax.Array:
    """a⁻ᵀ b = Pᵀ L⁻ᵀ U⁻ᵀ b, for b [..., n, m]."""
    factors, permutation = lu
    b = linalg.triangular_solve(factors, b, left_side=True, lower=False, transpose_a=True)
    b = linalg.triangular_solve(factors, b, left_side=True, lower=True, transpose_a=True, unit_diagonal=True)
    return jnp.take_along_axis(b, jnp.argsort(permutation, -1)[..., None], -2)


def identity_like(a) -> jax.Array:
    """The identity, once for each matrix of a."""
    return jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape)


def want_square(op: str, **arguments) -> None:
    """Raises InputError for the first argument that is no square matrix, or several."""
    want_float(op, **arguments)
    for name, a in arguments.items():
        if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
            raise InputError(f"{op}: {name} has shape {a.shape}; wants [..., n, n]")


def as_columns(a, b) -> jax.Array:
    """b [..., n] as one column [..., n, 1]; b [..., n, m] as it is."""
    return b[..., None] if b.ndim < a.ndim else b


def want_right_side(op: str, a, b, left: bool = True) -> None:
    """Raises InputError unless b is one vector or several columns (rows, unless `left`) for each matrix of a."""
    want_float(op, b=b)
    n, vectors, axis = a.shape[-1], a.shape[:-1], -2 if left else -1
    columns = b.ndim == a.ndim and b.shape[:-2] == a.shape[:-2] and b.shape[axis] == n
    if not (columns or (left and b.shape == vectors)):
        wants = f"{vectors} or {(*vectors, 'm')}" if left else f"{(*a.shape[:-2], 'm', n)}"
        raise InputError(f"{op}: b has shape {b.shape}, a {a.shape}; b must be {wants}".replace("'m'", "m"))
