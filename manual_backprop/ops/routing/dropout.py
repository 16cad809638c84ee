"""Dropout: entries of x at random set to 0, so that no neuron can rely on another.

With keep for the probability to keep an entry, and a mask of independent draws, mᵢ = 1 with probability keep, else 0:

    y = x · m / keep,    so that the mean of y is x
    dx = dy · m / keep

y is linear in x: each entry has the one path that the mask left open, or none.

    dropout            a draw for each entry (Srivastava, Hinton, Krizhevsky, Sutskever & Salakhutdinov 2014),
                       or for all entries along `broadcast_axes`, such as a whole channel (Tompson et al. 2015)
    stochastic_depth   a draw for each example: a residual branch is left out (Huang et al. 2016, arXiv:1603.09382)

Saved: the mask, one bit a draw. To draw it again from the key would save that bit too, but random numbers are what
dropout costs.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from manual_backprop.contract import op
from manual_backprop.errors import InputError, want_key
from manual_backprop.ops.arrays import want_axes, want_float, wide
from manual_backprop.options import want_fraction


class Residuals(NamedTuple):
    bits: (
        jax.Array | None
    )  # [..., ⌈n / 8⌉], uint8: the mask, 1 along axes that share a draw; None where nothing is drawn


@op
def dropout(*, keep_probability: float, broadcast_axes: tuple[int, ...] = ()):
    """y = x · m / keep;  dx = dy · m / keep, with the draws of `jax.random.bernoulli(key, keep_probability)`.

    x [...], key: of `jax.random`.  Saved: m, one bit a draw.  (Srivastava et al. 2014.)
    Raises InputError for a probability outside (0, 1], and for what is no key.
    """
    return masked("dropout", keep_probability, lambda x: want_axes("dropout", broadcast_axes, x.ndim))


@op
def stochastic_depth(*, keep_probability: float):
    """x [examples, ...], key → y: each example whole and scaled by 1 / keep, or 0;  dx = dy · m / keep.

    Saved: m.  (Huang et al. 2016.)
    """
    return masked("stochastic_depth", keep_probability, lambda x: range(1, x.ndim))


def masked(op: str, keep: float, shared_axes):
    """The pair; shared_axes(x) are the axes along which all entries share a draw."""
    want_fraction(op, keep_probability=keep)

    def draws(x) -> tuple[int, ...]:
        """The shape of the mask."""
        shared = shared_axes(x)
        return tuple(1 if axis in shared else n for axis, n in enumerate(x.shape))

    def scaled(x, mask):
        return jnp.where(mask, wide(x) / keep, 0).astype(x.dtype)

    def forward(x, key):
        check(op, x, key)
        if keep == 1 or x.size == 0:
            return x, Residuals(None)
        # The probability in float32: the same draws whether or not x64 is enabled.
        mask = jax.random.bernoulli(key, jnp.float32(keep), draws(x))
        return scaled(x, mask), Residuals(pack(mask))

    def backward(residuals, dy):
        (bits,) = residuals
        if bits is None:
            return dy, None
        return scaled(dy, unpack(bits, draws(dy)[-1])), None

    return forward, backward


def pack(mask) -> jax.Array:
    """One bit a draw along the last axis, one byte where all along it share a draw."""
    return jnp.packbits(mask, axis=-1) if mask.shape[-1] > 1 else mask


def unpack(bits, n: int) -> jax.Array:
    """The mask, of n draws along the last axis."""
    return jnp.unpackbits(bits, axis=-1, count=n).astype(bool) if n > 1 else bits


def check(op: str, x, key) -> None:
    want_float(op, x=x)
    if x.ndim == 0:
        raise InputError(f"{op}: x has shape (); wants at least one axis")
    want_key(op, key)
