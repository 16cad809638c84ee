"""Right by another algorithm: blocks, online and compensated sums, other orders."""

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from .right_case import Right, drawn, normal, steps, uniform


def blocks(x, size, fill=0):
    """(..., n) -> (blocks, ..., size), filled up."""
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % size)], constant_values=fill)
    return jnp.moveaxis(x.reshape(*x.shape[:-1], -1, size), -2, 0)


def online_logsumexp_forward(x):
    def step(carry, block):
        top, total = carry
        new = jnp.maximum(top, block.max(-1))
        return (new, total * jnp.exp(top - new) + jnp.exp(block - new[..., None]).sum(-1)), None

    start = jnp.full(x.shape[:-1], jnp.finfo(x.dtype).min), jnp.zeros(x.shape[:-1], x.dtype)
    top, total = jax.lax.scan(step, jax.tree.map(lambda s: s.astype(x.dtype), start), blocks(x, 8, -jnp.inf))[0]
    return top + jnp.log(total), (x, top, total)


def attention(q, k, v):
    return jax.nn.softmax(q @ k.T / q.shape[-1] ** 0.5) @ v


def key_blocks(k, v, size=4):
    turned = [jnp.swapaxes(blocks(jnp.swapaxes(x, -1, -2), size), -1, -2) for x in (k, v)]
    return *turned, blocks(jnp.ones(k.shape[0], bool), size, False)


def flash_forward(q, k, v):
    q_ = q / q.shape[-1] ** 0.5

    def step(carry, block):
        top, total, out = carry
        k, v, there = block
        s = jnp.where(there, q_ @ k.T, -jnp.inf)
        new = jnp.maximum(top, s.max(-1))
        p, shrink = jnp.exp(s - new[:, None]), jnp.exp(top - new)
        return (new, total * shrink + p.sum(-1), out * shrink[:, None] + p @ v), None

    low = jnp.full(q.shape[:1], jnp.finfo(q.dtype).min, q.dtype)
    start = low, jnp.zeros_like(low), jnp.zeros((*q.shape[:1], v.shape[-1]), q.dtype)
    top, total, out = jax.lax.scan(step, start, key_blocks(k, v))[0]
    y = out / total[:, None]
    return y, (q, k, v, y, top, total)


def flash_backward(residuals, dy):
    q, k, v, y, top, total = residuals
    scale = q.shape[-1] ** 0.5
    q_ = q / scale
    delta = (dy * y).sum(-1, keepdims=True)

    def step(dq, block):
        k, v, there = block
        p = jnp.exp(jnp.where(there, q_ @ k.T, -jnp.inf) - top[:, None]) / total[:, None]
        ds = p * (dy @ v.T - delta) / scale
        return dq + ds @ k, (ds.T @ q, p.T @ dy)

    dq, (dk, dv) = jax.lax.scan(step, jnp.zeros_like(q), key_blocks(k, v))
    return dq, dk.reshape(-1, k.shape[-1])[: len(k)], dv.reshape(-1, v.shape[-1])[: len(v)]


def welford_forward(x):
    def step(carry, row):
        count, mean, spread = carry
        gap = row - mean
        mean = mean + gap / (count + 1)
        return (count + 1, mean, spread + gap * (row - mean)), None

    start = jnp.zeros((), x.dtype), jnp.zeros_like(x[0]), jnp.zeros_like(x[0])
    (count, mean, spread), _ = jax.lax.scan(step, start, x)
    return spread / count, (x, mean)


def welford_backward(residuals, dy):
    x, mean = residuals
    return (2 / len(x) * dy * (x - mean),)


def shifted_variance(x):
    """One pass, shifted by the first row; its own autodiff is the gradient."""
    z = x - jax.lax.stop_gradient(x[:1])
    return (z * z).mean(0) - z.mean(0) ** 2


def kahan_forward(x):
    def step(carry, row):
        total, lost = carry
        row = row - lost
        new = total + row
        return (new, (new - total) - row), None

    return jax.lax.scan(step, (jnp.zeros_like(x[0]),) * 2, x)[0][0], x


def pairwise_sum(x):
    if len(x) < 3:
        return x.sum(0)
    return pairwise_sum(x[: len(x) // 2]) + pairwise_sum(x[len(x) // 2 :])


def blocked_matmul(x, w):
    add = lambda total, pair: (total + pair[0] @ pair[1].T, None)
    start = jnp.zeros((len(x), w.shape[1]), x.dtype)
    return jax.lax.scan(add, start, (blocks(x, 16), blocks(w.T, 16)))[0]


def recurrence(a, x):
    return jax.lax.scan(lambda h, ax: (ax[0] * h + ax[1],) * 2, jnp.zeros_like(x[0]), (a, x))[1]


def associative_recurrence(a, x, reverse=False):
    join = lambda one, two: (one[0] * two[0], two[0] * one[1] + two[1])
    return jax.lax.associative_scan(join, (a, x), reverse=reverse)[1]


def associative_backward(residuals, dy):
    a, h = residuals
    g = associative_recurrence(jnp.concatenate([a[1:], jnp.zeros_like(a[:1])]), dy, reverse=True)
    return g * jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]]), g


def cumprod_backward(x, dy):
    """No division, so that zeros do no harm."""
    one = jnp.ones_like(x[:1])
    before = jnp.cumprod(jnp.concatenate([one, x[:-1]]), 0)
    step = lambda r, now: (now[0] * r + now[1],) * 2
    later = jnp.concatenate([x[1:], jnp.zeros_like(one)])
    return (before * jax.lax.scan(step, jnp.zeros_like(x[0]), (later, dy), reverse=True)[1],)


def horner(x, c):
    total = jnp.zeros_like(x)
    for i in reversed(range(len(c))):
        total = total * x + c[i]
    return total


def horner_backward(residuals, dy):
    x, c = residuals
    slope = horner(x, c[1:] * jnp.arange(1, len(c)).astype(c.dtype))
    return dy * slope, jnp.stack([(dy * x**i).sum() for i in range(len(c))])


ALGORITHMS = [
    Right(
        "logsumexp online, in blocks of 8",
        (online_logsumexp_forward, lambda r, dy: ((dy / r[2])[..., None] * jnp.exp(r[0] - r[1][..., None]),)),
        lambda x: logsumexp(x, axis=-1),
        lambda: (normal(0, 3, 21, scale=4),),
        why_hard="the last block is part filling",
    ),
    Right(
        "flash attention, blocks of 4 keys",
        (flash_forward, flash_backward),
        attention,
        lambda: (normal(1, 5, 8), normal(2, 10, 8), normal(3, 10, 6)),
        why_hard="probabilities are rebuilt block by block",
    ),
    Right(
        "variance by Welford",
        (welford_forward, welford_backward),
        lambda x: x.var(0),
        lambda: (normal(4, 17, 3, shift=3),),
        why_hard="a running mean",
    ),
    Right(
        "variance shifted by the first row",
        shifted_variance,
        lambda x: x.var(0),
        lambda: (normal(5, 17, 3, shift=30),),
        why_hard="stop_gradient on a shift that cancels: right all the same",
    ),
    Right(
        "sum by Kahan",
        (kahan_forward, lambda x, dy: (jnp.broadcast_to(dy, x.shape),)),
        lambda x: x.sum(0),
        lambda: (normal(6, 100, 3),),
        why_hard="better than the reference",
    ),
    Right("sum by halves", pairwise_sum, lambda x: x.sum(0), lambda: (normal(7, 33, 2),), {}, "another order"),
    Right(
        "matmul in blocks of 16",
        (
            lambda x, w: (blocked_matmul(x, w), (x, w)),
            lambda r, dy: (blocked_matmul(dy, r[1].T), blocked_matmul(r[0].T, dy)),
        ),
        lambda x, w: x @ w,
        lambda: (normal(10, 5, 70), normal(11, 70, 4)),
        why_hard="another order of the sum",
    ),
    Right(
        "linear recurrence by associative scan",
        (lambda a, x: (associative_recurrence(a, x), (a, associative_recurrence(a, x))), associative_backward),
        recurrence,
        lambda: (uniform(12, 24, 3, low=-1), normal(13, 24, 3)),
        why_hard="another order of the products",
    ),
    Right(
        "cumprod with zeros, without division",
        (lambda x: (jnp.cumprod(x, 0), x), cumprod_backward),
        lambda x: jnp.cumprod(x, 0),
        **drawn(lambda seed: (normal(seed, 6, 4).at[2, 1].set(0).at[1:4, 2].set(0),)),
        why_hard="dividing the product by x fails here",
    ),
    Right(
        "polynomial by Horner",
        (lambda x, c: (horner(x, c), (x, c)), horner_backward),
        lambda x, c: sum(c[i] * x**i for i in range(5)),
        lambda: (normal(15, 12), normal(16, 5)),
        why_hard="cancelling terms, in another order",
    ),
    Right(
        "three matrices, from the right",
        lambda a, b, c: a @ (b @ c),
        lambda a, b, c: (a @ b) @ c,
        lambda: (normal(28, 3, 9), normal(29, 9, 8), normal(30, 8, 2)),
        why_hard="associativity does not hold in floats",
    ),
    Right(
        "mean by a running mean",
        (
            lambda x: (
                jax.lax.scan(
                    lambda c, r: ((c[0] + 1, c[1] + (r - c[1]) / (c[0] + 1)), None),
                    (jnp.zeros((), x.dtype), jnp.zeros_like(x[0])),
                    x,
                )[0][1],
                x,
            ),
            lambda x, dy: (jnp.broadcast_to(dy / len(x), x.shape),),
        ),
        lambda x: x.mean(0),
        lambda: (normal(31, 50, 3),),
        why_hard="never the whole sum",
    ),
    Right(
        "cumsum by a triangular matrix",
        (
            lambda x: (jnp.tri(len(x), dtype=x.dtype) @ x, None),
            lambda _, dy: (jnp.tri(len(dy), dtype=dy.dtype).T @ dy,),
        ),
        lambda x: jnp.cumsum(x, 0),
        lambda: (normal(32, 40, 3),),
        why_hard="an order of its own for every prefix",
    ),
    Right(
        "squared distances by the binomial formula",
        (
            lambda x, c: ((x * x).sum(-1)[:, None] + (c * c).sum(-1) - 2 * x @ c.T, (x, c)),
            lambda r, dy: (2 * (r[0] * dy.sum(1)[:, None] - dy @ r[1]), 2 * (r[1] * dy.sum(0)[:, None] - dy.T @ r[0])),
        ),
        lambda x, c: ((x[:, None] - c) ** 2).sum(-1),
        lambda: (normal(33, 6, 3), steps(34, 4, 3)),
        why_hard="differences are taken after the products",
    ),
]
