"""Global pooling: one number a channel from all positions of x [batch, *spatial, channels].

With n positions, j among them, the mean and the maximum are

    y = 1/n Σⱼ xⱼ,            dx = dy / n                                 at every position
    y = xₘ, m = argmax x,      dx = dy at position m, the first of equals, and 0 at every other

Sources: Lin, Chen & Yan 2014, "Network in network", arXiv:1312.4400, section 3.2, for the average; Oquab, Bottou,
Laptev & Sivic 2015, "Is object localization for free?", for the maximum.
Saved: nothing for the mean, the position m for the maximum, four bytes an output.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.contract import op
from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import OfX, Spec, spec, want_float, wide, wide_dtype


class Residuals(NamedTuple):
    of_x: Spec
    m: jax.Array  # [batch, channels]


@op
def global_average_pool():
    """x [batch, *spatial, channels] → y [batch, channels], the mean over all positions. Derivation: the module."""

    def forward(x):
        check("global_average_pool", x)
        y = jnp.mean(x, tuple(range(1, x.ndim - 1)), dtype=wide_dtype(x.dtype))
        return y.astype(x.dtype), OfX(spec(x))

    def backward(residuals, dy):
        x = residuals.of_x
        dx = wide(dy) / math.prod(x.shape[1:-1])
        return (everywhere(dx.astype(x.dtype), x.shape),)

    return forward, backward


@op
def global_max_pool():
    """x [batch, *spatial, channels] → y [batch, channels], the largest over all positions. Derivation: the module."""

    def forward(x):
        check("global_max_pool", x)
        positions = x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])
        y = jnp.max(positions, 1)
        largest = (positions == y[:, None]) | jnp.isnan(positions)
        j = lax.broadcasted_iota(jnp.int32, positions.shape, 1)
        m = jnp.min(jnp.where(largest, j, positions.shape[1]), 1)
        return y, Residuals(spec(x), m)

    def backward(residuals, dy):
        x, m = residuals
        positions = x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1]
        dx = jnp.where(lax.broadcasted_iota(m.dtype, positions, 1) == m[:, None], dy[:, None], 0)
        return (dx.reshape(x.shape),)

    return forward, backward


def everywhere(dy, shape) -> jax.Array:
    """dy [batch, channels] at every position: [batch, *spatial, channels]."""
    return lax.broadcast_in_dim(dy, shape, (0, len(shape) - 1))


def check(op: str, x) -> None:
    want_float(op, x=x)
    if x.ndim < 3 or 0 in x.shape[1:-1]:
        raise InputError(f"{op}: x has shape {x.shape}; wants [batch, *spatial, channels] with at least one position")
