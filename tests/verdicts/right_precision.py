"""Right in low precision: sums in float32 and one rounding at the end."""

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from .right_case import Right, dot, integers, normal, picked, rule, size, wide

BF16, F16 = jnp.bfloat16, jnp.float16


def dense_forward(x, w):
    return dot("nk,km->nm", x, w).astype(x.dtype), (x, w)


def dense_backward(residuals, dy):
    x, w = residuals
    return dot("nm,km->nk", dy, w).astype(x.dtype), dot("nk,nm->km", x, dy).astype(w.dtype)


def softmax_forward(x):
    y = jax.nn.softmax(wide(x)).astype(x.dtype)
    return y, y


def softmax_backward(y, dy):
    p, g = wide(y), wide(dy)
    return ((p * (g - (p * g).sum(-1, keepdims=True))).astype(y.dtype),)


def log_softmax_forward(x):
    z = wide(x)
    z = z - logsumexp(z, axis=-1, keepdims=True)
    return z.astype(x.dtype), z


def log_softmax_backward(z, dy):
    g = wide(dy)
    return ((g - jnp.exp(z) * g.sum(-1, keepdims=True)).astype(dy.dtype),)


def layer_norm(x, gain, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * gain + bias


def layer_norm_forward(x, gain, bias):
    scale = size(wide(x))
    z = wide(x) / scale
    centred = z - z.mean(-1, keepdims=True)
    rstd = jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5 / scale / scale)
    unit = centred * rstd
    return (unit * wide(gain) + wide(bias)).astype(x.dtype), (unit, gain, rstd / scale)


def layer_norm_backward(residuals, dy):
    unit, gain, rstd = residuals
    g = wide(dy)
    inner = g * wide(gain)
    dx = rstd * (inner - inner.mean(-1, keepdims=True) - unit * (inner * unit).mean(-1, keepdims=True))
    return dx.astype(dy.dtype), (g * unit).sum(0).astype(gain.dtype), g.sum(0).astype(gain.dtype)


def attention(q, k, v):
    scores = jnp.einsum("qd,kd->qk", q, k) / q.shape[-1] ** 0.5
    return jax.nn.softmax(jnp.where(jnp.tri(*scores.shape, dtype=bool), scores, -jnp.inf)) @ v


def scores(q, k):
    s = dot("qd,kd->qk", q, k) / q.shape[-1] ** 0.5
    return jnp.where(jnp.tri(*s.shape, dtype=bool), s, -jnp.inf)


def attention_forward(q, k, v):
    p = jax.nn.softmax(scores(q, k))
    return dot("qk,kd->qd", p.astype(v.dtype), v).astype(q.dtype), (q, k, v)


def attention_backward(residuals, dy):
    q, k, v = residuals
    p, g = jax.nn.softmax(scores(q, k)), wide(dy)
    dp = dot("qd,kd->qk", g, wide(v))
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) / q.shape[-1] ** 0.5
    gradients = dot("qk,kd->qd", ds, wide(k)), dot("qk,qd->kd", ds, wide(q)), dot("qk,qd->kd", p, g)
    return tuple(g.astype(x.dtype) for g, x in zip(gradients, (q, k, v), strict=True))


def half_cross_entropy_forward(x, labels):
    z = wide(x)
    lse = logsumexp(z, axis=-1)
    return lse - picked(z, labels), (x, labels, lse)  # float32 out of float16


def half_cross_entropy_backward(residuals, dy):
    x, labels, lse = residuals
    p = jnp.exp(wide(x) - lse[:, None])
    return ((p - jax.nn.one_hot(labels, x.shape[-1], dtype=p.dtype)) * dy[:, None]).astype(x.dtype), None


def cross_entropy(x, labels):
    return -picked(jax.nn.log_softmax(x), labels)


def mean_forward(x):
    return (wide(x).sum() / x.size).astype(x.dtype), x


def mean_backward(x, dy):
    return (jnp.full(x.shape, wide(dy) / x.size).astype(x.dtype),)


def cumsum_forward(x):
    return jnp.cumsum(wide(x), 0).astype(x.dtype), None


def cumsum_backward(_, dy):
    return (jnp.flip(jnp.cumsum(jnp.flip(wide(dy), 0), 0), 0).astype(dy.dtype),)


def embedding_backward(residuals, dy):
    table, ids = residuals
    return jnp.zeros(table.shape, wide(dy).dtype).at[ids].add(wide(dy)).astype(table.dtype), None


def tanh_backward(y, dy):
    return (dy * ((1 - y) * (1 + y)),)


PRECISION = [
    Right(
        "dense, bfloat16, sums of 4096",
        (dense_forward, dense_backward),
        lambda x, w: x @ w,
        lambda: (normal(0, 4, 4096, dtype=BF16), normal(1, 4096, 3, dtype=BF16)),
        why_hard="a sum of 4096 products: only the last rounding is bfloat16's",
    ),
    Right(
        "dense, float16, weight gradient over 2048 rows",
        (dense_forward, dense_backward),
        lambda x, w: x @ w,
        lambda: (normal(2, 2048, 4, dtype=F16), normal(3, 4, 3, dtype=F16)),
        why_hard="the sum over the rows cancels: its float16 error is relative to the terms",
    ),
    Right(
        "softmax, bfloat16, probabilities kept in bfloat16",
        (softmax_forward, softmax_backward),
        jax.nn.softmax,
        lambda: (normal(4, 4, 256, dtype=BF16, scale=3),),
        why_hard="the rounded probabilities do not add up to one",
    ),
    Right(
        "log_softmax, bfloat16, float32 inside",
        (log_softmax_forward, log_softmax_backward),
        jax.nn.log_softmax,
        lambda: (normal(5, 4, 100, dtype=BF16, scale=5),),
        why_hard="one rounding, where the reference has many",
    ),
    Right(
        "logsumexp, bfloat16, 1000 classes",
        (
            lambda x: (logsumexp(wide(x), axis=-1).astype(x.dtype), (x, logsumexp(wide(x), axis=-1))),
            lambda r, dy: ((wide(dy)[:, None] * jnp.exp(wide(r[0]) - r[1][:, None])).astype(r[0].dtype),),
        ),
        lambda x: logsumexp(x, axis=-1),
        lambda: (normal(6, 3, 1000, dtype=BF16),),
        why_hard="the normaliser is kept in float32, the value is rounded to bfloat16",
    ),
    Right(
        "layer norm, bfloat16, statistics in float32",
        rule(layer_norm_forward, layer_norm_backward),
        layer_norm,
        lambda: (normal(7, 6, 128, dtype=BF16, shift=2), normal(8, 128, dtype=BF16), normal(9, 128, dtype=BF16)),
        why_hard="the difference of three close terms, of mean 2",
    ),
    Right(
        "layer norm, float16",
        (layer_norm_forward, layer_norm_backward),
        layer_norm,
        lambda: (normal(10, 6, 64, dtype=F16), normal(11, 64, dtype=F16), normal(12, 64, dtype=F16)),
        why_hard="squares leave float16's range long before the values do",
    ),
    Right(
        "causal attention, bfloat16, recomputed",
        (attention_forward, attention_backward),
        attention,
        lambda: tuple(normal(i, 12, 16, dtype=BF16) for i in (13, 14, 15)),
        why_hard="probabilities are rounded for the value and not for the gradient",
    ),
    Right(
        "cross-entropy, float16 logits, float32 loss",
        (half_cross_entropy_forward, half_cross_entropy_backward),
        cross_entropy,
        lambda: (normal(16, 5, 50, dtype=F16, scale=20), integers(17, 5, high=50)),
        why_hard="the loss has another type than the logits; small probabilities are below float16",
    ),
    Right(
        "mean of 40000, float16",
        (mean_forward, mean_backward),
        jnp.mean,
        lambda: (normal(29, 40000, dtype=F16),),
        why_hard="each gradient is subnormal in float16: few bits are left",
    ),
    Right(
        "cumsum, bfloat16, 512 long",
        (cumsum_forward, cumsum_backward),
        lambda x: jnp.cumsum(x, 0),
        lambda: (normal(30, 512, 3, dtype=BF16),),
        why_hard="a bfloat16 running sum drowns; this one is float32's",
    ),
    Right(
        "bias, bfloat16, 4096 rows",
        (lambda x, b: (x + b, b), lambda b, dy: (dy, wide(dy).sum(0).astype(b.dtype))),
        lambda x, b: x + b,
        lambda: (normal(31, 4096, 4, dtype=BF16), normal(32, 4, dtype=BF16)),
        why_hard="a bfloat16 sum stops at 256",
    ),
    Right(
        "embedding, bfloat16, 2048 ids of 3 rows",
        (lambda table, ids: (table[ids], (table, ids)), embedding_backward),
        lambda table, ids: table[ids],
        lambda: (normal(33, 3, 4, dtype=BF16), integers(34, 2048, high=3)),
        why_hard="the reference's own scatter drowns in bfloat16",
    ),
    Right(
        "tanh, float16, from the value",
        (lambda x: (jnp.tanh(x),) * 2, tanh_backward),
        jnp.tanh,
        lambda: (normal(35, 4, 16, dtype=F16, scale=3),),
        why_hard="1 - y^2 of a rounded y near 1: no digit is right",
    ),
    Right(
        "sigmoid, bfloat16, from the value",
        rule(lambda x: (jax.nn.sigmoid(x),) * 2, lambda y, dy: (dy * y * (1 - y),)),
        jax.nn.sigmoid,
        lambda: (normal(36, 4, 16, dtype=BF16, scale=4),),
        why_hard="1 - y of a rounded y near 1",
    ),
]
