"""Parametric rectified linear unit (He, Zhang, Ren & Sun 2015, arXiv:1502.01852, eqs. 1, 9-11): its slope is learned.

    y = x where x ≥ 0, else s x

The slope s is one number, or one a feature; every x below 0 that it met is a path from s to C:

    dx = dy where x ≥ 0, else s dy,    ds = Σ dy x over the x below 0      (Σ over what s was broadcast along)

Saved: the arguments, nothing new.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from manual_backprop.contract import op
from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import sum_to, want_float, wide


class Residuals(NamedTuple):
    x: jax.Array  # [...]
    slope: jax.Array  # [], [features], or any shape that broadcasts to x's


@op
def prelu():
    """x [..., features], slope [], [features], or any shape that broadcasts to x's → y [..., features].

    Raises InputError when slope does not broadcast to x. Derivation: the module.
    """

    def forward(x, slope):
        check(x, slope)
        y = jnp.where(x >= 0, wide(x), slope * wide(x))
        return y.astype(jnp.result_type(x, slope)), Residuals(x, slope)

    def backward(residuals, dy):
        x, slope = residuals
        dy = wide(dy)
        dx = jnp.where(x >= 0, dy, slope * dy)
        dslope = sum_to(jnp.where(x >= 0, 0, dy * x), slope.shape)
        return dx.astype(x.dtype), dslope.astype(slope.dtype)

    return forward, backward


def check(x, slope) -> None:
    want_float("prelu", x=x, slope=slope)
    extra = x.ndim - slope.ndim
    if extra < 0 or any(one not in (1, size) for one, size in zip(slope.shape, x.shape[extra:], strict=True)):
        raise InputError(f"prelu: slope has shape {slope.shape}, x {x.shape}; slope must broadcast to x")
