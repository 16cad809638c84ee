"""Mistakes through time: LSTM and GRU cells, a scanned RNN, linear recurrences, running sums and products."""

from functools import partial

import jax.numpy as jnp
from jax import lax, nn

from .wrong_base import Op, normal, normals, positive, without

s = nn.sigmoid

# ── LSTM cell: z = x w + h u + b in four parts, i f g o ──────────────────────────────────────────────────────────────


def lstm_reference(w, u, b, x, h, c):
    z = x @ w + h @ u + b
    n = c.shape[-1]
    i, f, g, o = (z[..., k * n : (k + 1) * n] for k in range(4))
    c = s(f) * c + s(i) * jnp.tanh(g)
    return s(o) * jnp.tanh(c), c


def lstm_forward(w, u, b, x, h, c):
    zi, zf, zg, zo = jnp.split(x @ w + h @ u + b, 4, -1)
    i, f, g, o = s(zi), s(zf), jnp.tanh(zg), s(zo)
    new = f * c + i * g
    return (o * jnp.tanh(new), new), (w, u, x, h, c, new, i, f, g, o)


def lstm_backward(
    r, dy, through_h=1.0, through_c=1.0, forgets=4, tanh_of=5, order=(0, 1, 2, 3), gates=4, tanh_slope=1.0
):
    w, u, x, h, c, _, i, f, g, o = r
    dh, dc = dy
    t = jnp.tanh(r[tanh_of])
    dc = through_c * dc + through_h * dh * o * (1 - t**2)
    dz = [
        dc * g * i * (1 - i),
        dc * r[forgets] * f * (1 - f),
        dc * i * (1 - tanh_slope * g**2),
        dh * t * o * (1 - o),
    ]
    dz = jnp.concatenate([dz[k] for k in order], -1)
    n = gates * c.shape[-1]
    return x.T @ dz, h.T @ dz, dz.sum(0), dz @ w.T, dz[:, :n] @ u[:, :n].T, dc * f


LSTM = Op(
    "lstm cell",
    lstm_reference,
    lstm_forward,
    lstm_backward,
    normals((3, 20), (5, 20), (20,), (7, 3), (7, 5), (7, 5), scale=0.7),
)
lstm = [
    LSTM.wrong("path from h to c left out", partial(lstm_backward, through_h=0), "term"),
    LSTM.wrong("dc from outside ignored", partial(lstm_backward, through_c=0), "ignored term"),
    LSTM.wrong("new c for the old in the forget gate", partial(lstm_backward, forgets=5), "residual ?"),
    LSTM.wrong("tanh of the old c", partial(lstm_backward, tanh_of=4), "residual ?"),
    LSTM.wrong("gates i and f swapped in dz", partial(lstm_backward, order=(1, 0, 2, 3)), "swapped row ?"),
    LSTM.wrong("gate o left out of dh", partial(lstm_backward, gates=3), "term"),
    LSTM.wrong("derivative of tanh left out of g", partial(lstm_backward, tanh_slope=0.0), "row term residual"),
    LSTM.wrong(
        "dc not through the forget gate",
        lambda r, dy: (*lstm_backward(r, dy)[:5], lstm_backward(r, dy)[5] / r[7]),
        "residual row ?",
    ),
    LSTM.wrong(
        "dh and dc of the last step swapped",
        lambda r, dy: tuple(lstm_backward(r, dy)[i] for i in (0, 1, 2, 3, 5, 4)),
        "swapped",
    ),
    LSTM.edit("bias counted twice", 2, lambda db: 2 * db, "factor"),
    LSTM.wrong("cotangents of h and c exchanged", lambda r, dy: lstm_backward(r, dy[::-1]), "swapped ?"),
]

# ── GRU cell: r and z gates, the candidate n with r inside ───────────────────────────────────────────────────────────


def gru_reference(w, u, x, h):
    n = h.shape[-1]
    a, b = x @ w, h @ u
    r, z = s(a[:, :n] + b[:, :n]), s(a[:, n : 2 * n] + b[:, n : 2 * n])
    return z * h + (1 - z) * jnp.tanh(a[:, 2 * n :] + r * b[:, 2 * n :])


def gru_forward(w, u, x, h):
    (ar, az, an), (br, bz, bn) = jnp.split(x @ w, 3, -1), jnp.split(h @ u, 3, -1)
    r, z = s(ar + br), s(az + bz)
    n = jnp.tanh(an + r * bn)
    return n + z * (h - n), (w, u, x, h, r, z, n, bn)


def gru_backward(res, dy, carry=1.0, reset=1.0, flip=False, inner=lambda r: r, sign=1.0):
    w, u, x, h, r, z, n, bn = res
    dn = dy * (z if flip else 1 - z) * (1 - n**2)
    dz = sign * dy * (h - n) * z * (1 - z)
    dr = reset * dn * bn * r * (1 - r)
    da, db = jnp.concatenate([dr, dz, dn], -1), jnp.concatenate([dr, dz, dn * inner(r)], -1)
    return x.T @ da, h.T @ db, da @ w.T, db @ u.T + carry * dy * z


GRU = Op("gru cell", gru_reference, gru_forward, gru_backward, normals((3, 15), (5, 15), (7, 3), (7, 5), scale=0.7))
gru = [
    GRU.wrong("direct path z h left out of dh", partial(gru_backward, carry=0), "term"),
    GRU.wrong("path through the reset gate left out", partial(gru_backward, reset=0), "term constant row"),
    GRU.wrong("z and 1 - z exchanged", partial(gru_backward, flip=True), "swapped row residual ?"),
    GRU.wrong("reset gate left out of du", partial(gru_backward, inner=jnp.ones_like), "residual row term ?"),
    GRU.wrong("dz with the wrong sign", partial(gru_backward, sign=-1.0), "sign row ?"),
]

# ── A scanned RNN: h = tanh(x w + h u), all states out ───────────────────────────────────────────────────────────────


def rnn_reference(w, u, x, h):
    out = []
    for one in x:
        h = jnp.tanh(one @ w + h @ u)
        out.append(h)
    return jnp.stack(out)


def rnn_forward(w, u, x, h):
    step = lambda h, one: (jnp.tanh(one @ w + h @ u),) * 2
    hs = lax.scan(step, h, x)[1]
    return hs, (w, u, x, h, hs)


def rnn_backward(r, dy, before=None, reset=None, through=lambda hs: 1 - hs**2, skip=0):
    """`before`: the states that enter each step; `reset`: after so many steps the carry is cut."""
    w, u, x, h0, hs = r
    keep = jnp.ones(len(hs), hs.dtype) if reset is None else (jnp.arange(len(hs)) % reset != 0).astype(hs.dtype)

    def step(dh, one):
        slope, d, k = one
        dz = (dh + d) * slope
        return k * (dz @ u.T), dz

    dh, dz = lax.scan(step, jnp.zeros_like(h0), (through(hs), dy, keep), reverse=True)
    hb = jnp.concatenate([h0[None], hs[:-1]]) if before is None else before(h0, hs)
    return jnp.einsum("tni,tnj->ij", x, dz), jnp.einsum("tni,tnj->ij", hb[skip:], dz[skip:]), dz @ w.T, dh


RNN = Op("rnn", rnn_reference, rnn_forward, rnn_backward, normals((3, 5), (5, 5), (7, 2, 3), (2, 5), scale=0.6))


def carry_detached(w, u, x, h):
    step = lambda h, one: (jnp.tanh(one @ w + lax.stop_gradient(h) @ u),) * 2
    return lax.scan(step, h, x)[1]


rnn = [
    RNN.wrong("du from the states after the step", partial(rnn_backward, before=lambda h0, hs: hs), "shift residual ?"),
    RNN.wrong("initial state left out of du", partial(rnn_backward, skip=1), "term"),
    RNN.wrong(
        "initial state taken as zero",
        partial(rnn_backward, before=lambda h0, hs: jnp.concatenate([0 * h0[None], hs[:-1]])),
        "term residual",
    ),
    RNN.wrong("backpropagation cut after three steps", partial(rnn_backward, reset=3), "term row"),
    RNN.wrong("no backpropagation through time", partial(rnn_backward, reset=1), "term constant"),
    RNN.wrong("states in reversed order", lambda r, dy: rnn_backward((*r[:4], r[4][::-1]), dy), "reversed ?"),
    RNN.wrong("last step's cotangent alone", lambda r, dy: rnn_backward(r, dy.at[:-1].set(0)), "term row sum ignored"),
    RNN.edit("gradient of the initial state dropped", 3, jnp.zeros_like, "zero ignored constant term"),
    RNN.wrong(
        "slope of the next step",
        partial(rnn_backward, through=lambda hs: 1 - jnp.roll(hs, -1, 0) ** 2),
        "shift residual ?",
    ),
    RNN.edit("last step left out of dx", 2, lambda dx: without(dx, 0, -1), "row"),
    RNN.plain("carry under stop_gradient", carry_detached, "term constant"),
    RNN.wrong("u not transposed", lambda r, dy: rnn_backward((r[0], r[1].T, *r[2:]), dy), "transposed ?"),
]

# ── Linear recurrence: h[t] = a[t] h[t-1] + x[t] ─────────────────────────────────────────────────────────────────────


def recurrence_reference(a, x):
    h, out = jnp.zeros_like(x[0]), []
    for a_t, x_t in zip(a, x, strict=True):
        h = a_t * h + x_t
        out.append(h)
    return jnp.stack(out)


def recurrence_forward(a, x):
    def join(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    h = lax.associative_scan(join, (a, x))[1]
    return h, (a, h)


def one_later(x):
    return jnp.concatenate([x[1:], jnp.zeros_like(x[:1])])


def one_earlier(x):
    return jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])


def recurrence_backward(r, dy, shifted=one_later, previous=one_earlier):
    a, h = r
    dx = lax.scan(lambda g, one: (one[0] * g + one[1],) * 2, jnp.zeros_like(h[0]), (shifted(a), dy), reverse=True)[1]
    return dx * previous(h), dx


RECURRENCE = Op(
    "linear recurrence",
    recurrence_reference,
    recurrence_forward,
    recurrence_backward,
    lambda: (positive(0, 7, 5, low=0.3, high=0.9), normal(1, 7, 5)),
)
EMA = Op(
    "moving average",
    lambda x: recurrence_reference(jnp.full_like(x, 0.9), 0.1 * x),
    lambda x: (recurrence_forward(jnp.full_like(x, 0.9), 0.1 * x)[0], None),
    lambda _, dy: (0.1 * recurrence_forward(jnp.full_like(dy, 0.9), dy[::-1])[0][::-1],),
    normals((7, 5)),
)
recurrences = [
    RECURRENCE.wrong(
        "decay not shifted in the adjoint", partial(recurrence_backward, shifted=lambda a: a), "shift residual ?"
    ),
    RECURRENCE.wrong(
        "da from h[t], not h[t-1]", partial(recurrence_backward, previous=lambda h: h), "shift residual ?"
    ),
    RECURRENCE.wrong("da from h[t+1]", partial(recurrence_backward, previous=one_later), "shift residual ?"),
    RECURRENCE.wrong(
        "cotangent of a step passed on, not carried", lambda r, dy: (dy * one_earlier(r[1]), dy), "term sum"
    ),
    RECURRENCE.wrong(
        "adjoint run forward",
        lambda r, dy: (recurrence_forward(r[0], dy)[0] * one_earlier(r[1]), recurrence_forward(r[0], dy)[0]),
        "reversed ? transposed",
    ),
    EMA.wrong("0.1 left out", lambda _, dy: tuple(10 * g for g in EMA.backward(_, dy)), "factor"),
    EMA.wrong(
        "decay 0.99 in the backward pass",
        lambda _, dy: (0.1 * recurrence_forward(jnp.full_like(dy, 0.99), dy[::-1])[0][::-1],),
        "? row",
    ),
]

# ── Running sums and products ────────────────────────────────────────────────────────────────────────────────────────

CUMSUM = Op(
    "cumsum",
    lambda x: jnp.tril(jnp.ones((x.shape[0],) * 2, x.dtype)) @ x,
    lambda x: (jnp.cumsum(x, 0), None),
    lambda _, dy: (jnp.cumsum(dy[::-1], 0)[::-1],),
    normals((7, 7)),
)
CUMPROD = Op(
    "cumprod",
    lambda x: jnp.cumprod(x, 0),
    lambda x: (lax.associative_scan(jnp.multiply, x), x),
    lambda x, dy: (recurrence_backward((x, x), dy)[1] * one_earlier(jnp.cumprod(x, 0)).at[0].set(1),),
    lambda: (positive(0, 7, 5),),
)
DIFF = Op(
    "difference in time",
    lambda x: x[1:] - x[:-1],
    lambda x: (jnp.diff(x, axis=0), None),
    lambda _, dy: (jnp.pad(dy, ((1, 0), (0, 0))) - jnp.pad(dy, ((0, 1), (0, 0))),),
    normals((7, 5)),
)
sums = [
    CUMSUM.wrong("not reversed", lambda _, dy: (jnp.cumsum(dy, 0),), "reversed transposed"),
    CUMSUM.wrong("exclusive, not inclusive", lambda _, dy: (jnp.cumsum(dy[::-1], 0)[::-1] - dy,), "term shift"),
    CUMSUM.wrong("along the wrong axis", lambda _, dy: (jnp.cumsum(dy[:, ::-1], 1)[:, ::-1],), "transposed ? ax[ie]s"),
    CUMSUM.wrong("total for every step", lambda _, dy: (jnp.broadcast_to(dy.sum(0), dy.shape),), "term ? mask"),
    CUMPROD.wrong("sum not reversed", lambda x, dy: (jnp.cumsum(dy * jnp.cumprod(x, 0), 0) / x,), "reversed ?"),
    CUMPROD.wrong(
        "not divided by x", lambda x, dy: (jnp.cumsum((dy * jnp.cumprod(x, 0))[::-1], 0)[::-1],), "residual row ?"
    ),
    DIFF.wrong("sign", lambda _, dy: (jnp.pad(dy, ((0, 1), (0, 0))) - jnp.pad(dy, ((1, 0), (0, 0))),), "sign"),
    DIFF.wrong(
        "wraps around at the ends",
        lambda _, dy: (
            jnp.pad(dy, ((1, 0), (0, 0))) - jnp.pad(dy, ((0, 1), (0, 0))) + jnp.pad(dy[-1:], ((0, 6), (0, 0))),
        ),
        "row term ?",
    ),
    DIFF.wrong("earlier half left out", lambda _, dy: (jnp.pad(dy, ((1, 0), (0, 0))),), "term"),
]

OPS = [LSTM, GRU, RNN, RECURRENCE, EMA, CUMSUM, CUMPROD, DIFF]
WRONG = lstm + gru + rnn + recurrences + sums
