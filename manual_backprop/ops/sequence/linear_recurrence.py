"""A linear recurrence along time, each entry on its own: the state of a diagonal linear net.

    hₜ = aₜ hₜ₋₁ + xₜ

hₜ reaches C where it leaves, with cotangent dyₜ, and by the next step. So its whole cotangent g is the same recurrence,
backwards in time and with a shifted by one step:

    gₜ = dyₜ + aₜ₊₁ gₜ₊₁,    dx = g,    da = gₜ hₜ₋₁,    dh₀ = a₁ g₁

(h₀ = 0 unless it is an argument. Complex numbers likewise, without conjugation: JAX's cotangents are those of a
complex-linear map.)

The composition of two steps is a step, (a, x) then (a′, x′) = (a′ a, a′ x + x′), and composition is associative: a
machine with many processors needs log₂ of the length many rounds. On a CPU one step after the other is faster, and
needs no room for partial products.

Source: Blelloch 1990, "Prefix sums and their applications", § 1.4; as layers, Martin & Cundy 2018, arXiv:1709.04057.
Saved: a and h, which is the output. x is not needed.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.contract import op
from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import Spec, spec, sum_to, want_axis, want_shape, wide_dtype
from manual_backprop.ops.sequence.through_time import before


class Residuals(NamedTuple):
    of_x: Spec  # [time, ...]
    a: jax.Array  # broadcasts to x
    h: jax.Array | None  # [...], with `initial`
    hs: jax.Array  # [time, ...]


@op
def linear_recurrence(*, axis: int = 0, reverse: bool = False, initial: bool = False):
    """hₜ = aₜ hₜ₋₁ + xₜ: x [time, ...], and a, which broadcasts to x's shape → all h [time, ...].

    gₜ = dyₜ + aₜ₊₁ gₜ₊₁, dx = g, da = gₜ hₜ₋₁.  Saved: a and all h.  (Blelloch 1990.)
    axis: that of time.  reverse: from the last step to the first.  initial: takes (x, a, h), h the state before the
    first step, of x's shape without time; else that is zero. Real or complex, in at least float32 inside.
    Raises InputError for shapes that do not fit. Derivation: the module.
    """

    def forward(x, a, h):
        check(x, a, h, axis)
        dtype = jnp.result_type(x, a) if h is None else jnp.result_type(x, a, h)
        a_, x_ = (time_first(v, x.ndim, axis, dtype) for v in (a, x))
        hs = recurrence(a_, x_, zero(x_) if h is None else h.astype(x_.dtype), reverse)
        hs = jnp.moveaxis(hs.astype(dtype), 0, axis)
        return hs, Residuals(spec(x), a, h, hs)

    def backward(residuals, dy):
        of_x, a, h, hs = residuals
        a_, hs, dy = (time_first(v, hs.ndim, axis, hs.dtype) for v in (a, hs, dy))
        shifted = a_ if len(a_) == 1 else before(zero(a_), a_, not reverse)
        g = recurrence(shifted, dy, zero(dy), not reverse)
        da = g * before(zero(hs) if h is None else h.astype(hs.dtype), hs, reverse)
        da = sum_to(jnp.moveaxis(da, 0, axis), a.shape)
        dx = jnp.moveaxis(g, 0, axis)
        if h is None:
            return like(dx, of_x), like(da, a)
        first = slice(-1, None) if reverse else slice(0, 1)
        dh = jnp.sum(a_[first] * g[first], 0)  # of one step, or of none
        return like(dx, of_x), like(da, a), like(dh, h)

    def forward_from_zero(x, a):
        return forward(x, a, None)

    return (forward if initial else forward_from_zero), backward


def recurrence(a, x, h, reverse: bool) -> jax.Array:
    """All h, from a and x [time, ...], and h [...] before them, of one dtype; a [1, ...] is the same at every step."""
    return lax.platform_dependent(
        a, x, h, cpu=partial(by_steps, reverse=reverse), default=partial(in_rounds, reverse=reverse)
    )


def by_steps(a, x, h, reverse: bool) -> jax.Array:
    same = a[0] if len(a) == 1 else None

    def step(h, here):
        x, a = here
        h = (same if a is None else a) * h + x
        return h, h

    return lax.scan(step, h, (x, a if same is None else None), reverse=reverse)[1]


def in_rounds(a, x, h, reverse: bool) -> jax.Array:
    def then(left, right):
        (a, x), (b, y) = left, right
        return a * b, b * x + y

    a = jnp.broadcast_to(a, (len(x), *a.shape[1:]))
    first = before(h, jnp.zeros_like(x), reverse)  # h beside the first step, zero beside the others
    return lax.associative_scan(then, (a, a * first + x), reverse=reverse)[1]


def zero(x) -> jax.Array:
    """The state before the first step of x; on the devices that hold x."""
    return jnp.zeros_like(x, shape=x.shape[1:])


def time_first(v, ndim: int, axis: int, dtype) -> jax.Array:
    """v [time, ...] of so many axes, each of its size or 1."""
    return jnp.moveaxis(v.reshape(*[1] * (ndim - v.ndim), *v.shape), axis, 0).astype(wide_dtype(dtype))


def like(d, argument) -> jax.Array:
    """The cotangent in its argument's dtype: of a real argument, the real part."""
    real = jnp.issubdtype(argument.dtype, jnp.floating)
    return (d.real if real else d).astype(argument.dtype)


def check(x, a, h, axis: int) -> None:
    for name, value in (("x", x), ("a", a), ("h", h)):
        if value is not None and not jnp.issubdtype(value.dtype, jnp.inexact):
            raise InputError(
                f"linear_recurrence: {name} is {value.dtype}; wants floating point: convert it with .astype"
            )
    if x.ndim == 0:
        raise InputError("linear_recurrence: x has shape (); wants an axis of time")
    time = want_axis("linear_recurrence", axis, x.ndim)
    if not broadcasts(a.shape, x.shape):
        raise InputError(f"linear_recurrence: a has shape {a.shape}, x {x.shape}; a must broadcast to {x.shape}")
    if h is not None:
        want_shape("linear_recurrence", x.shape[:time] + x.shape[time + 1 :], "x's without time", h=h)


def broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    extra = len(to) - len(shape)
    return extra >= 0 and all(size in (1, wanted) for size, wanted in zip(shape, to[extra:], strict=True))
