"""Scaled dot-product attention (Vaswani 2017, arXiv:1706.03762, eq. 1), the probabilities saved.

For each head, rows over the queries and columns over the keys, with the scores s of `scores.py`:

    y = (p · b / keep) v,    pᵢⱼ = e^sᵢⱼ / Σₖ e^sᵢₖ,    lseᵢ = ln Σₖ e^sᵢₖ       (b: 1 where dropout keeps p, else 0)

pᵢⱼ reaches the cost through yᵢ only; sᵢⱼ by pᵢⱼ, by the sum under every pᵢₖ, and by lseᵢ, for ∂lseᵢ/∂sᵢⱼ = pᵢⱼ:

    dv = (p · b / keep)ᵀ dy,    dp = (dy vᵀ) · b / keep,    ds = p · (dp - Σⱼ p dp + dlse)
    dz = ds · (1 - t²) with t = tanh(z / c) where there is a softcap c, else ds;    dbias = Σ ds over the copied axes
    dq = scale · dz k,    dk = dzᵀ (scale · q)        (k and v: summed over the query heads of their group)

Where a query may attend to nothing, y and all its cotangents are 0, and lse is -∞.
Saved: q, k, v and p, which autodiff saves too. To recompute p from lse takes a product and an exponential more: that is
`chunked_attention`, for little memory; this op is the fast one. mask, bias, key, y and lse are not needed again: p is 0
where masked, and its sign tells what dropout kept.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from manual_backprop.contract import op
from manual_backprop.ops.arrays import Spec, spec, sum_to, wide
from manual_backprop.ops.attention.scores import (
    Align,
    Scoring,
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
    of_bias: Spec | None  # of an array that broadcasts to [..., N, T, S]
    p: jax.Array  # [..., N, T, S]; negative where dropped


@op
def attention(
    *,
    causal: bool = False,
    window: int | tuple[int, int] | None = None,
    align: Align = "top_left",
    softcap: float | None = None,
    scale: float | None = None,
    mask: bool = False,
    bias: bool = False,
    keep_probability: float = 1.0,
    lse: bool = False,
):
    """q [..., T, N, H], k [..., S, K, H], v [..., S, K, Hv] → y [..., T, N, Hv]; K divides N: groups share a key head.

    causal: query i attends to keys j ≤ i.  window: to i - left ≤ j ≤ i + right; one number: both.
    align: for T ≠ S, which query and key stand at one position: the first ("top_left", as jax.nn and PyTorch) or the
    last ("bottom_right", as flash-attention, and for queries that continue the keys).
    softcap: c, for scores c tanh(z / c) (Gemma 2).  scale: of q kᵀ; None: 1/√H.
    mask: takes an argument of bool, True where a query may attend, that broadcasts to [..., N, T, S].
    bias: takes an argument added to the scores, that broadcasts so; -∞ masks.
    keep_probability: below 1 takes a key; kept are `jax.random.bernoulli(key, keep_probability, [..., N, T, S])`.
    lse: gives (y, lse), lse [..., T, N] in at least float32.
    The further arguments come in the order mask, bias, key. The softmax is in at least float32.
    Raises InputError for options or shapes that do not fit. Derivation: the module.
    """
    scoring = Scoring("attention", causal, window, align, softcap, scale, mask, bias, keep_probability)

    def forward(q, k, v, mask, bias, key):
        band = scoring.band(q.shape[-3], k.shape[-3])
        s, _ = scoring.scores(swapped(wide(q) * scoring.factor(q.shape[-1])), swapped(k), mask, bias, 0, 0, band)
        e, m, l = softmax_parts(s)
        p = e / l
        if scoring.dropping:
            p = jnp.where(scoring.keep(key, p.shape), p, -p)
        y = swapped(to_queries(kept(p), swapped(v))).astype(jnp.result_type(q, k, v))
        y = (y, swapped(m + jnp.log(l))[..., 0]) if lse else y
        return y, Residuals(q, k, v, bias if bias is None else spec(bias), p)

    def backward(residuals, dy):
        q, k, v, of_bias, p = residuals
        dy, dlse = dy if lse else (dy, None)
        factor, K = scoring.factor(q.shape[-1]), k.shape[-2]
        q_, k_, dy = swapped(wide(q) * factor), swapped(k), swapped(dy)
        dv = to_keys(kept(p), dy, K)
        dp = pairs(dy, swapped(v))
        if scoring.dropping:
            dp, p = jnp.where(p > 0, dp / keep_probability, 0), jnp.abs(p)
        D = jnp.sum(p * dp, -1, keepdims=True)
        ds = p * (dp - (D if dlse is None else D - swapped(dlse[..., None])))
        dz = ds
        if softcap is not None:
            _, t = scoring.softcapped(pairs(q_, k_))
            dz = ds * ((1 - t) * (1 + t))
        dq = swapped(to_queries(dz, k_) * factor).astype(q.dtype)
        dk = swapped(to_keys(dz, q_, K)).astype(k.dtype)
        dbias = None if of_bias is None else sum_to(ds, of_bias.shape).astype(of_bias.dtype)
        return scoring.cotangents(dq, dk, swapped(dv).astype(v.dtype), dbias)

    def kept(p):
        """p · b / keep."""
        return jnp.maximum(p, 0) / keep_probability if scoring.dropping else p

    return scoring.takes_them(forward), backward
