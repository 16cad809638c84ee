"""Right where little can be right: ill-conditioned systems, cancellation, saturation, tiny and huge numbers."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import lu_factor, lu_solve
from jax.scipy.special import logsumexp

from .right_case import Right, drawn, normal, picked, rule, uniform

col = lambda x: x[..., None]


def conditioned(seed, n, power, shift=0.0):
    """A matrix whose condition is 10 ** power."""
    random = np.random.default_rng(seed)
    left, right = (np.linalg.qr(random.normal(size=(n, n)))[0] for _ in range(2))
    return jnp.asarray(left @ np.diag(np.logspace(0, -power, n)) @ right, jnp.float32)


def solve_forward(a, b):
    factors = lu_factor(a)
    x = lu_solve(factors, b)
    return x, (factors, x)


def solve_backward(residuals, dy):
    factors, x = residuals
    db = lu_solve(factors, dy, trans=1)
    return -db[:, None] * x, db


def inverse_forward(a):
    y = jnp.linalg.inv(a)
    return y, y


def layer_norm(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-6)


def layer_norm_forward(x):
    centred = x - x.mean(-1, keepdims=True)
    rstd = jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return centred * rstd, (centred * rstd, rstd)


def layer_norm_backward(residuals, dy):
    unit, rstd = residuals
    return (rstd * (dy - dy.mean(-1, keepdims=True) - unit * (dy * unit).mean(-1, keepdims=True)),)


def variance_forward(x):
    gap = x - x.mean(-1, keepdims=True)
    gap = gap - gap.mean(-1, keepdims=True)
    return (gap * gap).mean(-1), gap


def deviation_forward(x):
    gap = x - x.mean(-1, keepdims=True)
    y = jnp.sqrt((gap * gap).mean(-1))
    return y, (gap, y)


def cosine(a, b):
    return (a * b).sum(-1) / (jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1))


def cosine_forward(a, b):
    na, nb = (jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
    return ((a / na) * (b / nb)).sum(-1), (a / na, b / nb, na, nb)


def cosine_backward(residuals, dy):
    a, b, na, nb = residuals
    y = (a * b).sum(-1, keepdims=True)
    return col(dy) * (b - y * a) / na, col(dy) * (a - y * b) / nb


def nearly_parallel(seed):
    a = normal(seed, 4, 16)
    return a, a * 2 + normal(seed + 100, 4, 16, scale=1e-3)


def softmax_backward(y, dy):
    return (y * (dy - (y * dy).sum(-1, keepdims=True)),)


def log1mexp_forward(x):
    return jnp.where(x < np.log(2), jnp.log(-jnp.expm1(-x)), jnp.log1p(-jnp.exp(-x))), x


def hypot_forward(x, y):
    high = jax.lax.stop_gradient(jnp.maximum(jnp.abs(x), jnp.abs(y)))
    r = high * jnp.sqrt((x / high) ** 2 + (y / high) ** 2)
    return r, (x / r, y / r)


def norm_forward(x):
    high = jax.lax.stop_gradient(jnp.abs(x).max(-1, keepdims=True))
    y = high * jnp.sqrt(((x / high) ** 2).sum(-1, keepdims=True))
    return y[..., 0], x / y


def root_forward(b, c):
    """The small root of x^2 + 2 b x + c, b > 0."""
    x = -c / (b + jnp.sqrt(b * b - c))
    return x, (b, x)


def root_backward(residuals, dy):
    b, x = residuals
    return -dy * x / (x + b), -dy / (2 * (x + b))


def key_bias_attention(q, k, bias):
    return jax.nn.softmax(q @ (k + bias).T)


def key_bias_backward(residuals, dy):
    q, k, bias, p = residuals
    ds = p * (dy - (p * dy).sum(-1, keepdims=True))
    return ds @ (k + bias), ds.T @ q, jnp.zeros_like(bias)  # the same for every key: softmax does not see it


def weighted_mean_backward(residuals, dy):
    x, w, y = residuals
    share = w / w.sum(-1, keepdims=True)
    return col(dy) * share, col(dy) * (x - col(y)) / w.sum(-1, keepdims=True)


def weighted_mean(x, w):
    return (x * w).sum(-1) / w.sum(-1)


def batch_normed(x, bias):
    z = x + bias
    return (z - z.mean(0)) * jax.lax.rsqrt(z.var(0) + 1e-5)


def batch_normed_forward(x, bias):
    gap = x - x.mean(0)  # the bias has gone
    rstd = jax.lax.rsqrt((gap * gap).mean(0) + 1e-5)
    return gap * rstd, (gap * rstd, rstd, bias)


def batch_normed_backward(residuals, dy):
    unit, rstd, bias = residuals
    return rstd * (dy - dy.mean(0) - unit * (dy * unit).mean(0)), jnp.zeros_like(bias)


def cross_entropy_backward(residuals, dy):
    x, labels = residuals
    return col(dy) * (jax.nn.softmax(x) - jax.nn.one_hot(labels, x.shape[-1], dtype=x.dtype)), None


def mixed_rows(seed):
    return normal(seed, 8, 6) * jnp.logspace(-12, 12, 8, dtype=jnp.float32)[:, None], normal(seed + 1, 6, 4)


CONDITIONING = [
    Right(
        "solve, condition 1e6",
        (solve_forward, solve_backward),
        jnp.linalg.solve,
        **drawn(lambda seed: (conditioned(seed, 6, 6), normal(seed, 6))),
        why_hard="float32 leaves one digit; the second derivative in float64 a few",
    ),
    Right(
        "solve, condition 1e3, many right sides",
        lambda a, b: jnp.linalg.inv(a) @ b,
        jnp.linalg.solve,
        **drawn(lambda seed: (conditioned(seed, 5, 3), normal(seed, 5, 3))),
        why_hard="by the inverse",
    ),
    Right(
        "inverse, condition 1e4",
        (inverse_forward, lambda y, dy: (-y.T @ dy @ y.T,)),
        jnp.linalg.inv,
        **drawn(lambda seed: (conditioned(seed, 5, 4),)),
        why_hard="the gradient is of the size of the condition squared",
    ),
    Right(
        "(1 + x) - 1 for tiny x",
        rule(lambda x: (x, None), lambda _, dy: (dy,)),
        lambda x: (1 + x) - 1,
        lambda: (normal(0, 4, 8, scale=1e-6),),
        why_hard="the reference's float32 value has one digit",
    ),
    Right(
        "log1p for log(1 + x)",
        (lambda x: (jnp.log1p(x), x), lambda x, dy: (dy / (1 + x),)),
        lambda x: jnp.log(1 + x),
        **drawn(lambda seed: (uniform(seed, 3, 9, low=-1e-6, high=1e-6),)),
        why_hard="the reference's float32 value is noise",
    ),
    Right(
        "log(1 + x) for log1p",
        (lambda x: (jnp.log(1 + x), x), lambda x, dy: (dy / (1 + x),)),
        jnp.log1p,
        **drawn(lambda seed: (uniform(seed, 3, 9, low=0.1, high=20),)),
        why_hard="another value in the last digits",
    ),
    Right(
        "variance of data with mean 1000",
        (variance_forward, lambda gap, dy: (2 / gap.shape[-1] * col(dy) * gap,)),
        lambda x: x.var(-1),
        lambda: (normal(1, 4, 50, shift=1e3),),
        why_hard="centred twice: better than the reference",
    ),
    Right(
        "deviation of nearly constant data",
        (deviation_forward, lambda r, dy: (col(dy / r[1]) * r[0] / r[0].shape[-1],)),
        lambda x: x.std(-1),
        **drawn(lambda seed: (normal(seed, 4, 20, scale=1e-3, shift=5),)),
        why_hard="float32 holds the gaps to three digits",
    ),
    Right(
        "layer norm of rows around 1000",
        (layer_norm_forward, layer_norm_backward),
        layer_norm,
        **drawn(lambda seed: (normal(seed, 4, 32, scale=1e-2, shift=1000),)),
        why_hard="float32 holds the gaps to two digits",
    ),
    Right(
        "logsumexp of numbers around 1e4",
        (lambda x: (logsumexp(x, axis=-1), x), lambda x, dy: (col(dy) * jax.nn.softmax(x),)),
        lambda x: logsumexp(x, axis=-1),
        lambda: (normal(2, 4, 12, shift=1e4),),
        why_hard="spacing of floats at 1e4 is a thousandth",
    ),
    Right(
        "sqrt near zero",
        (lambda x: (jnp.sqrt(x),) * 2, lambda y, dy: (dy / (2 * y),)),
        jnp.sqrt,
        **drawn(lambda seed: (jnp.exp(uniform(seed, 3, 8, low=-60, high=0)),)),
        why_hard="slopes from 1 to 1e12 in one array, curvatures to 1e38",
    ),
    Right(
        "tangent near its poles",
        (lambda x: (jnp.tan(x),) * 2, lambda y, dy: (dy * (1 + y * y),)),
        jnp.tan,
        **drawn(lambda seed: (np.pi / 2 + normal(seed, 3, 8, scale=1e-3),)),
        why_hard="the rounding of the argument moves the slope by a thousandth",
    ),
    Right(
        "reciprocal across thirty orders",
        (lambda x: (1 / x,) * 2, lambda y, dy: (-dy * y * y,)),
        lambda x: 1 / x,
        **drawn(lambda seed: (jnp.exp(uniform(seed, 3, 8, low=-40, high=40)),)),
        why_hard="slopes from 1e-35 to 1e35",
    ),
    Right(
        "exp that overflows as it must",
        (lambda x: (jnp.exp(x),) * 2, lambda y, dy: (dy * y,)),
        jnp.exp,
        lambda: (normal(3, 4, 8, scale=60),),
        why_hard="inf in float32, 1e60 in float64; exact zeros on the other side",
    ),
    Right(
        "cosine of nearly parallel vectors",
        (cosine_forward, cosine_backward),
        cosine,
        **drawn(nearly_parallel),
        why_hard="the gradient is the difference of two equal vectors",
    ),
    Right(
        "softmax, saturated",
        (lambda x: (jax.nn.softmax(x),) * 2, softmax_backward),
        jax.nn.softmax,
        lambda: (normal(4, 4, 10, scale=50),),
        why_hard="1 - p is rounding noise; the true gradient is 1e-20",
    ),
    Right(
        "cross-entropy, saturated",
        (lambda x, labels: (logsumexp(x, axis=-1) - picked(x, labels), (x, labels)), cross_entropy_backward),
        lambda x, labels: -picked(jax.nn.log_softmax(x), labels),
        lambda: (normal(5, 4, 10, scale=40), jnp.arange(4, dtype=jnp.int32)),
        why_hard="p - 1 of a right label is rounding noise",
    ),
    Right(
        "sum of softmax",
        (lambda x: (jax.nn.softmax(x).sum(-1), jax.nn.softmax(x)), lambda y, dy: softmax_backward(y, col(dy))),
        lambda x: jax.nn.softmax(x).sum(-1),
        lambda: (normal(6, 4, 10),),
        why_hard="the true gradient is zero, the candidate's is rounding noise",
    ),
    Right(
        "sum of softmax, exact zeros",
        (lambda x: (jnp.ones_like(x[..., 0]), x), lambda x, _: (jnp.zeros_like(x),)),
        lambda x: jax.nn.softmax(x).sum(-1),
        lambda: (normal(7, 4, 10),),
        why_hard="zero is right; the reference gives noise",
    ),
    Right(
        "mean of a layer norm",
        (
            lambda x: (layer_norm_forward(x)[0].mean(-1), layer_norm_forward(x)[1]),
            lambda r, dy: layer_norm_backward(r, jnp.broadcast_to(col(dy) / r[0].shape[-1], r[0].shape)),
        ),
        lambda x: layer_norm(x).mean(-1),
        **drawn(lambda seed: (normal(seed, 4, 20),)),
        why_hard="value and gradient are zero but for noise",
    ),
    Right(
        "length of a unit vector",
        lambda x: ((x / jnp.sqrt((x * x).sum(-1, keepdims=True))) ** 2).sum(-1),
        lambda x: (x * x).sum(-1) / (x * x).sum(-1),
        **drawn(lambda seed: (normal(seed, 4, 6),)),
        why_hard="it is one everywhere: both gradients are noise",
    ),
    Right(
        "cos^2 + sin^2, exact zeros",
        rule(lambda x: (jnp.ones_like(x), None), lambda _, dy: (jnp.zeros_like(dy),)),
        lambda x: jnp.cos(x) ** 2 + jnp.sin(x) ** 2,
        lambda: (normal(8, 4, 6),),
        why_hard="the truth itself is 1e-17 of noise",
    ),
    Right(
        "attention weights with a bias on every key",
        (lambda q, k, b: (key_bias_attention(q, k, b), (q, k, b, key_bias_attention(q, k, b))), key_bias_backward),
        key_bias_attention,
        lambda: (normal(9, 4, 6), normal(10, 5, 6), normal(11, 6)),
        why_hard="the bias has no gradient: zeros against noise",
    ),
    Right(
        "batch norm after a bias",
        (batch_normed_forward, batch_normed_backward),
        batch_normed,
        **drawn(lambda seed: (normal(seed, 12, 3), normal(seed + 1, 3))),
        why_hard="the bias has no gradient: zeros against noise",
    ),
    Right(
        "arccos near one",
        (lambda x: (jnp.arccos(x), x), lambda x, dy: (-dy / jnp.sqrt((1 - x) * (1 + x)),)),
        jnp.arccos,
        **drawn(lambda seed: (1 - jnp.exp(uniform(seed, 3, 8, low=-12, high=0)),)),
        why_hard="1 - x^2 cancels in the reference",
    ),
    Right(
        "log(1 - exp(-x))",
        (log1mexp_forward, lambda x, dy: (dy / jnp.expm1(x),)),
        lambda x: jnp.log(1 - jnp.exp(-x)),
        **drawn(lambda seed: (jnp.exp(uniform(seed, 3, 8, low=-11, high=3.5)),)),
        why_hard="the reference cancels at both ends, the slope runs from 1e-14 to 1e5",
    ),
    Right(
        "hypot of tiny and huge numbers",
        (hypot_forward, lambda r, dy: (dy * r[0], dy * r[1])),
        lambda x, y: jnp.sqrt(x * x + y * y),
        **drawn(lambda seed: tuple(normal(seed + i, 8) * 10.0 ** jnp.arange(-32, 32, 8, jnp.float32) for i in (0, 1))),
        why_hard="the reference's squares leave float32 at both ends",
    ),
    Right(
        "norm of vectors of size 1e25",
        (norm_forward, lambda unit, dy: (col(dy) * unit,)),
        lambda x: jnp.sqrt((x * x).sum(-1)),
        **drawn(lambda seed: (normal(seed, 4, 6) * 1e25,)),
        why_hard="the reference overflows in float32; the curvature is 1e-25",
    ),
    Right(
        "the small root of a quadratic",
        (root_forward, root_backward),
        lambda b, c: -b + jnp.sqrt(b * b - c),
        **drawn(lambda seed: (uniform(seed, 9, low=50, high=500), uniform(seed + 1, 9, low=-1, high=1))),
        why_hard="the reference's float32 value has no digit, its gradient few",
    ),
    Right(
        "weighted mean with tiny weights",
        (lambda x, w: (weighted_mean(x, w), (x, w, weighted_mean(x, w))), weighted_mean_backward),
        weighted_mean,
        **drawn(lambda seed: (normal(seed, 4, 9), uniform(seed, 4, 9, low=1e-10, high=1e-9))),
        why_hard="the weights' gradient is 1e9 times that of the data",
    ),
    Right(
        "rows from 1e-12 to 1e12 through a matrix",
        (lambda x, w: (x @ w, (x, w)), lambda r, dy: (dy @ r[1].T, r[0].T @ dy)),
        lambda x, w: jnp.einsum("nk,km->nm", x, w),
        **drawn(mixed_rows),
        why_hard="the weight gradient is the largest row's, the others are below its rounding",
    ),
    Right(
        "third power of tiny numbers",
        rule(lambda x: (x**3, x), lambda x, dy: (3 * dy * x * x,)),
        lambda x: x * x * x,
        lambda: (normal(12, 4, 6, scale=1e-14),),
        why_hard="values below float32's smallest number, gradients above it",
    ),
]
