"""Gradients by decree: y is one function of x, dx that of another, where the true derivative teaches nothing.

    straight_through_round   y = clip(step · round(x / step), low, high);   dx = dy where low ≤ x ≤ high, else 0
                             (Bengio, Léonard & Courville 2013, arXiv:1308.3432; the clipping: Hubara et al. 2016)
    stop_gradient            y = x;   dx = 0        (van den Oord et al. 2017, arXiv:1711.00937, eq. 3)
    reverse_gradient         y = x;   dx = -scale · dy        (Ganin & Lempitsky 2015, arXiv:1409.7495, eq. 15)

The derivative of rounding is 0 but at the jumps, so nothing below a quantiser would learn; the decree passes dy
straight through, as if y were x. The same without an op: x + stop_gradient(f(x) - x).
Saved: nothing; of a quantiser with an end, one byte a number: whether x was inside.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from manual_backprop.contract import op
from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import Nothing, want_float, wide


class Inside(NamedTuple):
    inside: jax.Array | None  # [...], bool; None where every x passes its gradient


@op
def straight_through_round(
    *, step: float = 1.0, low: float = -math.inf, high: float = math.inf, clip_gradient: bool = True
):
    """y = clip(step · round(x / step), low, high), halves to even;  dx = dy where low ≤ x ≤ high, else 0.

    Saved: where that is, one byte a number; nothing where every x passes dy.  (Bengio, Léonard & Courville 2013.)
    `clip_gradient=False`: dx = dy everywhere.  Raises InputError for a step not above 0, and for low above high.
    """
    if not (0 < step < math.inf and low <= high):
        raise InputError(
            f"straight_through_round: step is {step}, low {low}, high {high}; wants a step above 0, and low ≤ high"
        )
    passes_all = not clip_gradient or (low, high) == (-math.inf, math.inf)

    def forward(x):
        want_float("straight_through_round", x=x)
        y = jnp.clip(step * jnp.round(wide(x) / step), low, high).astype(x.dtype)
        return y, Inside(None if passes_all else wide(x) == jnp.clip(wide(x), low, high))

    def backward(residuals, dy):
        (inside,) = residuals
        return (dy if inside is None else jnp.where(inside, dy, 0),)

    return forward, backward


@op
def stop_gradient():
    """y = x;  dx = 0: below, x is a constant.  Saved: nothing.  (van den Oord et al. 2017.)"""

    def forward(x):
        want_float("stop_gradient", x=x)
        return x, Nothing()

    def backward(residuals, dy):
        return (jnp.zeros_like(dy),)

    return forward, backward


@op
def reverse_gradient(*, scale: float = 1.0):
    """y = x;  dx = -scale · dy: what is below learns to raise the cost that what is above learns to lower.

    Saved: nothing.  (Ganin & Lempitsky 2015.)
    """

    def forward(x):
        want_float("reverse_gradient", x=x)
        return x, Nothing()

    def backward(residuals, dy):
        return ((-scale * wide(dy)).astype(dy.dtype),)

    return forward, backward
