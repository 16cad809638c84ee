"""Matrix calculus. Matrices are drawn well conditioned: what a condition number amplifies is no mistake of ours."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import manual_backprop as mb
from cases.case import Case, Draw, exactly, layer_case
from manual_backprop.layers import Apply
from manual_backprop.ops.arrays import wide

o = mb.ops


def general(*shape: int) -> Draw:
    """Matrices [..., n, n] near n times the identity."""
    return lambda rng: (rng.standard_normal(shape) + shape[-1] * np.eye(shape[-1]),)


def positive(*shape: int) -> Draw:
    """Positive definite matrices, and a part that is not symmetric."""

    def draw(rng):
        a = rng.standard_normal(shape)
        return (a @ np.swapaxes(a, -1, -2) / shape[-1] + np.eye(shape[-1]) + 0.1 * np.triu(a, 1),)

    return draw


def spread(*shape: int) -> Draw:
    """Matrices whose symmetric part has eigenvalues that lie apart."""
    return lambda rng: (0.3 * rng.standard_normal(shape) + np.diag(2.0 * np.arange(shape[-1])),)


def beside(a: Draw, *b: int) -> Draw:
    return lambda rng: (*a(rng), rng.standard_normal(b))


def in_wide(function):
    """The reference in at least float32 and back: JAX has no half precision factorisations."""

    def run(*args):
        y = function(*map(wide, args))
        return y.astype(jnp.result_type(*args))

    return run


def substituted(a, b, lower=True, transpose=False, unit_diagonal=False):
    """A triangular system, by a general one."""
    t = jnp.tril(a) if lower else jnp.triu(a)
    if unit_diagonal:
        t = t - t * np.eye(a.shape[-1]) + np.eye(a.shape[-1])
    return jnp.linalg.solve(jnp.swapaxes(t, -1, -2) if transpose else t, b)


def solved_from_the_right(a, b):
    return jnp.swapaxes(substituted(a, jnp.swapaxes(b, -1, -2), transpose=True), -1, -2)


solve, inverse = in_wide(jnp.linalg.solve), in_wide(jnp.linalg.inv)
cholesky, eigenvalues = in_wide(jnp.linalg.cholesky), in_wide(jnp.linalg.eigvalsh)
upper_cholesky = in_wide(lambda a: jnp.linalg.cholesky(a, upper=True))
log_determinant = in_wide(lambda a: jnp.linalg.slogdet(a)[1])
MANY = (256, 16, 16)

OPS = [
    Case("solve", o.solve(), solve, beside(general(2, 5, 5), 2, 5, 3), beside(general(*MANY), 256, 16, 5)),
    Case("solve, one vector", o.solve(), solve, beside(general(5, 5), 5)),
    Case("solve, two leading axes", o.solve(), in_wide(lambda a, b: jnp.linalg.solve(a, b[..., None])[..., 0]), beside(general(2, 3, 5, 5), 2, 3, 5)),
    Case("inverse", o.inverse(), inverse, general(2, 5, 5), general(*MANY)),
    Case("log_determinant", o.log_determinant(), log_determinant, general(2, 5, 5), general(*MANY)),
    Case("cholesky", o.cholesky(), cholesky, positive(2, 5, 5), positive(*MANY)),
    Case("cholesky, upper", o.cholesky(upper=True), upper_cholesky, positive(5, 5)),
    Case("triangular_solve", o.triangular_solve(), in_wide(substituted), beside(general(2, 5, 5), 2, 5, 3), beside(general(*MANY), 256, 16, 5)),
    Case("triangular_solve, upper, ones", o.triangular_solve(lower=False, unit_diagonal=True), in_wide(lambda a, b: substituted(a, b, False, False, True)), beside(general(5, 5), 5)),
    Case("triangular_solve, transposed", o.triangular_solve(transpose=True), in_wide(lambda a, b: substituted(a, b, transpose=True)), beside(general(5, 5), 5, 3)),
    Case("triangular_solve, from the right", o.triangular_solve(left=False), in_wide(solved_from_the_right), beside(general(2, 5, 5), 2, 3, 5)),
    Case("symmetric_eigenvalues", o.symmetric_eigenvalues(), eigenvalues, spread(2, 5, 5), spread(*MANY)),
]  # fmt: skip


LAYERS: list[Case] = [
    layer_case("Apply, a determinant", Apply(o.log_determinant()), lambda p, a: log_determinant(a), general(3, 5, 5)),
]


def conditioned(condition: float, n: int = 5) -> np.ndarray:
    """A positive definite matrix of this condition number."""
    q, _ = np.linalg.qr(np.random.default_rng(7).standard_normal((n, n)))
    return (q * np.geomspace(1 / condition, 1, n)) @ q.T


small, b = np.full((2, 1, 1), 1e-4), np.ones((2, 1, 3))
zeros_off = np.diag(np.arange(1.0, 6.0))

# Judged in every precision: finite where the truth is, and right.
EXTREMES: list[Case] = [
    Case("solve, one number", o.solve(), solve, exactly(small, b)),
    Case("solve, ill conditioned", o.solve(), solve, exactly(conditioned(1e4), np.arange(5.0))),
    Case("solve, rows to be exchanged", o.solve(), solve, exactly(np.eye(5)[[1, 2, 3, 4, 0]] * 7, np.arange(5.0))),
    Case("solve, large", o.solve(), solve, exactly(1e4 * zeros_off, 1e4 * np.arange(5.0))),
    Case("inverse, one number", o.inverse(), inverse, exactly(-100 * small)),
    Case("inverse, ill conditioned", o.inverse(), inverse, exactly(conditioned(1e2))),
    Case("log_determinant, negative", o.log_determinant(), log_determinant, exactly(np.eye(5)[[1, 0, 2, 3, 4]] * 3)),
    Case("log_determinant, beyond the largest number", o.log_determinant(), log_determinant, exactly(1e4 * np.eye(61))),
    Case("cholesky, one number", o.cholesky(), cholesky, exactly(small)),
    Case("cholesky, nearly singular", o.cholesky(), cholesky, exactly(conditioned(1e3))),
    Case("triangular_solve, numbers off the triangle", o.triangular_solve(), in_wide(substituted), exactly(zeros_off + np.triu(np.full((5, 5), 1e4), 1), np.arange(5.0))),
    Case("triangular_solve, zeros on a diagonal of ones", o.triangular_solve(unit_diagonal=True), in_wide(lambda a, b: substituted(a, b, unit_diagonal=True)), exactly(np.tril(np.ones((5, 5)), -1), np.arange(5.0))),
    Case("symmetric_eigenvalues, negative", o.symmetric_eigenvalues(), eigenvalues, exactly(-zeros_off)),
]  # fmt: skip

# No examples: cotangents of the right shapes, zeros where a sum has no terms.
EMPTY: list[Case] = [
    Case("solve, no examples", o.solve(), solve, beside(general(0, 5, 5), 0, 5, 3)),
    Case("solve, no columns", o.solve(), solve, beside(general(2, 5, 5), 2, 5, 0)),
    Case("inverse, no rows", o.inverse(), inverse, exactly(np.zeros((2, 0, 0)))),
    Case("log_determinant, no examples", o.log_determinant(), log_determinant, general(0, 5, 5)),
    Case("cholesky, no examples", o.cholesky(), cholesky, positive(0, 5, 5)),
    Case("triangular_solve, no examples", o.triangular_solve(), in_wide(substituted), beside(general(0, 5, 5), 0, 5, 3)),
    Case("symmetric_eigenvalues, no examples", o.symmetric_eigenvalues(), eigenvalues, spread(0, 5, 5)),
]  # fmt: skip


@st.composite
def drawn(draw) -> Case:
    """Any op of this family, its options and its shapes."""
    leading = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    n, m = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    lower, transpose, unit = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    square = *leading, n, n
    options = {"lower": lower, "transpose": transpose, "unit_diagonal": unit}
    triangular = lambda a, b: substituted(a, b, **options)
    return draw(
        st.sampled_from(
            [
                Case("solve", o.solve(), solve, beside(general(*square), *leading, n, m)),
                Case("inverse", o.inverse(), inverse, general(*square)),
                Case("log_determinant", o.log_determinant(), log_determinant, general(*square)),
                Case("cholesky", o.cholesky(), cholesky, positive(*square)),
                Case("triangular", o.triangular_solve(**options), triangular, beside(general(*square), *leading, n, m)),
                Case("eigenvalues", o.symmetric_eigenvalues(), eigenvalues, spread(*square)),
            ]
        )
    )


A = np.eye(5, dtype=np.float32)
B = np.ones((5, 3), np.float32)

# What a user gets wrong, and the part of the one line that says so.
MISTAKES: dict = {
    "a matrix that is not square": (lambda: o.solve()(B, B), "solve: a has shape (5, 3); wants [..., n, n]"),
    "a vector to invert": (lambda: o.inverse()(B[:, 0]), "inverse: a has shape (5,); wants [..., n, n]"),
    "a determinant of a rectangle": (lambda: o.log_determinant()(B), "log_determinant: a has shape (5, 3); wants [..., n, n]"),
    "a Cholesky factor of a rectangle": (lambda: o.cholesky()(B), "cholesky: a has shape (5, 3)"),
    "eigenvalues of a rectangle": (lambda: o.symmetric_eigenvalues()(B), "symmetric_eigenvalues: a has shape (5, 3)"),
    "a right side of another size": (
        lambda: o.solve()(A, B[:4]),
        "solve: b has shape (4, 3), a (5, 5); b must be (5,) or (5, m)",
    ),
    "a right side without its batch": (
        lambda: o.solve()(np.stack([A, A]), B),
        "solve: b has shape (5, 3), a (2, 5, 5); b must be (2, 5) or (2, 5, m)",
    ),
    "columns where rows are due": (
        lambda: o.triangular_solve(left=False)(A, B),
        "triangular_solve: b has shape (5, 3), a (5, 5); b must be (m, 5)",
    ),
    "a vector from the right": (lambda: o.triangular_solve(left=False)(A, B[:, 0]), "triangular_solve: b has shape (5,), a (5, 5)"),
    "a triangle that is a rectangle": (lambda: o.triangular_solve()(B, B), "triangular_solve: a has shape (5, 3)"),
    "integers to solve": (lambda: o.solve()(A.astype(int), B), "solve: a is int32; wants floating point"),
    "an integer right side": (lambda: o.solve()(A, B.astype(int)), "solve: b is int32; wants floating point"),
    "integers to factor": (lambda: o.cholesky()(A.astype(int)), "cholesky: a is int32"),
    "complex eigenvalues": (lambda: o.symmetric_eigenvalues()(A.astype(np.complex64)), "symmetric_eigenvalues: a is complex64"),
}  # fmt: skip
