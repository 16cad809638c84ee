"""Dropout: entries of x at random set to 0, so that no neuron can rely on another.

With keep for the probability to keep an entry, and a mask of independent draws, mᵢ = 1 with probability keep, else 0:

    y = x · m / keep,    so that the mean of y is x
    dx = dy · m / keep

y is linear in x: each entry has the one path that the mask left open, or none.

    dropout            a draw for each entry (Srivastava, Hinton, Krizhevsky, Sutskever & Salakhutdinov 2014),
                       or for all entries along `broadcast_axes`, such as a whole channel (Tompson et al. 2015)
    stochastic_depth   a draw for each example: a residual branch is left out (Huang et al. 2016, arXiv:1603.09382)

Saved: the mask, one byte a draw. To draw it again from the key would save that byte, and take twice as long: random
numbers are what dropout costs.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from manual_backprop.contract import InputError, op
from manual_backprop.ops.arrays import want_axes, want_float, wide


class Residuals(NamedTuple):
    mask: jax.Array | None  # [...], 1 along the axes that share a draw, bool; None when all is kept


@op
def dropout(*, keep_probability: float, broadcast_axes: tuple[int, ...] = ()):
    """y = x · m / keep;  dx = dy · m / keep.  The draws are those of `jax.random.bernoulli(key, keep_probability)`.

    x [...], key: of `jax.random`. Raises InputError for a probability outside (0, 1], and for what is no key.
    """
    return masked("dropout", keep_probability, lambda x: want_axes("dropout", broadcast_axes, x.ndim))


@op
def stochastic_depth(*, keep_probability: float):
    """x [examples, ...], key → y: each example whole and scaled by 1 / keep, or 0.  dx = dy · m / keep."""
    return masked("stochastic_depth", keep_probability, lambda x: range(1, x.ndim), least=1)


def masked(op: str, keep: float, shared_axes, least: int = 0):
    """The pair; shared_axes(x) are the axes along which all entries share a draw."""
    if not 0 < keep <= 1:
        raise InputError(f"{op}: keep_probability is {keep}; wants above 0, at most 1")

    def forward(x, key):
        check(op, x, key, least)
        if keep == 1:
            return x, Residuals(None)
        shared = shared_axes(x)
        mask = jax.random.bernoulli(
            key, jnp.float32(keep), tuple(1 if i in shared else n for i, n in enumerate(x.shape))
        )
        return jnp.where(mask, wide(x) / keep, 0).astype(x.dtype), Residuals(mask)

    def backward(residuals, dy):
        (mask,) = residuals
        dx = dy if mask is None else jnp.where(mask, wide(dy) / keep, 0).astype(dy.dtype)
        return dx, None

    return forward, backward


def check(op: str, x, key, least: int) -> None:
    want_float(op, x=x)
    if x.ndim < least:
        raise InputError(f"{op}: x has shape {x.shape}; wants [examples, ...]")
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if key.shape != () if typed else key.dtype != jnp.uint32 or key.ndim != 1:
        raise InputError(f"{op}: key is {key.dtype}{list(key.shape)}; wants one key, such as jax.random.key(0)")
