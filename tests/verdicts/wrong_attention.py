"""Mistakes in attention: causal and padded masks, grouped heads, rotary positions, position biases, gates."""

from functools import partial

import jax.numpy as jnp
from jax import lax, nn

from .wrong_base import Op, normal, normals, without
from .wrong_costs import stable_softmax

# ── One attention for all: q, k, v of (heads, time, width), and a bias on the scores ─────────────────────────────────


def causal_bias(q, k):
    seen = jnp.tril(jnp.ones((q.shape[-2], k.shape[-2]), bool))
    return jnp.where(seen, 0, -jnp.inf).astype(q.dtype)


def no_bias(q, k):
    return jnp.zeros((q.shape[-2], k.shape[-2]), q.dtype)


def probabilities(q, k, bias=no_bias):
    return stable_softmax(q @ k.mT / q.shape[-1] ** 0.5 + bias(q, k))


def attention_forward(q, k, v, bias=no_bias):
    p = probabilities(q, k, bias)
    return p @ v, (q, k, v, p)


def attention_backward(r, do, scale=1.0, delta=1.0, mask=1.0, dv=lambda p, do: p.mT @ do):
    """`scale` times the right one, `delta` times the sum of every row, `mask` on ds in the backward pass alone."""
    q, k, v, p = r
    dp = do @ v.mT
    delta = delta(r, do) if callable(delta) else delta * (dp * p).sum(-1, keepdims=True)
    ds = p * (dp - delta) * scale / q.shape[-1] ** 0.5
    ds = ds * (mask(p) if callable(mask) else mask)
    return ds @ k, ds.mT @ q, dv(p, do)


def recomputed(bias, temper=1.0, **named):
    """The pass of a kernel that computes p again, with another bias or another temper than the forward pass."""
    again = lambda r: (*r[:3], stable_softmax(temper * r[0] @ r[1].mT / r[0].shape[-1] ** 0.5 + bias(r[0], r[1])))
    return lambda r, do: attention_backward(again(r), do, **named)


def attention_reference(q, k, v, bias=no_bias):
    scores = jnp.einsum("hqd,hkd->hqk", q, k) / jnp.sqrt(q.shape[-1]).astype(q.dtype) + bias(q, k)
    return jnp.einsum("hqk,hkd->hqd", nn.softmax(scores), v)


HEADS = normals((2, 7, 5), (2, 7, 5), (2, 7, 5))
ATTENTION = Op("attention", attention_reference, attention_forward, attention_backward, HEADS)
CAUSAL = Op(
    "causal attention",
    partial(attention_reference, bias=causal_bias),
    partial(attention_forward, bias=causal_bias),
    attention_backward,
    HEADS,
)


def off_by_one(q, k):
    return jnp.where(jnp.tril(jnp.ones((q.shape[-2],) * 2, bool), 1), 0, -jnp.inf).astype(q.dtype)


def strictly(p):
    return jnp.tril(jnp.ones(p.shape[-2:], p.dtype), -1)


plain = [
    ATTENTION.wrong("scale left out of ds", partial(attention_backward, scale=5**0.5), "factor"),
    ATTENTION.wrong("scale applied twice", partial(attention_backward, scale=5**-0.5), "factor"),
    ATTENTION.wrong("row sum left out", partial(attention_backward, delta=0), "term sum constant"),
    ATTENTION.wrong("dv by p, not transposed", partial(attention_backward, dv=lambda p, do: p @ do), "transposed"),
    ATTENTION.wrong(
        "dq and dk swapped", lambda r, do: tuple(attention_backward(r, do)[i] for i in (1, 0, 2)), "swapped"
    ),
    ATTENTION.wrong(
        "dk and dv swapped", lambda r, do: tuple(attention_backward(r, do)[i] for i in (0, 2, 1)), "swapped"
    ),
    ATTENTION.edit("last key left out of dk", 1, lambda dk: without(dk, 1, -1), "row"),
    ATTENTION.edit("last query's part left out of dq", 0, lambda dq: without(dq, 1, -1), "row"),
    ATTENTION.wrong(
        "last query left out of dv",
        partial(attention_backward, dv=lambda p, do: p[:, :-1].mT @ do[:, :-1]),
        "term row sum",
    ),
    ATTENTION.wrong(
        "heads swapped in dk",
        lambda r, do: (attention_backward(r, do)[0], attention_backward(r, do)[1][::-1], attention_backward(r, do)[2]),
        "reversed swapped head row",
    ),
    ATTENTION.wrong("p computed again without the scale", recomputed(no_bias, temper=5**0.5), "? residual"),
    ATTENTION.wrong(
        "p transposed in ds",
        lambda r, do: attention_backward((*r[:3], r[3].mT), do, dv=lambda p, do: p @ do),
        "transposed ? residual",
    ),
    ATTENTION.edit(
        "dv of a long sequence: last block left out",
        2,
        lambda dv: dv.at[:, 64:].set(0),
        "row",
        args=normals((1, 67, 11), (1, 67, 11), (1, 67, 11)),
    ),
    ATTENTION.plain(
        "softmax under stop_gradient",
        lambda q, k, v: lax.stop_gradient(probabilities(q, k)) @ v,
        "ignored term constant zero",
    ),
    CAUSAL.wrong("mask not applied in the backward pass", recomputed(no_bias), "mask ?"),
    CAUSAL.wrong("mask off by one in the backward pass", recomputed(off_by_one), "mask shift ?"),
    CAUSAL.wrong("diagonal masked out of ds", partial(attention_backward, mask=strictly), "mask term ?"),
    CAUSAL.wrong(
        "row sum of do and v, not of do and o",
        partial(attention_backward, delta=lambda r, do: (do * r[2]).sum(-1, keepdims=True)),
        "term residual ?",
    ),
    CAUSAL.wrong(
        "first token's gradient zeroed", lambda r, do: tuple(without(d, 1, 0) for d in attention_backward(r, do)), "row"
    ),
    CAUSAL.edit("dk off by one step", 1, lambda dk: jnp.roll(dk, 1, 1), "shift"),
]

# ── A mask of keys, a sliding window, a soft cap, a bias by distance ─────────────────────────────────────────────────


def key_bias(mask):
    return lambda q, k: jnp.where(mask, 0, jnp.finfo(q.dtype).min / 2).astype(q.dtype)


PADDED = Op(
    "attention with padded keys",
    lambda q, k, v, mask: attention_reference(q, k, v, key_bias(mask)),
    lambda q, k, v, mask: (attention_forward(q, k, v, key_bias(mask))[0], (q, k, v, mask)),
    lambda r, do: (*recomputed(key_bias(r[3]))(r, do), None),
    lambda: (*HEADS(), jnp.asarray([1, 1, 1, 0, 1, 0, 0], bool)),
)


def window_bias(q, k, width=3):
    i, j = jnp.arange(q.shape[-2])[:, None], jnp.arange(k.shape[-2])
    return jnp.where((j <= i) & (j > i - width), 0, -jnp.inf).astype(q.dtype)


WINDOW = Op(
    "sliding window attention",
    partial(attention_reference, bias=window_bias),
    partial(attention_forward, bias=window_bias),
    attention_backward,
    HEADS,
)
CAP = 1.5


def capped_forward(q, k, v):
    t = jnp.tanh(q @ k.mT / CAP)
    p = stable_softmax(CAP * t)
    return p @ v, (q, k, v, p, t)


def capped_backward(r, do, slope=lambda t: 1 - t**2):
    q, k, v, p, t = r
    dp = do @ v.mT
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * slope(t)
    return ds @ k, ds.mT @ q, p.mT @ do


CAPPED = Op(
    "attention with a soft cap",
    lambda q, k, v: nn.softmax(CAP * jnp.tanh(jnp.einsum("hqd,hkd->hqk", q, k) / CAP)) @ v,
    capped_forward,
    capped_backward,
    HEADS,
)


def distances(t):
    return jnp.arange(t)[:, None] - jnp.arange(t) + t - 1


def relative_forward(s, b):
    y = stable_softmax(s + b[distances(s.shape[-1])])
    return y, (y, b)


def relative_backward(r, dy, index=distances):
    y, b = r
    ds = y * (dy - (dy * y).sum(-1, keepdims=True))
    return ds, jnp.zeros_like(b).at[index(y.shape[-1])].add(ds.sum(0))


RELATIVE = Op(
    "relative position bias",
    lambda s, b: nn.softmax(s + jnp.stack([b[i : i + 7] for i in range(7)])[:, ::-1]),
    relative_forward,
    relative_backward,
    normals((2, 7, 7), (13,)),
)
masked = [
    PADDED.wrong(
        "padding not masked in the backward pass", lambda r, do: (*recomputed(no_bias)(r, do), None), "mask ?"
    ),
    PADDED.wrong(
        "mask taken for queries, not keys",
        lambda r, do: (*recomputed(lambda q, k: key_bias(r[3])(q, k)[:, None])(r, do), None),
        "mask transposed ?",
    ),
    WINDOW.wrong("window of the backward pass one too narrow", recomputed(partial(window_bias, width=2)), "mask ?"),
    CAPPED.wrong("derivative of the cap left out", partial(capped_backward, slope=jnp.ones_like), "term residual ?"),
    CAPPED.wrong(
        "derivative of the cap of the capped score",
        partial(capped_backward, slope=lambda t: 1 - jnp.tanh(t) ** 2),
        "residual ?",
    ),
    RELATIVE.wrong(
        "distances with the wrong sign", partial(relative_backward, index=lambda t: distances(t).T), "reversed sign ?"
    ),
    RELATIVE.wrong(
        "db of the first head",
        lambda r, dy: (relative_backward(r, dy)[0], relative_backward((r[0][:1], r[1]), dy[:1])[1]),
        "sum term row",
    ),
    RELATIVE.wrong(
        "db averaged over the diagonals",
        lambda r, dy: (relative_backward(r, dy)[0], relative_backward(r, dy)[1] / (7 - jnp.abs(jnp.arange(13) - 6))),
        "row factor average|mean",
    ),
]

# ── Grouped queries: several query heads share a head of keys ────────────────────────────────────────────────────────


def gqa_forward(q, k, v):
    wide = lambda u: jnp.repeat(u, q.shape[0] // u.shape[0], 0)
    o, (*_, p) = attention_forward(q, wide(k), wide(v))
    return o, (q, k, v, p)


def gqa_backward(r, do, spread=jnp.repeat, gather=lambda d, n: d.reshape(n, -1, *d.shape[1:]).sum(1)):
    q, k, v, p = r
    wide = lambda u: spread(u, q.shape[0] // u.shape[0], 0)
    dq, dk, dv = attention_backward((q, wide(k), wide(v), p), do)
    return dq, gather(dk, k.shape[0]), gather(dv, k.shape[0])


def tile(u, times, _):
    return jnp.tile(u, (times, 1, 1))


def gqa_reference(q, k, v):
    n = k.shape[0]
    s = jnp.einsum("ngqd,nkd->ngqk", q.reshape(n, -1, *q.shape[1:]), k) / jnp.sqrt(q.shape[-1]).astype(q.dtype)
    return jnp.einsum("ngqk,nkd->ngqd", nn.softmax(s), v).reshape(q.shape)


GQA = Op("gqa", gqa_reference, gqa_forward, gqa_backward, normals((6, 7, 5), (2, 7, 5), (2, 7, 5)))


def gathered(gather):
    return partial(gqa_backward, gather=gather)


grouped = [
    GQA.wrong(
        "one query head of a group counted",
        gathered(lambda d, n: d.reshape(n, -1, *d.shape[1:])[:, 0]),
        "sum term head",
    ),
    GQA.wrong("averaged over a group", gathered(lambda d, n: d.reshape(n, -1, *d.shape[1:]).mean(1)), "factor"),
    GQA.wrong(
        "heads of a group interleaved in the sum",
        gathered(lambda d, n: d.reshape(-1, n, *d.shape[1:]).sum(0)),
        "? term swapped head|sum",
    ),
    GQA.wrong("keys tiled, not repeated", partial(gqa_backward, spread=tile), "? swapped head"),
    GQA.edit("kv heads swapped in dv", 2, lambda dv: dv[::-1], "reversed swapped head row"),
]

# ── Rotary positions ─────────────────────────────────────────────────────────────────────────────────────────────────


def angles(x, offset=0, base=100.0):
    half = x.shape[-1] // 2
    return ((jnp.arange(x.shape[-2]) + offset)[:, None] * base ** (-jnp.arange(half) / half)).astype(x.dtype)


def rotate(x, angle):
    a, b = jnp.split(x, 2, -1)
    c, s = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([a * c - b * s, a * s + b * c], -1)


def rotary_reference(x):
    half = x.shape[-1] // 2
    z = lax.complex(x[..., :half], x[..., half:]) * jnp.exp(1j * angles(x))
    return jnp.concatenate([z.real, z.imag], -1)


ROTARY = Op(
    "rotary",
    rotary_reference,
    lambda x: (rotate(x, angles(x)), ()),
    lambda _, dy: (rotate(dy, -angles(dy)),),
    normals((2, 7, 6)),
)


def interleaved(x, angle):
    a, b = x[..., ::2], x[..., 1::2]
    c, s = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([a * c - b * s, a * s + b * c], -1).reshape(x.shape)


rotary = [
    ROTARY.wrong("rotated forward again", lambda _, dy: (rotate(dy, angles(dy)),), "sign transposed ? reversed"),
    ROTARY.wrong("pairs interleaved in the backward pass", lambda _, dy: (interleaved(dy, -angles(dy)),), "? swapped"),
    ROTARY.wrong("positions off by one", lambda _, dy: (rotate(dy, -angles(dy, 1)),), "shift ?"),
    ROTARY.wrong("sine's part left out", lambda _, dy: (dy * jnp.cos(jnp.tile(angles(dy), 2)),), "term"),
    ROTARY.wrong("another base", lambda _, dy: (rotate(dy, -angles(dy, base=101.0)),), "? row small"),
]

# ── A gate that keeps the k best experts and renormalises ────────────────────────────────────────────────────────────


def top_k_mask(x, k=2):
    return nn.one_hot(lax.top_k(x, k)[1], x.shape[-1]).sum(-2) > 0


def gate_forward(x):
    kept = top_k_mask(x)
    y = stable_softmax(jnp.where(kept, x, -jnp.inf))
    return y, (y, kept, x)


def gate_reference(x, k=2):
    best, ids = lax.top_k(x, k)
    return jnp.sum(nn.one_hot(ids, x.shape[-1], dtype=x.dtype) * nn.softmax(best)[..., None], -2)


def gate_backward(r, dy):
    y = r[0]
    return (y * (dy - (dy * y).sum(-1, keepdims=True)),)


GATE = Op("top-k gate", gate_reference, gate_forward, gate_backward, normals((11, 7)))
COMBINE = Op(
    "mixture of experts",
    lambda g, y: jnp.einsum("ne,end->nd", nn.softmax(g), y),
    lambda g, y: (jnp.einsum("ne,end->nd", stable_softmax(g), y), (stable_softmax(g), y)),
    lambda r, dy: (gate_backward(r[:1], jnp.einsum("nd,end->ne", dy, r[1]))[0], jnp.einsum("ne,nd->end", r[0], dy)),
    lambda: (normal(0, 7, 3), normal(1, 3, 7, 5)),
)
gates = [
    GATE.wrong("renormalisation taken as constant", lambda r, dy: (r[0] * dy,), "term constant sum"),
    GATE.wrong("softmax over all experts", lambda r, dy: gate_backward((stable_softmax(r[2]),), dy), "mask ?"),
    GATE.wrong(
        "softmax over all experts, masked after",
        lambda r, dy: (gate_backward((stable_softmax(r[2]),), dy)[0] * r[1],),
        "? term constant",
    ),
    GATE.wrong("straight through the mask", lambda r, dy: (dy * r[1],), "residual ? term"),
    COMBINE.wrong(
        "experts without their gates",
        lambda r, dy: (COMBINE.backward(r, dy)[0], jnp.broadcast_to(dy, r[1].shape)),
        "residual row term ?",
    ),
    COMBINE.wrong(
        "gate taken as constant",
        lambda r, dy: (jnp.zeros_like(r[0]), COMBINE.backward(r, dy)[1]),
        "constant zero term ignored",
    ),
]

OPS = [ATTENTION, CAUSAL, PADDED, WINDOW, CAPPED, RELATIVE, GQA, ROTARY, GATE, COMBINE]
WRONG = plain + masked + grouped + rotary + gates
