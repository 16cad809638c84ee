"""Mistakes of dtype: a cotangent of another dtype than its argument, sums and roundings in too low a precision."""

from functools import partial

import jax.numpy as jnp
from jax import lax, nn

from .wrong_activations import GELU_TANH, SIGMOID, gelu_tanh_slope, passed
from .wrong_algebra import ABS2
from .wrong_attention import ATTENTION, attention_backward
from .wrong_base import Op, integers, normal, normals
from .wrong_costs import CROSS, LABELS, LOGSUMEXP, SOFTMAX, cross_entropy_backward, through_softmax
from .wrong_linear import DENSE
from .wrong_norms import LAYER, layer_norm_backward, rms_norm_backward, rms_norm_forward, rms_norm_reference
from .wrong_windows import EMBEDDING

HALF, SINGLE, SHORT = jnp.float16, jnp.float32, jnp.bfloat16
LONG = 4099  # terms of a sum


def widened(a):
    """A float in float32 at least."""
    return a.astype(jnp.promote_types(a.dtype, SINGLE)) if jnp.issubdtype(a.dtype, jnp.floating) else a


def in_single(function):
    """The function computed in float32, its floats returned in the dtype of the first of the arguments."""

    def computed(*args):
        return function(*map(widened, args)).astype(args[0].dtype)

    return computed


def single(op):
    """The op on floats of low precision, computed in float32."""
    y = in_single(lambda *args: op.forward(*args)[0])
    return op._replace(reference=in_single(op.reference), forward=lambda *args: (y(*args), args))


def dtype(op, mistake, backward, **named):
    return op.wrong(mistake, backward, "dtype rounded accumulated overflow", kind="dtype", **named)


def rounded(x, to=SHORT):
    return x.astype(to).astype(x.dtype)


def added_one_by_one(terms):
    """The sum over the first axis, in the dtype of the terms: what a loop over rows does."""
    return lax.scan(lambda total, term: (total + term, None), jnp.zeros_like(terms[0]), terms)[0]


# ── A cotangent of another dtype ─────────────────────────────────────────────────────────────────────────────────────

BRIEF = normals((5, 3), (3,), (7, 5), dtype=SHORT)
MIXED = Op(
    "layer_norm of bfloat16, gain in float32",
    lambda g, b, x: LAYER.reference(g, b, x.astype(g.dtype)),
    lambda g, b, x: (LAYER.forward(g, b, x.astype(g.dtype))[0], (*LAYER.forward(g, b, x.astype(g.dtype))[1], x)),
    lambda r, dy: (*layer_norm_backward(r[:4], dy)[:2], layer_norm_backward(r[:4], dy)[2].astype(r[4].dtype)),
    lambda: (normal(0, 5), normal(1, 5), normal(2, 7, 5, dtype=SHORT)),
)
GATED = Op(
    "scalar gate",
    lambda s, x: (s * x.astype(s.dtype)).astype(x.dtype),
    lambda s, x: ((s * x).astype(x.dtype), (s, x)),
    lambda r, dy: ((dy.astype(r[0].dtype) * r[1]).sum(), (dy * r[0]).astype(r[1].dtype)),
    lambda: (jnp.float32(0.7), normal(1, 7, 5, dtype=SHORT)),
)
SHORT_CROSS = lambda: (normal(0, 7, 5, dtype=SHORT), LABELS)
WIDE_CROSS = Op(
    "cross-entropy of bfloat16 logits",
    lambda logits, labels: CROSS.reference(widened(logits), labels),
    lambda logits, labels: CROSS.forward(widened(logits), labels),
    lambda r, dy: (cross_entropy_backward(r, dy)[0].astype(SHORT), None),
    SHORT_CROSS,
)
other_dtype = [
    DENSE.edit("dw float32 for a bfloat16 w", 0, lambda dw: dw.astype(SINGLE), "dtype", kind="dtype", args=BRIEF),
    DENSE.edit("db bfloat16 for a float32 b", 1, lambda db: db.astype(SHORT), "dtype", kind="dtype"),
    DENSE.edit(
        "dx bfloat16 for a float16 x",
        2,
        lambda dx: dx.astype(SHORT),
        "dtype",
        kind="dtype",
        args=normals((5, 3), (3,), (7, 5), dtype=HALF),
    ),
    dtype(MIXED, "dx not cast back", lambda r, dy: layer_norm_backward(r[:4], dy)),
    MIXED.edit("dg in the dtype of x", 0, lambda dg: dg.astype(SHORT), "dtype", kind="dtype"),
    dtype(GATED, "ds in the dtype of x", lambda r, dy: ((dy * r[1]).sum(), GATED.backward(r, dy)[1])),
    dtype(WIDE_CROSS, "dlogits not cast back", cross_entropy_backward),
    EMBEDDING.edit(
        "dtable left in float32",
        0,
        lambda dt: dt.astype(SINGLE),
        "dtype",
        kind="dtype",
        args=lambda: (normal(0, 13, 5, dtype=SHORT), EMBEDDING.args()[1]),
    ),
    dtype(ABS2, "a real cotangent for a complex argument", lambda z, dy: (2 * dy * z.real,)),
]

# ── Rounded on the way, in a float32 backward pass ───────────────────────────────────────────────────────────────────


def rounded_dense(r, dy):
    return rounded(r[1]).T @ rounded(dy), dy.sum(0), dy @ r[0].T


rounding = [
    dtype(DENSE, "x and dy in bfloat16 for dw", rounded_dense, args=normals((11, 7), (7,), (31, 11))),
    dtype(SOFTMAX, "y kept in bfloat16", lambda r, dy: (through_softmax(rounded(r[1]), dy),)),
    dtype(SIGMOID, "y kept in float16", lambda r, dy: (dy * rounded(r[1], HALF) * (1 - rounded(r[1], HALF)),)),
    dtype(LAYER, "rstd kept in bfloat16", partial(layer_norm_backward, rstd=lambda r: rounded(r[3]))),
    dtype(
        GELU_TANH,
        "derivative computed in bfloat16",
        passed(lambda x, y: gelu_tanh_slope(x.astype(SHORT)).astype(x.dtype)),
    ),
    dtype(ATTENTION, "p kept in bfloat16", lambda r, do: attention_backward((*r[:3], rounded(r[3])), do)),
    DENSE.edit("dx through float16", 2, lambda dx: rounded(dx, HALF), "dtype rounded overflow", kind="dtype"),
]

# ── Long sums in low precision ───────────────────────────────────────────────────────────────────────────────────────

LOW_DENSE, LOW_LAYER, LOW_EMBEDDING = single(DENSE), single(LAYER), single(EMBEDDING)
LOW_CUMSUM = Op(
    "cumsum of bfloat16",
    in_single(lambda x: jnp.cumsum(x, 0)),
    lambda x: (in_single(lambda x: jnp.cumsum(x, 0))(x), None),
    lambda _, dy: (jnp.cumsum(dy[::-1].astype(SINGLE), 0)[::-1].astype(dy.dtype),),
    normals((LONG, 3), dtype=SHORT),
)


def low_dense_dw(r, dy):
    w, _, x = r
    return added_one_by_one(x[:, :, None] * dy[:, None]), dy.sum(0, dtype=SINGLE).astype(dy.dtype), dy @ w.T


def low_layer(r, dy):
    g, b, x = (a.astype(SINGLE) for a in r)
    _, db, dx = layer_norm_backward(LAYER.forward(g, b, x)[1], dy.astype(SINGLE))
    dg = added_one_by_one(dy * LAYER.forward(g, b, x)[1][2].astype(dy.dtype))
    return dg, db.astype(dy.dtype), dx.astype(dy.dtype)


def low_gate(r, dy):
    s, x = r
    return added_one_by_one((dy * x).ravel()).astype(s.dtype), (dy * s).astype(x.dtype)


sums = [
    dtype(
        LOW_DENSE,
        "db added up in bfloat16",
        lambda r, dy: (r[2].T @ dy, added_one_by_one(dy), dy @ r[0].T),
        args=normals((5, 3), (3,), (LONG, 5), dtype=SHORT),
    ),
    dtype(LOW_DENSE, "dw added up in bfloat16", low_dense_dw, args=normals((5, 3), (3,), (LONG, 5), dtype=SHORT)),
    dtype(
        LOW_DENSE,
        "db added up in float16",
        lambda r, dy: (r[2].T @ dy, added_one_by_one(dy), dy @ r[0].T),
        args=normals((5, 3), (3,), (4 * LONG, 5), dtype=HALF),
    ),
    dtype(LOW_LAYER, "dg added up in bfloat16", low_layer, args=normals((5,), (5,), (LONG, 5), dtype=SHORT)),
    dtype(
        LOW_EMBEDDING,
        "rows added up in bfloat16",
        lambda r, dy: (jnp.zeros_like(r[0]).at[r[1]].add(dy), None),
        args=lambda: (normal(0, 3, 5, dtype=SHORT), integers(1, 3, LONG)),
    ),
    dtype(
        LOW_CUMSUM,
        "carry in bfloat16",
        lambda _, dy: (lax.scan(lambda c, d: (c + d,) * 2, jnp.zeros_like(dy[0]), dy, reverse=True)[1],),
    ),
    dtype(GATED, "ds added up in bfloat16", low_gate, args=lambda: (jnp.float32(0.7), normal(1, LONG, 3, dtype=SHORT))),
]

# ── Overflow of float16 on the way ───────────────────────────────────────────────────────────────────────────────────

LOW_RMS = Op(
    "rms_norm of float16",
    in_single(rms_norm_reference),
    lambda g, x: (in_single(rms_norm_reference)(g, x), (g, x)),
    lambda r, dy: tuple(
        d.astype(dy.dtype)
        for d in rms_norm_backward(rms_norm_forward(*(a.astype(SINGLE) for a in r))[1], dy.astype(SINGLE))
    ),
    lambda: (normal(0, 5, dtype=HALF), normal(1, 7, 5, dtype=HALF, scale=400)),
)
LOW_LOGSUMEXP, LOW_ATTENTION = single(LOGSUMEXP), single(ATTENTION)


def overflowing_attention(r, do):
    q, k, v = r
    p = nn.softmax((q @ k.mT) * q.shape[-1] ** -0.5)
    return attention_backward((q, k, v, p), do)


def overflowing_logsumexp(r, dy):
    return (dy[:, None] * jnp.exp(r[0]) / jnp.exp(r[0]).sum(-1, keepdims=True),)


overflow = [
    dtype(
        LOW_RMS,
        "squares overflow",
        lambda r, dy: rms_norm_backward((*r, lax.rsqrt((r[1] * r[1]).mean(-1, keepdims=True) + 1e-5)), dy),
    ),
    dtype(
        LOW_LOGSUMEXP,
        "exp overflows float16",
        overflowing_logsumexp,
        args=normals((7, 5), dtype=HALF, scale=3, shift=11),
    ),
    dtype(
        LOW_ATTENTION,
        "scores overflow float16 before their scale",
        overflowing_attention,
        args=normals((2, 7, 61), (2, 7, 61), (2, 7, 61), dtype=HALF, scale=70),
    ),
]


OPS = [GATED, MIXED, LOW_CUMSUM, LOW_RMS]
WRONG = other_dtype + rounding + sums + overflow
