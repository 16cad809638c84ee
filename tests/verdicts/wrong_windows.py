"""Mistakes where indices meet: convolutions, pooling, embeddings, gather and scatter."""

from functools import partial

import jax.numpy as jnp
from jax import lax, nn

from .wrong_base import Op, integers, normal, normals, without

# ── Convolutions ─────────────────────────────────────────────────────────────────────────────────────────────────────


def conv(x, w, numbers=("NHWC", "HWIO", "NHWC"), pad=1):
    return lax.conv_general_dilated(x, w, (1, 1), ((pad, pad), (pad, pad)), dimension_numbers=numbers)


def conv_dw(x, dy):
    return conv(x, dy, ("CHWN", "IHWO", "HWNC"))


def conv_dx(w, dy):
    return conv(dy, w[::-1, ::-1].swapaxes(2, 3))


CONV = Op(
    "conv2d",
    lambda w, x: sum(
        jnp.einsum("nhwi,io->nhwo", jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))[:, i : i + 7, j : j + 5], w[i, j])
        for i in range(3)
        for j in range(3)
    ),
    lambda w, x: (conv(x, w), (w, x)),
    lambda r, dy: (conv_dw(r[1], dy), conv_dx(r[0], dy)),
    normals((3, 3, 2, 2), (3, 7, 5, 2)),
)


def strided_patches(x, size=3, stride=2):
    return stride * jnp.arange((x.shape[1] - size) // stride + 1)[:, None] + jnp.arange(size)


STRIDED = Op(
    "strided conv1d",
    lambda w, x: lax.conv_general_dilated(x, w, (2,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")),
    lambda w, x: (jnp.einsum("nokc,kcd->nod", x[:, strided_patches(x)], w), (w, x)),
    lambda r, dy: (
        jnp.einsum("nod,nokc->kcd", dy, r[1][:, strided_patches(r[1])]),
        jnp.zeros_like(r[1]).at[:, strided_patches(r[1])].add(jnp.einsum("nod,kcd->nokc", dy, r[0])),
    ),
    normals((3, 2, 5), (3, 11, 2)),
)


def delayed(x, k):
    """x[t - k], zero before the start (after the end for a negative k)."""
    n = x.shape[0]
    return jnp.pad(x, ((max(k, 0), max(-k, 0)), (0, 0)))[max(-k, 0) :][:n]


def causal_conv(w, x, sign=1):
    return sum(w[k] * delayed(x, sign * k) for k in range(w.shape[0]))


CAUSAL = Op(
    "causal depthwise conv",
    lambda w, x: jnp.stack([jnp.convolve(x[:, c], w[:, c])[: x.shape[0]] for c in range(x.shape[1])], 1),
    lambda w, x: (causal_conv(w, x), (w, x)),
    lambda r, dy: (
        jnp.stack([(dy * delayed(r[1], k)).sum(0) for k in range(r[0].shape[0])]),
        causal_conv(r[0], dy, -1),
    ),
    normals((3, 2), (11, 2)),
)
convolutions = [
    CONV.wrong(
        "kernel not flipped in dx", lambda r, dy: (conv_dw(r[1], dy), conv(dy, r[0].swapaxes(2, 3))), "reversed ?"
    ),
    CONV.wrong(
        "channels not exchanged in dx",
        lambda r, dy: (conv_dw(r[1], dy), conv(dy, r[0][::-1, ::-1])),
        "transposed swapped",
    ),
    CONV.edit("dw averaged over the batch", 0, lambda dw: dw / 3, "factor"),
    CONV.wrong("dw off by one pixel", lambda r, dy: (conv_dw(jnp.roll(r[1], 1, 2), dy), conv_dx(r[0], dy)), "shift ?"),
    CONV.edit("first column of pixels left out of dx", 1, lambda dx: without(dx, 2, 0), "row"),
    CONV.edit("dw flipped", 0, lambda dw: dw[::-1, ::-1], "reversed"),
    CONV.wrong(
        "the batch's last image left out of dw",
        lambda r, dy: (conv_dw(r[1][:-1], dy[:-1]), conv_dx(r[0], dy)),
        "term row sum",
    ),
    STRIDED.wrong(
        "overlapping windows set, not added",
        lambda r, dy: (
            STRIDED.backward(r, dy)[0],
            jnp.zeros_like(r[1]).at[:, strided_patches(r[1])].set(jnp.einsum("nod,kcd->nokc", dy, r[0])),
        ),
        "accumulated sum row term",
    ),
    STRIDED.wrong(
        "dx one step late",
        lambda r, dy: (STRIDED.backward(r, dy)[0], jnp.roll(STRIDED.backward(r, dy)[1], 1, 1)),
        "shift",
    ),
    CAUSAL.wrong(
        "dx causal again, not anticausal",
        lambda r, dy: (CAUSAL.backward(r, dy)[0], causal_conv(r[0], dy)),
        "reversed shift ?",
    ),
    CAUSAL.wrong(
        "taps of dw in reversed order",
        lambda r, dy: (CAUSAL.backward(r, dy)[0][::-1], CAUSAL.backward(r, dy)[1]),
        "reversed",
    ),
    CAUSAL.edit("last step left out of dx", 1, lambda dx: without(dx, 0, -1), "row"),
]

# ── Embedding, gather, scatter ───────────────────────────────────────────────────────────────────────────────────────

EMBEDDING = Op(
    "embedding",
    lambda table, ids: nn.one_hot(ids, table.shape[0], dtype=table.dtype) @ table,
    lambda table, ids: (table[ids], (table, ids)),
    lambda r, dy: (jnp.zeros_like(r[0]).at[r[1]].add(dy), None),
    lambda: (normal(0, 13, 5), jnp.asarray([[1, 4, 1, 12], [0, 4, 7, 1]], jnp.int32)),
)
MANY = lambda: (normal(0, 101, 11), integers(1, 101, 7, 31))
SCALED = Op(
    "scaled embedding",
    lambda table, ids: table[ids] * 5**0.5,
    lambda table, ids: (table[ids] * table.shape[1] ** 0.5, (table, ids)),
    lambda r, dy: (jnp.zeros_like(r[0]).at[r[1]].add(dy * r[0].shape[1] ** 0.5), None),
    EMBEDDING.args,
)
SCATTER = Op(
    "scatter add",
    lambda base, rows, ids: base + nn.one_hot(ids, base.shape[0], dtype=base.dtype).T @ rows,
    lambda base, rows, ids: (base.at[ids].add(rows), ids),
    lambda ids, dy: (dy, dy[ids], None),
    lambda: (normal(0, 7, 5), normal(1, 7, 5), jnp.asarray([1, 4, 1, 6, 0, 4, 2], jnp.int32)),
)
TAKE = Op(
    "take along axis",
    lambda x, ids: jnp.take_along_axis(x, ids, 1),
    lambda x, ids: (jnp.take_along_axis(x, ids, 1), (x, ids)),
    lambda r, dy: (jnp.zeros_like(r[0]).at[jnp.arange(r[0].shape[0])[:, None], r[1]].add(dy), None),
    lambda: (normal(0, 7, 5), integers(1, 5, 7, 3)),
)
lookups = [
    EMBEDDING.wrong(
        "rows set, not added", lambda r, dy: (jnp.zeros_like(r[0]).at[r[1]].set(dy), None), "accumulated sum row"
    ),
    EMBEDDING.wrong(
        "rows averaged over their uses",
        lambda r, dy: (
            EMBEDDING.backward(r, dy)[0] / jnp.maximum(jnp.bincount(r[1].ravel(), length=13), 1)[:, None],
            None,
        ),
        "accumulated row factor average|mean|count",
    ),
    EMBEDDING.edit("id 0 taken for padding", 0, lambda dt: without(dt, 0, 0), "row mask"),
    EMBEDDING.wrong(
        "last token left out",
        lambda r, dy: (jnp.zeros_like(r[0]).at[r[1][:, :-1]].add(dy[:, :-1]), None),
        "row term sum",
    ),
    EMBEDDING.wrong("ids off by one", lambda r, dy: (jnp.zeros_like(r[0]).at[r[1] + 1].add(dy), None), "shift"),
    EMBEDDING.edit(
        "one row of a large table off by 1e-3",
        0,
        lambda dt: dt.at[55].multiply(1.001),
        "row",
        args=MANY,
    ),
    SCALED.wrong("sqrt(d) left out", lambda r, dy: EMBEDDING.backward(r, dy), "factor"),
    SCATTER.wrong(
        "rows set in the cotangent, not read",
        lambda ids, dy: (dy, jnp.zeros_like(dy).at[ids].add(dy), None),
        "residual ? swapped accumulated transposed gather|scatter",
    ),
    SCATTER.wrong(
        "the base's cotangent zero where rows were added",
        lambda ids, dy: (dy.at[ids].set(0), dy[ids], None),
        "row mask",
    ),
    TAKE.wrong(
        "indices of the first row for every row",
        lambda r, dy: (jnp.zeros_like(r[0]).at[jnp.arange(7)[:, None], r[1][:1]].add(dy), None),
        "row ?",
    ),
]


# ── Pooling ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def pool_reference(x, size=3, stride=2, reduce=jnp.max):
    return jnp.stack([reduce(x[:, i : i + size], 1) for i in range(0, x.shape[1] - size + 1, stride)], 1)


def max_pool_forward(x):
    windows = x[:, strided_patches(x)]
    return windows.max(2), (x, windows)


def spread(x, dwindows, write="add"):
    """The cotangents of windows (n, out, size, c), written back where they were read."""
    return (getattr(jnp.zeros_like(x).at[:, strided_patches(x)], write)(dwindows),)


def max_pool_backward(r, dy, best=jnp.argmax, write="add"):
    x, windows = r
    chosen = nn.one_hot(best(windows, 2), 3, axis=2, dtype=x.dtype)
    return spread(x, dy[:, :, None] * chosen, write)


MAX_POOL = Op("max pool", pool_reference, max_pool_forward, max_pool_backward, normals((3, 11, 2)))
AVG_POOL = Op(
    "avg pool",
    partial(pool_reference, reduce=jnp.mean),
    lambda x: (x[:, strided_patches(x)].mean(2), x),
    lambda x, dy: spread(x, jnp.repeat(dy[:, :, None], 3, 2) / 3),
    normals((3, 11, 2)),
)


def same_counts(x):
    """How many entries of a window of three lie inside, for every position."""
    return sum(delayed(jnp.ones_like(x[0]), k) for k in (-1, 0, 1))


def same_sums(x):
    return jnp.stack([sum(delayed(one, k) for k in (-1, 0, 1)) for one in x])


SAME_POOL = Op(
    "avg pool, padding not counted",
    lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 3, 1), (1, 1, 1), "SAME") / same_counts(x),
    lambda x: (same_sums(x) / same_counts(x), None),
    lambda _, dy: (same_sums(dy / same_counts(dy)),),
    normals((3, 7, 2)),
)
UPSAMPLE = Op(
    "nearest upsampling",
    lambda x: x[:, jnp.arange(2 * x.shape[1]) // 2],
    lambda x: (jnp.repeat(x, 2, 1), None),
    lambda _, dy: (dy[:, ::2] + dy[:, 1::2],),
    normals((3, 7, 5)),
)
pooling = [
    MAX_POOL.wrong(
        "overlapping windows set, not added", partial(max_pool_backward, write="set"), "accumulated sum row term"
    ),
    MAX_POOL.wrong(
        "first of a window, not its largest",
        partial(max_pool_backward, best=lambda w, _: 0 * w.argmax(2)),
        "mask row ?",
    ),
    MAX_POOL.wrong("smallest of a window", partial(max_pool_backward, best=jnp.argmin), "mask row ?"),
    MAX_POOL.wrong(
        "spread over the window", lambda r, dy: spread(r[0], jnp.repeat(dy[:, :, None], 3, 2) / 3), "mask ?"
    ),
    AVG_POOL.wrong("not divided by the size", lambda x, dy: spread(x, jnp.repeat(dy[:, :, None], 3, 2)), "factor"),
    AVG_POOL.wrong("divided by the stride", lambda x, dy: spread(x, jnp.repeat(dy[:, :, None], 3, 2) / 2), "factor"),
    AVG_POOL.wrong(
        "overlap set, not added",
        lambda x, dy: spread(x, jnp.repeat(dy[:, :, None], 3, 2) / 3, "set"),
        "accumulated sum row term",
    ),
    SAME_POOL.wrong("padding counted", lambda _, dy: (same_sums(dy / 3),), "row term ?"),
    SAME_POOL.wrong("divided after the sum", lambda _, dy: (same_sums(dy) / same_counts(dy),), "row term ?"),
    UPSAMPLE.wrong("mean of the copies", lambda _, dy: ((dy[:, ::2] + dy[:, 1::2]) / 2,), "factor"),
    UPSAMPLE.wrong("one of the copies", lambda _, dy: (dy[:, ::2],), "term sum row"),
]

OPS = [CONV, STRIDED, CAUSAL, EMBEDDING, SCALED, SCATTER, TAKE, MAX_POOL, AVG_POOL, SAME_POOL, UPSAMPLE]
WRONG = convolutions + lookups + pooling
