"""The linear recurrent unit: a state of complex numbers, each turned and shortened by a number of its own.

    hₜ = λ hₜ₋₁ + γ uₜ,    λ = exp(-r + iθ),    r = exp ν,    γ = √(1 - |λ|²) = √(1 - e⁻²ʳ)

r > 0 for every ν, so no state grows; γ keeps h as large as u, however slowly it forgets. A complex number is two real
ones, all real parts first: x holds u, y holds h. dC/dRe z + i dC/dIm z is called dz; then of z = a b it is da = b̄ dz.
g, the whole cotangent of h, comes by y and by the next step: a linear recurrence, backwards in time:

    gₜ = dyₜ + λ̄ gₜ₊₁,    dx = γ g,    dh₀ = λ̄ g₁
    s = λ̄ Σ gₜ h̄ₜ₋₁,    dθ = Im s,    dν = dγ/dν Re Σ gₜ ūₜ - r Re s,    dγ/dν = r e⁻²ʳ/γ

(Σ over time and the batch; h₀ = 0 unless it is an argument.) γ by expm1: near |λ| = 1 the difference has no digits.

Source: Orvieto 2023, arXiv:2303.06349, section 3 and eq. 7, with θ itself for its logarithm, and with γ that follows λ
(theirs starts there, and is learnt).
Saved: the arguments and y.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.contract import op
from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import want_axis, want_float, want_shape, wide_dtype
from manual_backprop.ops.sequence.linear_recurrence import in_rounds, zero


class Residuals(NamedTuple):
    x: jax.Array  # [time, ..., 2 d]
    nu: jax.Array  # [d]
    theta: jax.Array  # [d]
    h: jax.Array | None  # [..., 2 d], with `initial`
    hs: jax.Array  # [time, ..., 2 d]


@op
def linear_recurrent_unit(*, axis: int = 0, reverse: bool = False, initial: bool = False):
    """hₜ = λ hₜ₋₁ + γ uₜ: x [time, ..., 2 d], real parts of u, then imaginary ones; nu, theta [d] → all h, shaped as x.

    gₜ = dyₜ + λ̄ gₜ₊₁, dx = γ g, dθ = Im s, dν = dγ/dν Re Σ gₜ ūₜ - r Re s.  Saved: the arguments and all h.
    (Orvieto 2023.)
    axis: that of time.  reverse: from the last step to the first.  initial: takes (x, nu, theta, h), h the state before
    the first step, of x's shape without time; else that is zero.
    Raises InputError for sizes that do not fit. Derivation: the module.
    """

    def time_first(v, dtype):
        return jnp.moveaxis(v, axis, 0).astype(wide_dtype(dtype))

    def forward(x, nu, theta, h):
        check(x, nu, theta, h, axis)
        dtype = jnp.result_type(x, nu, theta) if h is None else jnp.result_type(x, nu, theta, h)
        _, decay, gamma = constants(nu, theta, dtype)
        u = twice(gamma) * time_first(x, dtype)
        hs = recurrence(decay, u, zero(u) if h is None else h.astype(u.dtype), reverse)
        hs = jnp.moveaxis(hs.astype(dtype), 0, axis)
        return hs, Residuals(x, nu, theta, h, hs)

    def backward(residuals, dy):
        x, nu, theta, h, hs = residuals
        r, decay, gamma = constants(nu, theta, hs.dtype)  # r, λ, γ
        slope = r * jnp.exp(-2 * r) / jnp.where(gamma > 0, gamma, 1)  # dγ/dν; 0 where r is too small for γ
        u, hs, dy = (time_first(v, hs.dtype) for v in (x, hs, dy))
        g = recurrence(decay.conj(), dy, zero(dy), not reverse)
        first, others, but_last = slice(0, 1), slice(1, None), slice(None, -1)
        if reverse:
            first, others, but_last = slice(-1, None), but_last, others
        s = summed(g[others], hs[but_last])
        if h is not None:
            s += summed(g[first], h.astype(g.dtype)[None])
        s = decay.conj() * s
        dx = jnp.moveaxis(twice(gamma) * g, 0, axis).astype(x.dtype)
        dnu = (slope * real_summed(g, u) - r * s.real).astype(nu.dtype)
        dtheta = s.imag.astype(theta.dtype)
        if h is None:
            return dx, dnu, dtheta
        dh = turned(decay.real, -decay.imag, jnp.sum(g[first], 0))  # of one step, or of none
        return dx, dnu, dtheta, dh.astype(h.dtype)

    def forward_from_zero(x, nu, theta):
        return forward(x, nu, theta, None)

    return (forward if initial else forward_from_zero), backward


def constants(nu, theta, dtype) -> tuple:
    """r, λ and γ. r is kept finite: λ is 0 long before, and 0 · ∞ is no number."""
    nu, theta = (v.astype(wide_dtype(dtype)) for v in (nu, theta))
    r = jnp.minimum(jnp.exp(nu), jnp.finfo(nu.dtype).max)
    return r, jnp.exp(lax.complex(-r, theta)), jnp.sqrt(-jnp.expm1(-2 * r))


def recurrence(decay, x, h, reverse: bool) -> jax.Array:
    """hₜ = λ hₜ₋₁ + xₜ of x [time, ..., 2 d], h [..., 2 d] and decay [d], which alone is of complex numbers.

    On a CPU one step after the other, in real numbers: its compiler is slower with complex ones.
    """
    steps, rounds = (partial(run, reverse=reverse) for run in (pairs_by_steps, pairs_in_rounds))
    return lax.platform_dependent(decay, x, h, cpu=steps, default=rounds)


def pairs_by_steps(decay, x, h, reverse: bool) -> jax.Array:
    real, imag = decay.real, decay.imag  # once, not in every step

    def step(h, x):
        h = turned(real, imag, h) + x
        return h, h

    return lax.scan(step, h, x, reverse=reverse)[1]


def pairs_in_rounds(decay, x, h, reverse: bool) -> jax.Array:
    x, h = (lax.complex(*jnp.split(v, 2, -1)) for v in (x, h))
    a = jnp.broadcast_to(decay, (len(x), *[1] * (x.ndim - 2), x.shape[-1]))
    hs = in_rounds(a, x, h, reverse)
    return jnp.concatenate([hs.real, hs.imag], -1)


# ── pairs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def turned(real, imag, z) -> jax.Array:
    """A complex number in parts, [d] each, times z [..., 2 d]."""
    a, b = jnp.split(z, 2, -1)
    return jnp.concatenate([real * a - imag * b, imag * a + real * b], -1)


def summed(g, h) -> jax.Array:
    """Σ g h̄ over the leading axes: [..., 2 d] → [d], complex."""
    (a, b), (p, q) = jnp.split(g, 2, -1), jnp.split(h, 2, -1)
    leading = tuple(range(g.ndim - 1))
    return lax.complex(jnp.sum(a * p + b * q, leading), jnp.sum(b * p - a * q, leading))


def real_summed(g, h) -> jax.Array:
    """Its real part alone, which needs no cut before the sum."""
    return sum(jnp.split(jnp.sum(g * h, tuple(range(g.ndim - 1))), 2))


def twice(v) -> jax.Array:
    """A number [d] for both parts, [2 d]."""
    return jnp.concatenate([v, v])


def check(x, nu, theta, h, axis: int) -> None:
    name = "linear_recurrent_unit"
    want_float(name, x=x, nu=nu, theta=theta, **({} if h is None else {"h": h}))
    if x.ndim < 2 or x.shape[-1] % 2:
        raise InputError(f"{name}: x has shape {x.shape}; wants [time, ..., 2 d], real and imaginary parts")
    want_shape(name, (x.shape[-1] // 2,), f"half the last axis of x {x.shape}", nu=nu, theta=theta)
    time = want_axis(name, axis, x.ndim)
    if time == x.ndim - 1:
        raise InputError(f"{name}: axis {axis} of x {x.shape} holds the features; wants that of time")
    if h is not None:
        want_shape(name, x.shape[:time] + x.shape[time + 1 :], "x's without time", h=h)
