"""Mistakes in linear algebra and complex functions: solve, inverse, Cholesky, determinant, eigenvalues, conjugation."""

from functools import partial

import jax.numpy as jnp
from jax import lax, scipy

from .wrong_base import Op, normal, normals

# ── Systems of equations ─────────────────────────────────────────────────────────────────────────────────────────────


def regular(seed=0, n=5):
    return normal(seed, n, n) + 4 * jnp.eye(n, dtype=jnp.float32)


def definite(seed=0, n=5):
    a = normal(seed, n, n)
    return a @ a.T / n + jnp.eye(n, dtype=jnp.float32)


def solve_backward(r, dy, matrix=lambda a: a.T, right=2, sign=-1.0):
    g = jnp.linalg.solve(matrix(r[0]), dy)
    return sign * g @ r[right].T, g


def solve_forward(a, b):
    x = jnp.linalg.solve(a, b)
    return x, (a, b, x)


SOLVE = Op(
    "solve", lambda a, b: jnp.linalg.inv(a) @ b, solve_forward, solve_backward, lambda: (regular(), normal(1, 5, 3))
)
INVERSE = Op(
    "inverse",
    lambda a: jnp.linalg.solve(a, jnp.eye(a.shape[-1], dtype=a.dtype)),
    lambda a: (jnp.linalg.inv(a),) * 2,
    lambda y, dy: (-y.T @ dy @ y.T,),
    lambda: (regular(),),
)
LOGDET = Op(
    "logdet",
    lambda a: jnp.linalg.slogdet(a)[1],
    lambda a: (jnp.log(jnp.abs(jnp.linalg.det(a))), a),
    lambda a, dy: (dy * jnp.linalg.inv(a).T,),
    lambda: (regular(),),
)


def halved(m):
    return jnp.tril(m, -1) + jnp.diag(jnp.diag(m)) / 2


def cholesky_backward(l, dy, phi=halved, symmetrise=lambda s: (s + s.T) / 2, lower=jnp.tril):
    p = phi(l.T @ lower(dy))
    inner = scipy.linalg.solve_triangular(l, p, lower=True, trans=1)
    return (symmetrise(scipy.linalg.solve_triangular(l, inner.T, lower=True, trans=1).T),)


CHOLESKY = Op(
    "cholesky",
    lambda a: jnp.linalg.cholesky(a),
    lambda a: (jnp.linalg.cholesky((a + a.T) / 2),) * 2,
    cholesky_backward,
    lambda: (definite(),),
)


def triangular_backward(r, dy, lower=jnp.tril):
    l, x = r
    g = scipy.linalg.solve_triangular(l, dy, lower=True, trans=1)
    return -lower(g @ x.T), g


def triangular_forward(l, b):
    x = scipy.linalg.solve_triangular(l, b, lower=True)
    return x, (l, x)


TRIANGULAR = Op(
    "triangular solve",
    lambda l, b: jnp.linalg.solve(jnp.tril(l), b),
    triangular_forward,
    triangular_backward,
    lambda: (regular(), normal(1, 5, 3)),
)


def gaussian_backward(r, dy, log=1.0, whiten=True):
    l, x = r
    z = jnp.linalg.solve(l, x)
    g = jnp.linalg.solve(l.T, z) if whiten else z
    return dy * (g @ z.T - log * x.shape[1] * jnp.diag(1 / jnp.diag(l))), -dy * g


GAUSSIAN = Op(
    "log density",
    lambda l, x: -0.5 * jnp.sum(jnp.linalg.solve(l, x) ** 2) - x.shape[1] * jnp.sum(jnp.log(jnp.diag(l))),
    lambda l, x: (-0.5 * (jnp.linalg.solve(l, x) ** 2).sum() - x.shape[1] * jnp.log(jnp.diag(l)).sum(), (l, x)),
    gaussian_backward,
    lambda: (jnp.linalg.cholesky(definite()), normal(1, 5, 3)),
)
systems = [
    SOLVE.wrong("matrix not transposed", partial(solve_backward, matrix=lambda a: a), "transposed ?"),
    SOLVE.wrong("da from b, not from x", partial(solve_backward, right=1), "residual ?"),
    SOLVE.wrong("da with the wrong sign", partial(solve_backward, sign=1.0), "sign"),
    SOLVE.edit("da transposed", 0, jnp.transpose, "transposed"),
    INVERSE.wrong("not transposed", lambda y, dy: (-y @ dy @ y,), "transposed ?"),
    INVERSE.wrong("sign", lambda y, dy: (y.T @ dy @ y.T,), "sign"),
    INVERSE.wrong("one factor alone", lambda y, dy: (-y.T @ dy,), "residual ? term"),
    INVERSE.wrong("one over the square, entry by entry", lambda y, dy: (-dy * y**2,), "residual ?"),
    LOGDET.wrong("inverse, not its transpose", lambda a, dy: (dy * jnp.linalg.inv(a),), "transposed"),
    LOGDET.wrong("the matrix for its inverse", lambda a, dy: (dy * a.T,), "residual ?"),
    LOGDET.wrong("cotangent ignored", lambda a, dy: (jnp.linalg.inv(a).T * jnp.ones_like(dy),), "ignored linear"),
    LOGDET.wrong("diagonal alone", lambda a, dy: (dy * jnp.diag(jnp.diag(jnp.linalg.inv(a))),), "mask row term"),
    CHOLESKY.wrong("diagonal not halved", partial(cholesky_backward, phi=jnp.tril), "term ? row"),
    CHOLESKY.wrong("twice for symmetry", lambda l, dy: (2 * cholesky_backward(l, dy)[0],), "factor"),
    CHOLESKY.wrong("not symmetrised", partial(cholesky_backward, symmetrise=lambda s: s), "? transposed symmetr"),
    CHOLESKY.wrong(
        "lower triangle of the product not taken", partial(cholesky_backward, phi=lambda m: m / 2), "mask ? term"
    ),
    TRIANGULAR.wrong("dl not masked to its triangle", partial(triangular_backward, lower=lambda m: m), "mask row"),
    TRIANGULAR.wrong(
        "dl without its diagonal", partial(triangular_backward, lower=lambda m: jnp.tril(m, -1)), "mask row term"
    ),
    GAUSSIAN.wrong("normaliser left out", partial(gaussian_backward, log=0.0), "term row"),
    GAUSSIAN.wrong("normaliser of one sample", lambda r, dy: gaussian_backward(r, dy, log=1 / 3), "term row"),
    GAUSSIAN.wrong("whitened once, not twice", partial(gaussian_backward, whiten=False), "residual ? term"),
]

# ── Spectrum ─────────────────────────────────────────────────────────────────────────────────────────────────────────

EIGH = Op(
    "eigenvalues",
    lambda a: jnp.linalg.eigvalsh(a),
    lambda a: jnp.linalg.eigh((a + a.T) / 2),
    lambda v, dy: (v * dy @ v.T,),
    lambda: (definite(),),
)
TRACE = Op(
    "trace of a product",
    lambda a, b: jnp.trace(a @ b),
    lambda a, b: (jnp.sum(a * b.T), (a, b)),
    lambda r, dy: (dy * r[1].T, dy * r[0].T),
    normals((5, 5), (5, 5)),
)
spectrum = [
    EIGH.wrong("vectors as rows", lambda v, dy: ((v.T * dy) @ v,), "transposed ?"),
    EIGH.wrong("order of the values reversed", lambda v, dy: (v * dy[::-1] @ v.T,), "reversed ?"),
    TRACE.wrong("not transposed", lambda r, dy: (dy * r[1], dy * r[0]), "transposed"),
    TRACE.wrong("da and db swapped", lambda r, dy: (dy * r[0].T, dy * r[1].T), "swapped residual"),
]

# ── Complex functions: in JAX a cotangent is not conjugated ──────────────────────────────────────────────────────────


def complexes(*shapes):
    return lambda: tuple(normal(i, *shape) + 1j * normal(i + 9, *shape) for i, shape in enumerate(shapes))


CMUL = Op(
    "complex mul",
    lambda z, w: z * w,
    lambda z, w: (lax.complex(z.real * w.real - z.imag * w.imag, z.real * w.imag + z.imag * w.real), (z, w)),
    lambda r, dy: (dy * r[1], dy * r[0]),
    complexes((7, 5), (7, 5)),
)

ABS2 = Op(
    "squared modulus",
    lambda z: jnp.abs(z) ** 2,
    lambda z: (z.real**2 + z.imag**2, z),
    lambda z, dy: (2 * dy * jnp.conj(z),),
    complexes((7, 5)),
)
CEXP = Op("complex exp", jnp.exp, lambda z: (jnp.exp(z),) * 2, lambda y, dy: (dy * y,), complexes((7, 5)))
FFT = Op(
    "power spectrum",
    lambda x: jnp.abs(jnp.fft.fft(x)) ** 2,
    lambda x: (jnp.abs(jnp.fft.fft(x)) ** 2, x),
    lambda x, dy: (2 * x.shape[-1] * jnp.fft.ifft(dy * jnp.fft.fft(x)).real,),
    normals((3, 11)),
)
complex_functions = [
    CMUL.wrong(
        "conjugated as in another framework", lambda r, dy: (dy * jnp.conj(r[1]), dy * jnp.conj(r[0])), "conj sign ?"
    ),
    CMUL.wrong("imaginary parts left out of dz", lambda r, dy: (dy * r[1].real, dy * r[0]), "term imag real ?"),
    CMUL.wrong("dz and dw swapped", lambda r, dy: (dy * r[0], dy * r[1]), "swapped residual"),
    ABS2.wrong("not conjugated", lambda z, dy: (2 * dy * z,), "conj sign"),
    ABS2.wrong("two left out", lambda z, dy: (dy * jnp.conj(z),), "factor"),
    ABS2.wrong("real part alone", lambda z, dy: ((2 * dy * z.real).astype(z.dtype),), "term imag real"),
    CEXP.wrong("conjugated", lambda y, dy: (dy * jnp.conj(y),), "conj sign ?"),
    CEXP.wrong("derivative of the modulus", lambda y, dy: (dy * jnp.abs(y),), "conj residual ? real row"),
    FFT.wrong("length left out", lambda x, dy: (2 * jnp.fft.ifft(dy * jnp.fft.fft(x)).real,), "factor"),
    FFT.wrong(
        "fft where its inverse belongs", lambda x, dy: (2 * jnp.fft.fft(dy * jnp.fft.fft(x)).real,), "conj reversed ?"
    ),
]

OPS = [SOLVE, INVERSE, LOGDET, CHOLESKY, TRIANGULAR, GAUSSIAN, EIGH, TRACE, CMUL, ABS2, CEXP, FFT]
WRONG = systems + spectrum + complex_functions
