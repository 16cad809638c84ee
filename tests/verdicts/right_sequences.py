"""Right on sequences and tables: attention, recurrences, rotations, gathers, scatters, scans and segments."""

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from .right_case import Right, drawn, integers, normal, rule, uniform

col = lambda x: x[..., None]


def softmax_backward(p, dp):
    return p * (dp - (p * dp).sum(-1, keepdims=True))


def grouped(q, k, v):
    """(heads, time, depth) queries on fewer heads of keys and values, causal, slopes by distance."""
    repeats = len(q) // len(k)
    k, v = jnp.repeat(k, repeats, 0), jnp.repeat(v, repeats, 0)
    t = jnp.arange(q.shape[1])
    gap = (t[:, None] - t).astype(q.dtype)
    s = jnp.einsum("hqd,hkd->hqk", q, k) / q.shape[-1] ** 0.5 - 0.25 * gap
    return jnp.einsum("hqk,hkd->hqd", jax.nn.softmax(jnp.where(gap >= 0, s, -jnp.inf)), v)


def grouped_scores(q, k):
    q = q.reshape(len(k), -1, *q.shape[1:])
    t = jnp.arange(q.shape[2])
    gap = (t[:, None] - t).astype(q.dtype)
    s = jnp.einsum("ghqd,gkd->ghqk", q, k) / q.shape[-1] ** 0.5 - 0.25 * gap
    return q, jax.nn.softmax(jnp.where(gap >= 0, s, -jnp.inf))


def grouped_forward(q, k, v):
    p = grouped_scores(q, k)[1]
    return jnp.einsum("ghqk,gkd->ghqd", p, v).reshape(*q.shape[:-1], v.shape[-1]), (q, k, v)


def grouped_backward(residuals, dy):
    shape, (q, k, v) = residuals[0].shape, residuals
    q, p = grouped_scores(q, k)
    dy = dy.reshape(*q.shape[:-1], -1)
    ds = softmax_backward(p, jnp.einsum("ghqd,gkd->ghqk", dy, v)) / q.shape[-1] ** 0.5
    dq = jnp.einsum("ghqk,gkd->ghqd", ds, k).reshape(shape)
    return dq, jnp.einsum("ghqk,ghqd->gkd", ds, q), jnp.einsum("ghqk,ghqd->gkd", p, dy)


def angles(n, d, dtype):
    a = jnp.arange(n)[:, None] * 10000.0 ** (-jnp.arange(d // 2) * 2 / d)
    return jnp.cos(a).astype(dtype), jnp.sin(a).astype(dtype)


def rotary(x, sign=1):
    c, s = angles(*x.shape, x.dtype)
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * c - sign * b * s, sign * a * s + b * c], -1)


def rotary_reference(x):
    c, s = angles(*x.shape, x.dtype)
    a, b = jnp.split(x, 2, -1)
    z = jax.lax.complex(a, b) * jax.lax.complex(c, s)
    return jnp.concatenate([z.real, z.imag], -1)


def gates(z):
    i, f, g, o = jnp.split(z, 4, -1)
    return jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)


def lstm(x, w, u):
    def step(carry, z):
        h, c = carry
        i, f, g, o = gates(z + h @ u)
        c = f * c + i * g
        return (o * jnp.tanh(c), c), o * jnp.tanh(c)

    start = jnp.zeros((x.shape[1], len(u)), x.dtype)
    return jax.lax.scan(step, (start, start), x @ w)[1]


def lstm_forward(x, w, u):
    def step(carry, z):
        h, c = carry
        i, f, g, o = gates(z + h @ u)
        new = f * c + i * g
        return (o * jnp.tanh(new), new), (o * jnp.tanh(new), (h, c, i, f, g, o, jnp.tanh(new)))

    start = jnp.zeros((x.shape[1], len(u)), x.dtype)
    ys, seen = jax.lax.scan(step, (start, start), x @ w)[1]
    return ys, (x, w, u, seen)


def lstm_backward(residuals, dy):
    x, w, u, seen = residuals

    def step(carry, now):
        dh, dc, du = carry
        dy, (h, c, i, f, g, o, t) = now
        dh = dh + dy
        dc = dc + dh * o * (1 - t * t)
        dz = [dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g * g), dh * t * o * (1 - o)]
        dz = jnp.concatenate(dz, -1)
        return (dz @ u.T, dc * f, du + h.T @ dz), dz

    start = jnp.zeros_like(dy[0]), jnp.zeros_like(dy[0]), jnp.zeros_like(u)
    (_, _, du), dz = jax.lax.scan(step, start, (dy, seen), reverse=True)
    return dz @ w.T, jnp.einsum("tbi,tbj->ij", x, dz), du


def rnn(x, u):
    h, out = jnp.zeros_like(x[0]), []
    for row in x:
        h = jnp.tanh(row + h @ u)
        out.append(h)
    return jnp.stack(out)


def rnn_forward(x, u):
    return (h := jax.lax.scan(lambda h, row: (jnp.tanh(row + h @ u),) * 2, jnp.zeros_like(x[0]), x)[1]), (h, u)


def rnn_backward(residuals, dy):
    h, u = residuals

    def step(g, now):
        dy, h = now
        dz = (g + dy) * (1 - h) * (1 + h)
        return dz @ u.T, dz

    dz = jax.lax.scan(step, jnp.zeros_like(dy[0]), (dy, h), reverse=True)[1]
    return dz, jnp.einsum("tbi,tbj->ij", h[:-1], dz[1:])


def trilinear_backward(residuals, dy):
    a, b, w = residuals
    return (
        jnp.einsum("no,nj,ijo->ni", dy, b, w),
        jnp.einsum("no,ni,ijo->nj", dy, a, w),
        jnp.einsum("no,ni,nj->ijo", dy, a, b),
    )


def put(x, ids, rows):
    return x.at[ids].set(rows)


def put_backward(ids, dy):
    return dy.at[ids].set(0), None, dy[ids]


def different(seed):
    return normal(seed, 7, 3), jnp.asarray(jax.random.permutation(jax.random.key(seed), 7)[:4]), normal(seed + 1, 4, 3)


def reflect_backward(_, dy):
    inner = dy[2:-2]
    return (inner.at[1:3].add(dy[1::-1]).at[-3:-1].add(dy[:-3:-1]),)


def running_logsumexp_backward(residuals, dy):
    """Of y_t = log of the sum of exp(x_s), s <= t: what comes later counts by exp(x_s - y_t)."""
    x, y = residuals
    there = jnp.tri(len(x), dtype=bool)[..., None]
    share = jnp.where(there, jnp.exp(jnp.where(there, x - y[:, None], 0)), 0)
    return ((share * dy[:, None]).sum(0),)


def segment_softmax(x, ids, n=3):
    top = jax.ops.segment_max(x, ids, n)
    e = jnp.exp(x - jax.lax.stop_gradient(top)[ids])
    return e / jax.ops.segment_sum(e, ids, n)[ids]


def segment_backward(residuals, dy, n=3):
    y, ids = residuals
    return y * (dy - jax.ops.segment_sum(y * dy, ids, n)[ids]), None


def segment_reference(x, ids, n=3):
    same = ids[:, None] == ids
    return jnp.exp(x - logsumexp(jnp.where(same, x, -jnp.inf), axis=-1))


def selective(a, b, c, x):
    """A state-space layer: h = a h + b x, y = c h, a diagonal."""
    step = lambda h, now: ((h := now[0] * h + now[1] * now[3]), (now[2] * h).sum())
    return jax.lax.scan(step, jnp.zeros_like(a[0]), (a, b, c, x))[1]


def selective_forward(a, b, c, x):
    join = lambda one, two: (one[0] * two[0], two[0] * one[1] + two[1])
    h = jax.lax.associative_scan(join, (a, b * col(x)))[1]
    return (c * h).sum(-1), (a, b, c, x, h)


def selective_backward(residuals, dy):
    a, b, c, x, h = residuals
    join = lambda one, two: (one[0] * two[0], two[0] * one[1] + two[1])
    later = jnp.concatenate([a[1:], jnp.zeros_like(a[:1])])
    g = jax.lax.associative_scan(join, (later, c * col(dy)), reverse=True)[1]
    before = jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]])
    return g * before, g * col(x), h * col(dy), (g * b).sum(-1)


SEQUENCES = [
    Right(
        "attention, grouped heads, slopes by distance",
        (grouped_forward, grouped_backward),
        grouped,
        **drawn(lambda seed: (normal(seed, 4, 5, 6), normal(seed + 1, 2, 5, 6), normal(seed + 2, 2, 5, 3))),
        why_hard="sums over the heads that share a key; minus infinity above the diagonal",
    ),
    Right(
        "rotary positions",
        (lambda x: (rotary(x), None), lambda _, dy: (rotary(dy, -1),)),
        rotary_reference,
        lambda: (normal(0, 6, 8),),
        why_hard="no residual: the backward turns the other way",
    ),
    Right(
        "LSTM",
        rule(lstm_forward, lstm_backward),
        lstm,
        **drawn(lambda seed: (normal(seed, 5, 2, 3), normal(seed + 1, 3, 16), normal(seed + 2, 4, 16))),
        why_hard="seven residuals a step",
    ),
    Right(
        "tanh RNN",
        (rnn_forward, rnn_backward),
        rnn,
        **drawn(lambda seed: (normal(seed, 6, 2, 4), normal(seed + 1, 4, 4))),
        why_hard="the first state is missing from the residuals",
    ),
    Right(
        "state space by associative scan",
        (selective_forward, selective_backward),
        selective,
        **drawn(
            lambda seed: (uniform(seed, 9, 4), normal(seed + 1, 9, 4), normal(seed + 2, 9, 4), normal(seed + 3, 9))
        ),
        why_hard="the reference steps",
    ),
    Right(
        "trilinear einsum",
        (lambda a, b, w: (jnp.einsum("ni,nj,ijo->no", a, b, w), (a, b, w)), trilinear_backward),
        lambda a, b, w: ((a[:, :, None, None] * b[:, None, :, None]) * w).sum((1, 2)),
        **drawn(lambda seed: (normal(seed, 4, 3), normal(seed + 1, 4, 5), normal(seed + 2, 3, 5, 2))),
    ),
    Right(
        "gather with repeats",
        (lambda x, ids: (x[ids], (x, ids)), lambda r, dy: (jax.ops.segment_sum(dy, r[1], len(r[0])), None)),
        lambda x, ids: jnp.take(x, ids, 0),
        **drawn(lambda seed: (normal(seed, 5, 3), integers(seed, 12, high=5))),
    ),
    Right(
        "scatter: set",
        (lambda x, ids, rows: (put(x, ids, rows), ids), put_backward),
        lambda x, ids, rows: jnp.where(
            (jnp.arange(len(x))[:, None] == ids).any(1)[:, None],
            jax.nn.one_hot(ids, len(x), dtype=x.dtype, axis=0) @ rows,
            x,
        ),
        **drawn(different),
        why_hard="rows that are overwritten have no gradient",
    ),
    Right(
        "scatter: add with repeats",
        (lambda x, ids, rows: (x.at[ids].add(rows), ids), lambda ids, dy: (dy, None, dy[ids])),
        lambda x, ids, rows: x + jax.ops.segment_sum(rows, ids, len(x)),
        **drawn(lambda seed: (normal(seed, 5, 3), integers(seed, 9, high=5), normal(seed + 1, 9, 3))),
    ),
    Right(
        "concatenation, three parts",
        rule(
            lambda a, b, c: (jnp.concatenate([a, b, c]), (a, b)),
            lambda r, dy: (dy[: len(r[0])], dy[len(r[0]) : len(r[0]) + len(r[1])], dy[len(r[0]) + len(r[1]) :]),
        ),
        lambda *parts: jnp.vstack(parts),
        lambda: (normal(1, 2, 3), normal(2, 4, 3), normal(3, 1, 3)),
    ),
    Right(
        "padding by reflection",
        (lambda x: (jnp.pad(x, ((2, 2), (0, 0)), "reflect"), None), reflect_backward),
        lambda x: jnp.concatenate([x[2:0:-1], x, x[-2:-4:-1]]),
        **drawn(lambda seed: (normal(seed, 6, 3),)),
        why_hard="rows that are read twice",
    ),
    Right(
        "roll",
        (lambda x: (jnp.roll(x, 3, 0), None), lambda _, dy: (jnp.roll(dy, -3, 0),)),
        lambda x: x[(jnp.arange(len(x)) - 3) % len(x)],
        lambda: (normal(4, 7, 2),),
    ),
    Right(
        "running logsumexp",
        (lambda x: (y := jax.lax.cumlogsumexp(x, 0), (x, y)), running_logsumexp_backward),
        lambda x: jnp.stack([logsumexp(x[: t + 1], axis=0) for t in range(len(x))]),
        lambda: (normal(5, 7, 3, scale=4),),
        why_hard="shares of a sum that grows",
    ),
    Right(
        "softmax by segments",
        (lambda x, ids: (segment_softmax(x, ids), (segment_softmax(x, ids), ids)), segment_backward),
        segment_reference,
        **drawn(lambda seed: (normal(seed, 12), integers(seed, 12, high=3))),
        why_hard="segments of one entry have a gradient of zero",
    ),
    Right(
        "outer product and trace",
        (
            lambda a, b: (jnp.outer(a, b).trace(), (a, b)),
            lambda r, dy: (
                dy * jnp.zeros_like(r[0]).at[: min(len(r[0]), len(r[1]))].set(r[1][: len(r[0])]),
                dy * jnp.zeros_like(r[1]).at[: min(len(r[0]), len(r[1]))].set(r[0][: len(r[1])]),
            ),
        ),
        lambda a, b: (a[:4] * b[:4]).sum(),
        **drawn(lambda seed: (normal(seed, 6), normal(seed + 1, 4))),
        why_hard="entries that do not count",
    ),
]
