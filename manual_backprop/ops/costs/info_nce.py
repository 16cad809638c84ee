"""InfoNCE, the contrastive cost: each query is to find its own key among all keys of the batch.

    s = q k ᵀ/ τ,    C = ⟨cᵢ⟩,    cᵢ = -ln pᵢᵢ,    p = softmax of each row of s

`symmetric=True` asks the same of the keys, as CLIP does: with r the softmax of each column, cᵢ = -½ (ln pᵢᵢ + ln rᵢᵢ).
s is reached through its own row and, if symmetric, its own column; with I the identity and dc one number a query,

    ds = dc · (p - I)        or        ds = ½ (dc · (p - I) + (r - I) · dc),  each dc at its own query
    dq = ds k / τ,    dk = dsᵀ q / τ

`normalized=True` does so to q/|q| and k/|k|, |q| = max(√Σqⱼ², eps). Through the length, of the q̂ = q/|q|:

    dq = (dq̂ - q̂ [|q| > eps] (q̂ · dq̂)) / |q|,    dk likewise

Source: van den Oord, Li & Vinyals 2018, arXiv:1807.03748, eq. 4; symmetric: Radford et al. 2021, arXiv:2103.00020.
Saved: the arguments, the similarities s (a matrix product is not cheap to repeat), and four or six numbers a query.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from manual_backprop.contract import op
from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import want_float, want_shape, wide
from manual_backprop.ops.costs.cosine_similarity import length
from manual_backprop.ops.costs.reduction import Reduction, dcosts, reduce, want_items
from manual_backprop.options import want_positive


class Residuals(NamedTuple):
    queries: jax.Array  # [..., n, d]
    keys: jax.Array  # [..., n, d]
    s: jax.Array  # [..., n, n]
    rows: tuple  # the largest and the log of the sum, each [..., n, 1]
    columns: tuple  # each [..., 1, n], or nothing
    lengths: tuple  # of queries and keys, each [..., n, 1], or nothing


@op
def info_nce(
    *,
    temperature: float = 0.07,
    normalized: bool = True,
    symmetric: bool = False,
    eps: float = 1e-8,
    reduction: Reduction = "mean",
):
    """queries [..., n, d], keys [..., n, d] → C, the mean over the queries; the key of query i is key i.

    There are no weights of items: each pair is a wrong answer to all the others, so none can be left out alone.
    Raises InputError unless temperature and eps are above 0, for shapes that differ, and for no queries.
    """
    want_positive("info_nce", temperature=temperature, eps=eps)

    def forward(queries, keys):
        check(queries, keys, reduction)
        lengths = (length(wide(queries), -1, eps), length(wide(keys), -1, eps)) if normalized else ()
        q, k = vectors(queries, keys, lengths)
        s = jnp.einsum("...id,...jd->...ij", q, k) / temperature
        right = jnp.diagonal(s, axis1=-2, axis2=-1)
        rows, columns = largest_and_log_sum(s, -1), largest_and_log_sum(s, -2) if symmetric else ()
        costs = jnp.squeeze(rows[1], -1) - (right - jnp.squeeze(rows[0], -1))
        if symmetric:
            costs = 0.5 * (costs + jnp.squeeze(columns[1], -2) - (right - jnp.squeeze(columns[0], -2)))
        return reduce(reduction, costs), Residuals(queries, keys, s, rows, columns, lengths)

    def backward(residuals, dy):
        queries, keys, s, rows, columns, lengths = residuals
        q, k = vectors(queries, keys, lengths)
        dc = jnp.broadcast_to(dcosts(reduction, dy, s[..., 0].size), s.shape[:-1])
        identity = jnp.eye(s.shape[-1], dtype=s.dtype)
        ds = dc[..., :, None] * (softmax(s, *rows) - identity)
        if symmetric:
            ds = 0.5 * (ds + (softmax(s, *columns) - identity) * dc[..., None, :])
        ds = ds / temperature
        dq = jnp.einsum("...ij,...jd->...id", ds, k)
        dk = jnp.einsum("...ij,...id->...jd", ds, q)
        if normalized:
            dq, dk = through_length(dq, q, lengths[0]), through_length(dk, k, lengths[1])
        return dq.astype(queries.dtype), dk.astype(keys.dtype)

    def vectors(queries, keys, lengths) -> tuple[jax.Array, jax.Array]:
        """q and k, divided by their lengths if any."""
        q, k = wide(queries), wide(keys)
        return (q / lengths[0], k / lengths[1]) if normalized else (q, k)

    def through_length(dq, q, size) -> jax.Array:
        inner = jnp.sum(q * dq, -1, keepdims=True)
        return (dq - q * jnp.where(size > eps, inner, 0)) / size

    return forward, backward


def largest_and_log_sum(s, axis: int) -> tuple[jax.Array, jax.Array]:
    """m = max s and ln Σ e^(s - m); their sum is never formed, for it would round at the size of s."""
    m = jnp.max(s, axis, keepdims=True)
    return m, jnp.log(jnp.sum(jnp.exp(s - m), axis, keepdims=True))


def softmax(s, m, log_sum) -> jax.Array:
    return jnp.exp(s - m - log_sum)


def check(queries, keys, reduction: str) -> None:
    want_float("info_nce", queries=queries, keys=keys)
    want_shape("info_nce", queries.shape, "as queries", keys=keys)
    if queries.ndim < 2:
        raise InputError(f"info_nce: queries have shape {queries.shape}; wants [..., n, d]")
    want_items("info_nce", reduction, queries, queries.shape[:-1], None)
