"""Right where the reference is not: its autodiff is nan, infinite or noise at points where the true gradient is finite."""

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from .right_case import Right, drawn, normal, rule, steps, uniform

col = lambda x: x[..., None]


def safe(condition, x, other=1):
    """x where the condition holds, a harmless number elsewhere, so that no derivative of it is nan."""
    return jnp.where(condition, x, other)


def norm_forward(x):
    square = (x * x).sum(-1, keepdims=True)
    y = jnp.where(square > 0, jnp.sqrt(safe(square > 0, square)), 0)
    return y[..., 0], jnp.where(square > 0, x / safe(square > 0, y), 0)


def norm_rows(seed):
    return (normal(seed, 5, 4).at[seed % 5].set(0),)


def unit_forward(x):
    square = (x * x).sum(-1, keepdims=True)
    y = jnp.where(square > 0, jnp.sqrt(safe(square > 0, square)), 1)
    return x / y, (x / y, y, square > 0)


def unit_backward(residuals, dy):
    unit, y, on = residuals
    return (jnp.where(on, (dy - unit * (unit * dy).sum(-1, keepdims=True)) / y, 0),)


def distances(x):
    gap = x[:, None] - x
    return jnp.sqrt((gap**2).sum(-1))


def distances_forward(x):
    gap = x[:, None] - x
    square = (gap**2).sum(-1)
    y = jnp.where(square > 0, jnp.sqrt(safe(square > 0, square)), 0)
    return y, jnp.where(col(square > 0), gap / col(safe(square > 0, y)), 0)


def bump_forward(x):
    return jnp.where(x > 0, jnp.exp(-1 / safe(x > 0, x)), 0), x


def bump_backward(x, dy):
    z = safe(x > 0, x)
    return (jnp.where(x > 0, dy * jnp.exp(-1 / z - 2 * jnp.log(z)), 0),)


def power_forward(x):
    z = safe(x > 0, x)
    return jnp.where(x > 0, z * jnp.sqrt(z), 0), x


def power_backward(x, dy):
    return (jnp.where(x > 0, dy * 1.5 * jnp.sqrt(safe(x > 0, x)), 0),)


def entropy(p):
    return -jnp.where(p > 0, p * jnp.log(p), 0).sum(-1)


def entropy_forward(p):
    z = safe(p > 0, p)
    return -(z * jnp.log(z)).sum(-1), p


def entropy_backward(p, dy):
    return (jnp.where(p > 0, -col(dy) * (jnp.log(safe(p > 0, p)) + 1), 0),)


def sparse_simplex(seed):
    p = uniform(seed, 4, 6).at[:, seed % 6].set(0)
    return (p / p.sum(-1, keepdims=True),)


def square_log_forward(x):
    z = safe(x > 0, x)
    return jnp.where(x > 0, z * z * jnp.log(z), 0), x


def square_log_backward(x, dy):
    z = safe(x > 0, x)
    return (jnp.where(x > 0, dy * z * (2 * jnp.log(z) + 1), 0),)


def sinc_parts(x):
    """sin(x) / x and its slope, by their series near zero."""
    near = jnp.abs(x) < 0.5
    s, z = x * x, safe(~near, x)
    value, slope, sign = jnp.ones_like(x), jnp.zeros_like(x), 1.0
    factorial = 1.0
    for n in range(1, 8):
        factorial, sign = factorial * (2 * n) * (2 * n + 1), -sign
        value = value + sign * s**n / factorial
        slope = slope + sign * 2 * n * x * s ** (n - 1) / factorial
    return jnp.where(near, value, jnp.sin(z) / z), jnp.where(near, slope, (jnp.cos(z) - jnp.sin(z) / z) / z)


def around_zero(seed):
    return (uniform(seed, 12, low=-3, high=3).at[0].set(0).at[1].set(1e-2),)


def masked_softmax(x, mask):
    return jax.nn.softmax(jnp.where(mask, x, -jnp.inf))


def masked_softmax_forward(x, mask):
    top = jax.lax.stop_gradient(jnp.where(mask, x, -jnp.inf).max(-1, keepdims=True, initial=-1e30))
    e = jnp.where(mask, jnp.exp(safe(mask, x, top) - top), 0)
    y = e / safe(mask.any(-1, keepdims=True), e.sum(-1, keepdims=True))
    return y, y


def masked_softmax_backward(y, dy):
    return y * (dy - (y * dy).sum(-1, keepdims=True)), None


def masked_rows(seed):
    """Every other sample has a row without a key."""
    return normal(seed, 4, 6), (normal(seed + 1, 4, 6) > -0.5).at[seed % 4].set(seed % 2 == 1)


def attention(q, k, v, mask):
    return masked_softmax(q @ k.T, mask) @ v


def attention_forward(q, k, v, mask):
    p, _ = masked_softmax_forward(q @ k.T, mask)
    return p @ v, (q, k, v, p)


def attention_backward(residuals, dy):
    q, k, v, p = residuals
    ds = masked_softmax_backward(p, dy @ v.T)[0]
    return ds @ k, ds.T @ q, p.T @ dy, None


def deviation_forward(x):
    gap = x - x.mean(-1, keepdims=True)
    square = (gap * gap).mean(-1)
    y = jnp.where(square > 0, jnp.sqrt(safe(square > 0, square)), 0)
    return y, (gap, y)


def deviation_backward(residuals, dy):
    gap, y = residuals
    return (jnp.where(col(y > 0), col(dy) * gap / col(safe(y > 0, y)) / gap.shape[-1], 0),)


def rodrigues(v):
    """A rotation out of its axis times its angle, as the textbook has it."""
    angle = jnp.sqrt((v * v).sum())
    k = jnp.cross(jnp.eye(3, dtype=v.dtype), v / angle)
    return jnp.eye(3, dtype=v.dtype) + jnp.sin(angle) * k + (1 - jnp.cos(angle)) * k @ k


def rotation_forward(v):
    return jax.scipy.linalg.expm(jnp.cross(jnp.eye(3, dtype=v.dtype), v)), v


def rotation_backward(v, dy):
    eye = jnp.eye(3, dtype=v.dtype)
    k = jnp.cross(eye, v)
    block = jnp.block([[k.T, dy], [jnp.zeros_like(k), k.T]])
    dk = jax.scipy.linalg.expm(block)[:3, 3:]
    return (jnp.stack([(dk * jnp.cross(eye, eye[i])).sum() for i in range(3)]),)


def signs_and_zeros(seed):
    return (steps(seed, 4, 9, high=2) / 2,)


NAN = [
    Right(
        "norm, gradient 0 at 0",
        (norm_forward, lambda unit, dy: (col(dy) * unit,)),
        lambda x: jnp.linalg.norm(x, axis=-1),
        **drawn(norm_rows),
        why_hard="the reference is nan on one row",
    ),
    Right(
        "norm of nothing but zeros",
        rule(norm_forward, lambda unit, dy: (col(dy) * unit,)),
        lambda x: jnp.sqrt((x * x).sum(-1)),
        **drawn(lambda seed: (normal(seed, 3, 4, scale=seed % 2),)),
        why_hard="the reference is nan everywhere, for one sample in two",
    ),
    Right(
        "unit vectors, 0 at 0",
        (unit_forward, unit_backward),
        lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True),
        **drawn(norm_rows),
        why_hard="the reference is nan in value and gradient on one row",
    ),
    Right(
        "distances of all to all",
        (
            distances_forward,
            lambda unit, dy: ((col(dy) * unit).sum(1) - (col(dy) * unit).sum(0),),
        ),
        distances,
        lambda: (normal(0, 5, 3),),
        why_hard="the diagonal makes every entry of the reference nan",
    ),
    Right(
        "exp(-1/x) of the positive part",
        (bump_forward, bump_backward),
        lambda x: jnp.where(x > 0, jnp.exp(-1 / x), 0),
        **drawn(signs_and_zeros),
        why_hard="the reference is nan at zero and overflows below it; every true derivative is zero",
    ),
    Right(
        "x ** 1.5 of the positive part",
        (power_forward, power_backward),
        lambda x: jnp.where(x > 0, x**1.5, 0),
        **drawn(signs_and_zeros),
        why_hard="the reference is nan below zero; at zero the curvature is infinite on one side",
    ),
    Right(
        "entropy with zero probabilities",
        (entropy_forward, entropy_backward),
        entropy,
        **drawn(sparse_simplex),
        why_hard="the reference is nan at zero, where the slope is infinite and the convention 0",
    ),
    Right(
        "x^2 log x with zeros",
        (square_log_forward, square_log_backward),
        lambda x: jnp.where(x > 0, x * x * jnp.log(x), 0),
        **drawn(lambda seed: (uniform(seed, 3, 6).at[:, seed % 6].set(0),)),
        why_hard="the true slope at zero is zero; the reference's is nan",
    ),
    Right(
        "sin(x) / x with zero",
        (lambda x: (sinc_parts(x)[0], x), lambda x, dy: (dy * sinc_parts(x)[1],)),
        lambda x: jnp.where(x != 0, jnp.sin(x) / x, 1),
        **drawn(around_zero),
        why_hard="the reference is nan at zero and cancels near it",
    ),
    Right(
        "softplus where exp overflows",
        (lambda x: (jnp.logaddexp(x, 0), x), lambda x, dy: (dy * jax.nn.sigmoid(x),)),
        lambda x: jnp.log(1 + jnp.exp(x)),
        lambda: (normal(1, 4, 8, scale=100),),
        why_hard="the reference is inf and nan above 88 in float32",
    ),
    Right(
        "softmax where exp overflows",
        (
            lambda x: (jax.nn.softmax(x),) * 2,
            lambda y, dy: (y * (dy - (y * dy).sum(-1, keepdims=True)),),
        ),
        lambda x: jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True),
        lambda: (normal(2, 4, 8, scale=60, shift=100),),
        why_hard="the reference is nan in float32",
    ),
    Right(
        "sigmoid where exp overflows",
        rule(lambda x: (jax.nn.sigmoid(x), x), lambda x, dy: (dy * jax.nn.sigmoid(x) * jax.nn.sigmoid(-x),)),
        lambda x: 1 / (1 + jnp.exp(-x)),
        lambda: (normal(3, 4, 8, scale=100),),
        why_hard="inf / inf in the reference's gradient",
    ),
    Right(
        "masked attention, queries without a key are 0",
        rule(attention_forward, attention_backward),
        lambda q, k, v, mask: jnp.where(mask.any(-1, keepdims=True), attention(q, k, v, mask), 0),
        **drawn(
            lambda seed: (normal(seed + 2, 4, 3), normal(seed + 3, 6, 3), normal(seed + 4, 6, 5), masked_rows(seed)[1])
        ),
        why_hard="the reference's values are right, its gradient is nan everywhere",
    ),
    Right(
        "deviation, 0 on constant rows",
        (deviation_forward, deviation_backward),
        lambda x: x.std(-1),
        **drawn(lambda seed: (normal(seed, 4, 8).at[seed % 4].set(2.0),)),
        why_hard="the reference is nan on the constant row",
    ),
    Right(
        "product by its logarithms in the reference",
        (lambda x: (x[..., 0] * x[..., 1], x), lambda x, dy: (col(dy) * x[..., ::-1],)),
        lambda x: jnp.exp(jnp.log(x).sum(-1)),
        **drawn(lambda seed: (uniform(seed, 5, 2).at[seed % 5, 0].set(0),)),
        why_hard="0 * inf in the reference",
    ),
    Right(
        "masked softmax, rows without a key are 0",
        (masked_softmax_forward, masked_softmax_backward),
        masked_softmax,
        **drawn(masked_rows),
        why_hard="the reference is nan on the empty row",
    ),
    Right(
        "rotation by no angle",
        (rotation_forward, rotation_backward),
        rodrigues,
        **drawn(lambda seed: (normal(seed, 3, scale=1.0 * (seed % 2)),)),
        why_hard="the reference is nan at zero",
    ),
    Right(
        "logsumexp of nothing",
        (
            lambda x: (logsumexp(x, axis=-1), (x, logsumexp(x, axis=-1))),
            lambda r, dy: (jnp.where(r[0] > -jnp.inf, col(dy) * jnp.exp(r[0] - col(safe(r[1] > -jnp.inf, r[1]))), 0),),
        ),
        lambda x: jnp.log(jnp.exp(x).sum(-1)),
        **drawn(lambda seed: (normal(seed, 4, 6).at[1, 2].set(-jnp.inf).at[2].set(-jnp.inf),)),
        why_hard="arguments of minus infinity; the reference is nan on the empty row",
    ),
]
