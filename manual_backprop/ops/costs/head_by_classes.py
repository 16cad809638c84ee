"""`linear_cross_entropy` some classes at a time: the costs first, and the gradients in a pass of their own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.ops.arrays import wide_dtype
from manual_backprop.ops.costs.head import Head, filled, over_largest, product, put, starts, take
from manual_backprop.ops.costs.reduction import unless_masked


def forward(head: Head, chunk: int, h, index, weight) -> tuple[jax.Array, jax.Array, jax.Array]:
    """h [tokens, d], index [tokens, 1], weight [classes, d] → c, m and Σ e^(z - m), each [tokens, 1]."""
    length, begins, news = starts(weight.shape[0], chunk)
    dtype = wide_dtype(jnp.result_type(h, weight))

    def step(carry, places):
        m, total, right, everything = carry
        begin, new = places
        z, _ = head.logits(h, take(weight, begin, length))
        fresh = begin + jnp.arange(length) >= new
        once = jnp.where(fresh, z, -jnp.inf)
        larger = jnp.maximum(m, jnp.max(once, -1, keepdims=True))
        total = total * jnp.exp(m - larger) + jnp.sum(jnp.exp(once - larger), -1, keepdims=True)
        here = (index >= begin) & (index < begin + length)
        own = jnp.take_along_axis(z, jnp.clip(index - begin, 0, length - 1), -1)
        if head.label_smoothing:
            everything = everything + jnp.sum(jnp.where(fresh, z, 0), -1, keepdims=True)
        return (larger, total, jnp.where(here, own, right), everything), None

    column = lambda value: filled(value, (h.shape[0], 1), dtype, h, index, weight)
    # A label beyond the classes is met in no slice: its logit stays NaN.
    empty = column(-jnp.inf), column(0), column(jnp.nan), column(0)
    (m, total, right, everything), _ = lax.scan(step, empty, (begins, news))
    return head.costs(m, total, right, everything / weight.shape[0]), m, total


def backward(head: Head, chunk: int, h, index, weight, m, total, dc, w) -> tuple[jax.Array, jax.Array]:
    """dc and w [tokens, 1] → dh [tokens, d], dweight [classes, d]."""
    dc, largest = over_largest(dc)
    length, begins, news = starts(weight.shape[0], chunk)

    def step(carry, places):
        dh, dweight = carry
        begin, new = places
        rows, columns = take(weight, begin, length), begin + jnp.arange(length)
        z, t = head.logits(h, rows)
        du = dc * head.dlogits(z, t, m, total, columns == index, weight.shape[0])
        du = unless_masked(du, w).astype(jnp.result_type(h, weight))
        once = jnp.where(columns[:, None] >= new, rows, 0)
        return (dh + product(du, 1, once, 0), put(dweight, largest * product(du, 0, h, 0), begin)), None

    of = h, index, weight, m, dc
    empty = filled(0, h.shape, m.dtype, *of), filled(0, weight.shape, weight.dtype, *of)
    (dh, dweight), _ = lax.scan(step, empty, (begins, news))
    return largest * dh, dweight
