"""Right on a special domain: definite and triangular matrices, simplexes, knots, positive numbers."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_factor, cho_solve, solve_triangular
from jax.scipy.special import digamma, gammaln, logsumexp, ndtr, ndtri, xlog1py, xlogy

from .right_case import Right, drawn, normal, rule, uniform

col = lambda x: x[..., None]

sym = lambda a: (a + a.T) / 2


def definite(seed, n=5):
    a = normal(seed, n, 2 * n)
    return a @ a.T / n + 0.3 * jnp.eye(n, dtype=jnp.float32)


def separated(seed, n=5):
    """Symmetric, its eigenvalues a unit apart."""
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]
    return jnp.asarray(q @ np.diag(np.arange(n) - 1.3) @ q.T, jnp.float32)


def cholesky_forward(a):
    factor = jnp.linalg.cholesky(sym(a))
    return factor, factor


def cholesky_backward(factor, dy):
    inner = jnp.tril(factor.T @ dy)
    inner = inner - jnp.diag(jnp.diag(inner)) / 2
    left = solve_triangular(factor, inner, lower=True, trans=1)
    return (sym(solve_triangular(factor, left.T, lower=True, trans=1).T),)


def logdet_forward(a):
    factor = cho_factor(sym(a), lower=True)
    return 2 * jnp.log(jnp.diag(factor[0])).sum(), factor[0]


def logdet_backward(factor, dy):
    return (dy * cho_solve((factor, True), jnp.eye(len(factor), dtype=factor.dtype)),)


def definite_solve_forward(a, b):
    factor = cho_factor(sym(a), lower=True)[0]
    x = cho_solve((factor, True), b)
    return x, (factor, x)


def definite_solve_backward(residuals, dy):
    factor, x = residuals
    db = cho_solve((factor, True), dy)
    return sym(-jnp.outer(db, x)), db


def spectrum_forward(a):
    values, vectors = jnp.linalg.eigh(sym(a))
    return values, vectors


def triangular_forward(a, b):
    x = solve_triangular(a, b, lower=True)
    return x, (a, x)


def triangular_backward(residuals, dy):
    a, x = residuals
    db = solve_triangular(a, dy, lower=True, trans=1)
    return jnp.tril(-db @ x.T), db


def triangular_arguments(seed):
    """What is above the diagonal is garbage, and never read."""
    a = jnp.tril(normal(seed, 5, 5), -1) + jnp.diag(uniform(seed + 1, 5, low=1, high=2))
    return a + jnp.triu(jnp.full((5, 5), 1e20, jnp.float32), 1), normal(seed + 2, 5, 2)


def interp_forward(x, knots, values):
    right = jnp.clip(jnp.searchsorted(knots, x, side="right"), 1, len(knots) - 1)
    left = right - 1
    width = knots[right] - knots[left]
    t = jnp.clip((x - knots[left]) / width, 0, 1)
    inside = (x >= knots[0]) & (x <= knots[-1])
    return values[left] * (1 - t) + values[right] * t, (x, knots, values, left, inside)


def interp_backward(residuals, dy):
    x, knots, values, left, inside = residuals
    width = knots[left + 1] - knots[left]
    t = jnp.clip((x - knots[left]) / width, 0, 1)
    slope = jnp.where(inside, dy * (values[left + 1] - values[left]) / width, 0)
    dknots = jnp.zeros_like(knots).at[left].add(-slope * (1 - t)).at[left + 1].add(-slope * t)
    return slope, dknots, jnp.zeros_like(values).at[left].add(dy * (1 - t)).at[left + 1].add(dy * t)


def knots(seed):
    return uniform(seed, 9, low=-1, high=7), jnp.cumsum(uniform(seed + 1, 6, low=0.5, high=1.5)), normal(seed + 2, 6)


def divergence_forward(p, q):
    ratio = jnp.log(p) - jnp.log(q)
    return (p * ratio).sum(-1), (p, q, ratio)


def simplex(seed):
    return tuple(jax.nn.softmax(normal(seed + i, 4, 6, scale=2)) for i in (0, 1))


def rotate(q, v):
    """A vector turned by a quaternion (real part first)."""
    w, u = q[:1], q[1:]
    t = 2 * jnp.cross(u, v)
    return v + w * t + jnp.cross(u, t)


def rotate_backward(residuals, dy):
    q, v = residuals
    w, u = q[:1], q[1:]
    t = 2 * jnp.cross(u, v)
    dt = w * dy + jnp.cross(dy, u)
    du = jnp.cross(t, dy) + 2 * jnp.cross(v, dt)
    return jnp.concatenate([(dy * t).sum(keepdims=True), du]), dy + 2 * jnp.cross(dt, u)


def turned(seed):
    q = normal(seed, 4)
    return q / jnp.linalg.norm(q), normal(seed + 1, 3)


def power_backward(residuals, dy):
    x, p, y = residuals
    return dy * p * y / x, dy * y * jnp.log(x)


def counts_backward(residuals, dy):
    k, p = residuals
    return dy * (jnp.log(p) - jnp.log1p(-p)), dy * (k / p - (1 - k) / (1 - p))


def orthogonal_forward(a):
    """The orthogonal factor of a polar decomposition, by the singular values."""
    u, s, vt = jnp.linalg.svd(a)
    return u @ vt, (u, s, vt)


def orthogonal_backward(residuals, dy):
    u, s, vt = residuals
    inner = u.T @ dy @ vt.T
    return (u @ ((inner - inner.T) / (s[:, None] + s)) @ vt,)


def newton_polar(a):
    for _ in range(12):
        a = (a + jnp.linalg.inv(a).T) / 2
    return a


def quadratic_forward(a, b):
    x = jnp.linalg.solve(sym(a), b)
    return b @ x, x


def quadratic_backward(x, dy):
    return -dy * jnp.outer(x, x), 2 * dy * x


nuclear = lambda a: jnp.linalg.svd(a, compute_uv=False).sum()


DOMAINS = [
    Right(
        "cholesky",
        (cholesky_forward, cholesky_backward),
        lambda a: jnp.linalg.cholesky(sym(a)),
        **drawn(lambda seed: (definite(seed),)),
        why_hard="arguments must be definite; a step in one entry is none of them",
    ),
    Right(
        "log of the determinant, by cholesky",
        (logdet_forward, logdet_backward),
        lambda a: jnp.linalg.slogdet(sym(a))[1],
        **drawn(lambda seed: (definite(seed),)),
        why_hard="nan for all but definite matrices",
    ),
    Right(
        "solve for a definite matrix",
        rule(definite_solve_forward, definite_solve_backward),
        lambda a, b: jnp.linalg.solve(sym(a), b),
        **drawn(lambda seed: (definite(seed), normal(seed + 1, 5))),
        why_hard="a symmetric gradient",
    ),
    Right(
        "eigenvalues of a symmetric matrix",
        (spectrum_forward, lambda v, dy: ((v * dy) @ v.T,)),
        lambda a: jnp.linalg.eigvalsh(sym(a)),
        **drawn(lambda seed: (separated(seed),)),
        why_hard="the second derivative needs the gaps between them",
    ),
    Right(
        "trace of the exponential, by eigenvalues",
        rule(
            lambda a: (jnp.exp(jnp.linalg.eigvalsh(sym(a))).sum(), a),
            lambda a, dy: (dy * jax.scipy.linalg.expm(sym(a)),),
        ),
        lambda a: jnp.trace(jax.scipy.linalg.expm(sym(a))),
        **drawn(lambda seed: (separated(seed, 4) / 2 + seed % 2,)),
        why_hard="another algorithm for value and gradient",
    ),
    Right(
        "triangular solve, garbage above the diagonal",
        (triangular_forward, triangular_backward),
        lambda a, b: jnp.linalg.solve(jnp.tril(a), b),
        **drawn(triangular_arguments),
        why_hard="entries of 1e20 that do not count",
    ),
    Right(
        "polar factor",
        (orthogonal_forward, orthogonal_backward),
        newton_polar,
        **drawn(lambda seed: (jnp.eye(4, dtype=jnp.float32) + normal(seed, 4, 4, scale=0.3),)),
        why_hard="the reference iterates",
    ),
    Right(
        "nuclear norm",
        rule(
            lambda a: (nuclear(a), a),
            lambda a, dy: (dy * orthogonal_forward(a)[0],),
        ),
        nuclear,
        **drawn(lambda seed: (jnp.eye(4, dtype=jnp.float32) * 2 + normal(seed, 4, 4, scale=0.3),)),
        why_hard="a second derivative through singular vectors",
    ),
    Right(
        "interpolation between sorted knots",
        (interp_forward, interp_backward),
        jnp.interp,
        **drawn(knots),
        why_hard="knots must be sorted; flat outside, a kink at each",
    ),
    Right(
        "divergence on the simplex",
        (divergence_forward, lambda r, dy: (col(dy) * (r[2] + 1), -col(dy) * r[0] / r[1])),
        lambda p, q: (xlogy(p, p) - xlogy(p, q)).sum(-1),
        **drawn(simplex),
        why_hard="nan outside of the simplex",
    ),
    Right(
        "divergence of p from itself",
        (divergence_forward, lambda r, dy: (col(dy) * (r[2] + 1), -col(dy) * r[0] / r[1])),
        lambda p, q: (p * jnp.log(p / q)).sum(-1),
        **drawn(lambda seed: (simplex(seed)[0],) * 2),
        why_hard="the value is zero; it is no minimum for entries that move alone",
    ),
    Right(
        "rotation by a unit quaternion",
        (lambda q, v: (rotate(q, v), (q, v)), rotate_backward),
        rotate,
        **drawn(turned),
        why_hard="unit vectors",
    ),
    Right(
        "power of positive numbers",
        (lambda x, p: (x**p, (x, p, x**p)), power_backward),
        lambda x, p: jnp.exp(p * jnp.log(x)),
        **drawn(lambda seed: (uniform(seed, 4, 5, low=0.1, high=4), normal(seed + 1, 4, 5))),
        why_hard="nan for a negative base",
    ),
    Right(
        "log of gamma",
        (lambda x: (gammaln(x), x), lambda x, dy: (dy * digamma(x),)),
        gammaln,
        **drawn(lambda seed: (uniform(seed, 4, 5, low=0.2, high=9),)),
        why_hard="the slope crosses zero at 1.46",
    ),
    Right(
        "log of beta",
        rule(
            lambda a, b: (gammaln(a) + gammaln(b) - gammaln(a + b), (a, b)),
            lambda r, dy: tuple(dy * (digamma(x) - digamma(r[0] + r[1])) for x in r),
        ),
        lambda a, b: gammaln(a) - (gammaln(a + b) - gammaln(b)),
        **drawn(lambda seed: tuple(uniform(seed + i, 9, low=0.5, high=30) for i in (0, 1))),
        why_hard="differences of close numbers",
    ),
    Right(
        "likelihood of a fraction",
        (lambda k, p: (k * jnp.log(p) + (1 - k) * jnp.log1p(-p), (k, p)), counts_backward),
        lambda k, p: xlogy(k, p) + xlog1py(1 - k, -p),
        **drawn(lambda seed: (uniform(seed, 9), uniform(seed + 1, 9, low=1e-4, high=1 - 1e-4))),
        why_hard="poles at both ends of (0, 1)",
    ),
    Right(
        "quantile of the normal distribution",
        (
            lambda p: (ndtri(p),) * 2,
            lambda x, dy: (dy * (2 * jnp.pi) ** 0.5 * jnp.exp(x * x / 2),),
        ),
        lambda p: 2**0.5 * jax.scipy.special.erfinv(2 * p - 1),
        **drawn(lambda seed: (uniform(seed, 4, 5, low=0.02, high=0.98),)),
        why_hard="an inverse function, its slope from the value",
    ),
    Right(
        "log of the normal distribution",
        rule(
            lambda x: (jax.scipy.stats.norm.logcdf(x), x),
            lambda x, dy: (dy * jnp.exp(-x * x / 2 - jax.scipy.stats.norm.logcdf(x)) / (2 * jnp.pi) ** 0.5,),
        ),
        lambda x: jnp.log(ndtr(x)),
        **drawn(lambda seed: (uniform(seed, 4, 5, low=-5, high=4),)),
        why_hard="exp of a difference of numbers near 14: several roundings",
    ),
    Right(
        "log of a share",
        (
            lambda w: (jnp.log(w) - jnp.log(w.sum(-1, keepdims=True)), w),
            lambda w, dy: (dy / w - dy.sum(-1, keepdims=True) / w.sum(-1, keepdims=True),),
        ),
        lambda w: jnp.log(w) - logsumexp(jnp.log(w), axis=-1, keepdims=True),
        **drawn(lambda seed: (uniform(seed, 4, 6, low=1e-3, high=5),)),
        why_hard="positive weights alone",
    ),
    Right(
        "quadratic form of an inverse",
        rule(quadratic_forward, quadratic_backward),
        lambda a, b: (solve_triangular(jnp.linalg.cholesky(sym(a)), b, lower=True) ** 2).sum(),
        **drawn(lambda seed: (definite(seed), normal(seed + 1, 5))),
        why_hard="the reference goes through a factor",
    ),
]
