"""Attention with linear biases (Press 2021, arXiv:2108.12409): scores fall with the distance, at each head's own slope.

    y = x + slopeₙ · (j - i)    for the head n, the query i, the key j;    slopeₙ = 2^(-8 n / N), n = 1 … N

The bias does not depend on x, so dx = dy.
For N no power of two, as in the paper's code: the slopes for the power of two below, then every other one of those for
twice that many heads.
Saved: nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from manual_backprop.contract import op
from manual_backprop.errors import InputError, want_count
from manual_backprop.ops.arrays import want_float, wide, wide_dtype


class Residuals(NamedTuple):
    pass


@op
def alibi():
    """x [..., N, T, S], scores of queries and keys that start at one position → y, alike. Derivation: the module.

    For `attention(bias=True)` there is `alibi_bias`, imported from this module: `manual_backprop.ops.attention.alibi`.
    Raises InputError for scores with fewer than three axes.
    """

    def forward(x):
        check(x)
        y = wide(x) + alibi_bias(*x.shape[-3:], wide_dtype(x.dtype))
        return y.astype(x.dtype), Residuals()

    def backward(residuals, dy):
        return (dy,)

    return forward, backward


def alibi_bias(heads: int, T: int, S: int, dtype=jnp.float32) -> jax.Array:
    """The bias alone, [heads, T, S], for `attention(bias=True)`.

    A softmax takes no notice of what a whole row has in common, so `alibi_bias(heads, 1, S)` gives the same attention,
    with memory linear in the length: the one for `chunked_attention`.
    """
    slopes = jnp.asarray(alibi_slopes(heads), dtype)
    distance = jnp.arange(S)[None, :] - jnp.arange(T)[:, None]
    return slopes[:, None, None] * distance.astype(dtype)


def alibi_slopes(heads: int) -> np.ndarray:
    """The slopes, [heads], in float64."""
    heads = want_count("alibi: the number of heads", heads)
    power = 2 ** (heads.bit_length() - 1)
    slopes = lambda n: 2.0 ** (-8 / n * np.arange(1, n + 1))
    return np.concatenate([slopes(power), slopes(2 * power)[0::2][: heads - power]])


def check(x) -> None:
    want_float("alibi", x=x)
    if x.ndim < 3 or x.shape[-3] == 0:
        raise InputError(f"alibi: x has shape {x.shape}; wants scores [..., heads, queries, keys]")
