"""Another layout of the same entries: transposed, reshaped, repeated.

    y = x with its axes permuted by p:    dx = dy with its axes permuted by p⁻¹
    y = x in another shape:               dx = dy in x's shape
    y = x repeated along axes:            dx = Σ dy over the copies: each is a path to C

Source: Magnus & Neudecker 1988, "Matrix Differential Calculus", section 3.7 (the commutation matrix K, K⁻¹ = Kᵀ).
Saved: x's shape alone.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from manual_backprop.contract import op
from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import Nothing, OfX, spec, sum_to, want_axes, want_float


@op
def transpose(*, axes: tuple[int, ...] | None = None):
    """y has x's axes in this order, None: reversed;  dx = dy with its axes in the inverse order.

    Saved: nothing.  (Magnus & Neudecker 1988.)
    """

    def order(ndim: int) -> tuple[int, ...]:
        return tuple(reversed(range(ndim))) if axes is None else tuple(i % ndim for i in axes)

    def forward(x):
        want_float("transpose", x=x)
        if len(want_axes("transpose", axes, x.ndim)) != x.ndim:
            raise InputError(f"transpose: x has shape {x.shape}, axes are {axes}; wants each of its {x.ndim} axes once")
        return jnp.transpose(x, order(x.ndim)), Nothing()

    def backward(residuals, dy):
        return (jnp.transpose(dy, np.argsort(order(dy.ndim))),)

    return forward, backward


@op
def reshape(*, shape: tuple[int, ...], from_axis: int = 0):
    """y = x with the axes from `from_axis` on in this shape; one may be -1, what is left;  dx = dy in x's shape.

    A negative from_axis counts from the end: -1 is the last axis alone.
    Saved: x's shape.  (Magnus & Neudecker 1988.)
    """
    if sum(n == -1 for n in shape) > 1 or any(n < -1 for n in shape):
        raise InputError(f"reshape: shape is {shape}; wants sizes, of which one may be -1")
    return reshaping("reshape", shape, from_axis)


@op
def flatten(*, from_axis: int = 1):
    """y = x with the axes from `from_axis` on as one; those before, the batch, are kept;  dx = dy in x's shape.

    A negative from_axis counts from the end: -2 joins the last two axes.
    Saved: x's shape.  (Magnus & Neudecker 1988.)
    """
    return reshaping("flatten", (-1,), from_axis)


@op
def broadcast_to(*, shape: tuple[int, ...]):
    """y = x repeated to this shape, by numpy's rules; -1 keeps an axis as it is;  dx = Σ dy over the copies.

    Saved: x's shape.  (Magnus & Neudecker 1988.)
    """
    if any(n < -1 for n in shape):
        raise InputError(f"broadcast_to: shape is {shape}; wants sizes, or -1 to keep one")

    def forward(x):
        want_float("broadcast_to", x=x)
        extra = len(shape) - x.ndim
        if extra < 0 or any(m != 1 and n not in (-1, m) for m, n in zip(x.shape, shape[extra:], strict=True)):
            raise InputError(f"broadcast_to: x has shape {x.shape}; wants each axis as in {shape}, or 1")
        kept = (*shape[:extra], *(m if n == -1 else n for m, n in zip(x.shape, shape[extra:], strict=True)))
        return jnp.broadcast_to(x, kept), OfX(spec(x))

    def backward(residuals, dy):
        dx = sum_to(dy, residuals.of_x.shape)
        return (dx.astype(dy.dtype),)

    return forward, backward


def reshaping(op: str, shape: tuple[int, ...], from_axis: int):
    def forward(x):
        want_float(op, x=x)
        if not -x.ndim <= from_axis <= x.ndim:
            raise InputError(f"{op}: from_axis is {from_axis}; wants {-x.ndim} … {x.ndim} for {x.ndim} axes")
        kept, cut = x.shape[:from_axis], x.shape[from_axis:]
        entries, named = math.prod(cut), math.prod(n for n in shape if n != -1)
        if entries % named if -1 in shape and named else entries != named:
            raise InputError(
                f"{op}: x has shape {x.shape}; its {entries} entries from axis {from_axis} on do not fit {shape}"
            )
        rest = entries // named if named else 0
        return x.reshape(*kept, *(rest if n == -1 else n for n in shape)), OfX(spec(x))

    def backward(residuals, dy):
        return (dy.reshape(residuals.of_x.shape),)

    return forward, backward
