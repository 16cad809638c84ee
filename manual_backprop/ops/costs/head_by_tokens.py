"""`linear_cross_entropy` some tokens at a time, the gradients for dC = 1 beside the costs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.ops.arrays import wide_dtype
from manual_backprop.ops.costs.head import Head, filled, product, put, starts, take
from manual_backprop.ops.costs.reduction import unless_masked


def forward(head: Head, chunk: int, h, index, weight, dc, w) -> tuple[jax.Array, jax.Array, jax.Array]:
    """h [tokens, d], index and dc and w [tokens, 1], weight [classes, d] → c [tokens, 1], dh [tokens, d], dweight."""
    length, begins, news = starts(h.shape[0], chunk)
    dtype = wide_dtype(jnp.result_type(h, weight))
    columns = jnp.arange(weight.shape[0])

    def step(carry, places):
        c, dh, dweight = carry
        begin, new = places
        x, right, share = take(h, begin, length), take(index, begin, length), take(dc, begin, length)
        z, t = head.logits(x, weight)
        m = jnp.max(z, -1, keepdims=True)
        total = jnp.sum(jnp.exp(z - m), -1, keepdims=True)
        costs = head.costs(m, total, jnp.take_along_axis(z, right, -1, mode="fill"), jnp.mean(z, -1, keepdims=True))
        du = share * head.dlogits(z, t, m, total, columns == right, weight.shape[0])
        if w is not None:
            du = unless_masked(du, take(w, begin, length))
        du = du.astype(jnp.result_type(h, weight))
        once = jnp.where(begin + jnp.arange(length)[:, None] >= new, x, 0)
        dweight = dweight + product(du, 0, once, 0)
        return (put(c, costs, begin), put(dh, product(du, 1, weight, 0), begin), dweight), None

    shapes = (h.shape[0], 1), h.shape, weight.shape
    empty = tuple(filled(0, shape, dtype, h, index, weight, dc) for shape in shapes)
    return lax.scan(step, empty, (begins, news))[0]
