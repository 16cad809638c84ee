"""Attention in chunks of queries: exact, its memory linear in the length (Rabe & Staats 2021, arXiv:2112.05682).

The formulas are those of `dot_product.py`. A query needs no other query's probabilities: they are made for a chunk of
queries at a time, and in the backward pass made again, from two numbers a query (Dao 2022, arXiv:2205.14135):

    pᵢⱼ = e^(sᵢⱼ - mᵢ) / lᵢ,    mᵢ = maxⱼ sᵢⱼ,    lᵢ = Σⱼ e^(sᵢⱼ - mᵢ),    lseᵢ = mᵢ + ln lᵢ
    ds = p · (dp - Σⱼ p dp + dlse),    dq = scale · dz k, each chunk its own;
    dk = dzᵀ (scale · q),    dv = (p · b / keep)ᵀ dy,    summed over the chunks

Saved: the arguments, m and l. (lse alone would do, but rounds at the size of s, and p with it; and Σ y · dy is Σ p dp,
but for the rounding of y.) After a fused forward pass (`fused.py`) the arguments alone: a chunk holds whole rows of
scores, which have m and l in them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from manual_backprop.contract import op
from manual_backprop.errors import want_count
from manual_backprop.ops.arrays import wide, wide_dtype
from manual_backprop.ops.attention.chunks import (
    Run,
    added,
    added_to_pairs,
    over_chunks,
    part,
    part_of_pairs,
    runs,
)
from manual_backprop.ops.attention.fused import fused
from manual_backprop.ops.attention.scores import (
    Align,
    Scoring,
    exponentials,
    pairs,
    softmax_parts,
    swapped,
    to_keys,
    to_queries,
)


class Residuals(NamedTuple):
    q: jax.Array  # [..., T, N, H]
    k: jax.Array  # [..., S, K, H]
    v: jax.Array  # [..., S, K, Hv]
    mask: jax.Array | None  # broadcasts to [..., N, T, S], as bias does
    bias: jax.Array | None
    key: jax.Array | None
    m: jax.Array | None  # [..., T, N, 1]
    l: jax.Array | None  # [..., T, N, 1]


class Block(NamedTuple):
    """One chunk of queries against the keys that it reaches, of which the first is j."""

    j: jax.Array | int
    q: jax.Array  # [..., N, rows, H], scaled
    k: jax.Array  # [..., K, width, H]
    v: jax.Array  # [..., K, width, Hv]
    s: jax.Array  # [..., N, rows, width], the scores
    t: jax.Array | None  # tanh(z / c)
    kept: jax.Array | None  # what dropout keeps


@op
def chunked_attention(
    *,
    chunk: int = 128,
    causal: bool = False,
    window: int | tuple[int, int] | None = None,
    align: Align = "top_left",
    softcap: float | None = None,
    scale: float | None = None,
    mask: bool = False,
    bias: bool = False,
    keep_probability: float = 1.0,
    lse: bool = False,
    implementation: Literal["xla", "cudnn"] = "xla",
):
    """`attention`, with the probabilities of `chunk` queries in memory at a time; all else is the same.

    implementation: of the forward pass. "cudnn": its fused kernel, on NVIDIA GPUs, for what it takes; "xla" elsewhere,
    and for the rest: mask, bias, dropout, softcap, lse, float32.
    Only dropout draws otherwise, by chunks too: of chunk c are kept `jax.random.bernoulli(jax.random.fold_in(key, c),
    keep_probability, [..., N, queries, keys])`, over the keys that the chunk's run reaches (`chunks.py`).
    Raises InputError for options or shapes that do not fit. Derivation: the module.
    """
    want_count("chunked_attention: chunk", chunk)
    scoring = Scoring("chunked_attention", causal, window, align, softcap, scale, mask, bias, keep_probability)

    def blocks(q, k, v, mask, bias, key):
        """The runs of chunks, and block(run, i), the chunk whose first query is i."""
        T, S = q.shape[-3], k.shape[-3]
        band = scoring.band(T, S)
        k, v = swapped(k), swapped(v)

        def block(run: Run, i) -> Block:
            j = run.key(i, band)
            mask_, bias_ = (x if x is None else part_of_pairs(x, i, run.rows, j, run.width) for x in (mask, bias))
            q_ = swapped(wide(part(q, -3, i, run.rows)) * scoring.factor(q.shape[-1]))
            k_, v_ = (part(x, -2, j, run.width) for x in (k, v))
            s, t = scoring.scores(q_, k_, mask_, bias_, i, j, band)
            kept = scoring.keep(jax.random.fold_in(key, i // chunk), s.shape) if scoring.dropping else None
            return Block(j, q_, k_, v_, s, t, kept)

        return list(runs(T, S, chunk, band)), block

    def dropped(x, kept):
        """x · b / keep."""
        return x if kept is None else jnp.where(kept, x / keep_probability, 0)

    def forward(q, k, v, mask, bias, key):
        if implementation == "cudnn" and not lse:
            y = fused(scoring, lambda q, k, v: in_chunks(q, k, v, None, None, None)[0], q, k, v)
            if y is not None:
                return y, Residuals(q, k, v, mask, bias, key, None, None)
        return in_chunks(q, k, v, mask, bias, key)

    def in_chunks(q, k, v, mask, bias, key):
        all_runs, block = blocks(q, k, v, mask, bias, key)

        def step(run, _, i):
            b = block(run, i)
            e, m, l = softmax_parts(b.s)
            y = to_queries(dropped(e, b.kept), b.v) / l
            return (), (swapped(y).astype(jnp.result_type(q, k, v)), swapped(m), swapped(l))

        _, (y, m, l) = over_chunks(all_runs, step, ())
        residuals = Residuals(q, k, v, mask, bias, key, m, l)
        return (y, (m + jnp.log(l))[..., 0]) if lse else y, residuals

    def backward(residuals, dy):
        q, k, v, mask, bias, key, m, l = residuals
        dy, dlse = dy if lse else (dy, None)
        all_runs, block = blocks(q, k, v, mask, bias, key)

        def step(run, totals, i):
            dk, dv, dbias = totals
            b = block(run, i)
            rows = lambda x: swapped(part(x, -3, i, run.rows))
            dy_ = rows(dy)
            if m is None:
                e, _, l_ = softmax_parts(b.s)
            else:
                e, l_ = exponentials(b.s, rows(m)), rows(l)
            p = e / l_
            dp = dropped(pairs(dy_, b.v), b.kept)
            D = jnp.sum(p * dp, -1, keepdims=True)
            ds = p * (dp - (D if dlse is None else D - rows(dlse[..., None])))
            dz = ds if b.t is None else ds * ((1 - b.t) * (1 + b.t))
            dq = to_queries(dz, b.k) * scoring.factor(q.shape[-1])
            dk = added(dk, to_keys(dz, b.q, k.shape[-2]), b.j)
            dv = added(dv, to_keys(dropped(p, b.kept), dy_, k.shape[-2]), b.j)
            dbias = None if bias is None else added_to_pairs(dbias, ds, i, b.j)
            return (dk, dv, dbias), swapped(dq).astype(q.dtype)

        dtype = wide_dtype(jnp.result_type(q, k, v, *([] if bias is None else [bias])))
        dk, dv = (jnp.zeros_like(swapped(x), dtype) for x in (k, v))
        dbias = None if bias is None else jnp.zeros_like(bias, dtype)
        (dk, dv, dbias), dq = over_chunks(all_runs, step, (dk, dv, dbias))
        dbias = None if bias is None else dbias.astype(bias.dtype)
        return scoring.cotangents(dq, swapped(dk).astype(k.dtype), swapped(dv).astype(v.dtype), dbias)

    return scoring.takes_them(forward), backward
