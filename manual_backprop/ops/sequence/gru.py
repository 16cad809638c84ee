"""The gated recurrent unit: the new state is a mean of the old one and of a proposal n, weighted by a gate.

    a = x wx + b,    u = h wh, each cut into three:    r = σ(aᵣ + uᵣ),    z = σ(a_z + u_z)
    m = uₙ + bh,    n = tanh(aₙ + r m),    h′ = (1 - z) n + z h

Every path from a or u to C goes through h′, so their derivatives are dh′ times a number that the forward pass fixes.
With k = (1 - z)(1 - n²), which is ∂h′/∂aₙ:

    da = dh′ (k m r (1 - r),  (h - n) z (1 - z),  k)
    du = dh′ (k m r (1 - r),  (h - n) z (1 - z),  k r)
    dx = da wxᵀ,    dh = dh′ z + du whᵀ,    dwx = Σ xᵀ da,    dwh = Σ hᵀ du,    db = Σ da,    dbh = Σ duₙ

Through time, dyₜ the cotangent of the t-th state where it leaves:  dhₜ′ = dyₜ + dhₜ₊₁, from the last step to the first,
and Σ is over time too. The order r, z, n and the place of bh, inside r · (…), are those of flax and PyTorch.

Source: Cho et al. 2014, arXiv:1406.1078; with r after the product, Chung et al. 2014, arXiv:1412.3555.
Saved: the arguments and all h, which is the output. The gates are recomputed, from one product for many steps.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.contract import op
from manual_backprop.ops.arrays import Spec, spec, want_float, want_shape, wide
from manual_backprop.ops.sequence.through_time import backward_in_chunks, before, check, in_chunks, outer, times, total


def gates(a, u, bh) -> tuple:
    """r, z, m, n. σ is of all of a + u, then cut: XLA's CPU compiler vectorises no σ of a slice."""
    r, z, _ = jnp.split(lax.logistic(a + u), 3, -1)
    m = jnp.split(u, 3, -1)[2] + bh
    return r, z, m, jnp.tanh(jnp.split(a, 3, -1)[2] + r * m)


def derivatives(r, z, m, n, h) -> tuple:
    """∂h′/∂a and ∂h′/∂u, each in its three parts."""
    k = (1 - z) * (1 - n) * (1 + n)
    by_r, by_z = k * m * r * (1 - r), (h - n) * z * (1 - z)
    return (by_r, by_z, k), (by_r, by_z, k * r)


def through(dh, by) -> jax.Array:
    """da or du, of dh′ and the derivatives by its parts."""
    return jnp.concatenate([dh * by_part for by_part in by], -1)


def n_of(du) -> jax.Array:
    """duₙ, the last third."""
    return jnp.split(du, 3, -1)[2]


class CellResiduals(NamedTuple):
    x: jax.Array  # [..., in]
    h: jax.Array  # [..., hidden]
    wx: jax.Array  # [in, 3 hidden]
    wh: jax.Array  # [hidden, 3 hidden]
    of_b: Spec  # [3 hidden]
    bh: jax.Array  # [hidden]
    a: jax.Array  # [..., 3 hidden]
    u: jax.Array  # [..., 3 hidden]


@op
def gru_cell():
    """One step: x [..., in], h [..., hidden], wx [in, 3 hidden], wh [hidden, 3 hidden], b [3 hidden], bh [hidden] → h′.

    bh is the bias of the recurrent part of n.  h′ = (1 - z) n + z h;  da, du as in the module, dx = da wxᵀ,
    dh = dh′ z + du whᵀ.  Saved: the arguments, and a and u in y's dtype.  (Cho et al. 2014.)
    Raises InputError for sizes that do not fit.
    """

    def forward(x, h, wx, wh, b, bh):
        check_gru("gru_cell", x, h, wx, wh, b, bh)
        dtype = jnp.result_type(x, h, wx, wh, b, bh)
        a, u = times(x, wx) + b, times(h, wh)
        _, z, _, n = gates(a, u, bh)
        h_next = (1 - z) * n + z * h
        return h_next.astype(dtype), CellResiduals(x, h, wx, wh, spec(b), bh, a.astype(dtype), u.astype(dtype))

    def backward(residuals, dy):
        x, h, wx, wh, of_b, bh, a, u = residuals
        r, z, m, n = gates(wide(a), wide(u), bh)
        da, du = (through(wide(dy), by) for by in derivatives(r, z, m, n, h))
        dx, dh = times(da, wx.T).astype(x.dtype), (dy * z + times(du, wh.T)).astype(h.dtype)
        dwx, dwh = outer(x, da).astype(wx.dtype), outer(h, du).astype(wh.dtype)
        return dx, dh, dwx, dwh, total(da).astype(of_b.dtype), total(n_of(du)).astype(bh.dtype)

    return forward, backward


class Residuals(NamedTuple):
    x: jax.Array  # [time, ..., in]
    h: jax.Array  # [..., hidden]
    wx: jax.Array  # [in, 3 hidden]
    wh: jax.Array  # [hidden, 3 hidden]
    b: jax.Array  # [3 hidden]
    bh: jax.Array  # [hidden]
    hs: jax.Array  # [time, ..., hidden]


@op
def gru(*, axis: int = 0, reverse: bool = False):
    """A sequence: x [time, ..., in], h before it, wx, wh, b, bh as of `gru_cell` → (hs [time, ..., hidden], h).

    h′ = (1 - z) n + z h step by step;  daₜ, duₜ from dhₜ′ = dyₜ + dhₜ₊₁, dx = da wxᵀ.
    Saved: the arguments and hs.  (Cho et al. 2014; Werbos 1990.)
    The final state is returned beside all states, so that a long sequence can go in parts.
    axis: that of time, in x and hs.  reverse: from the last step to the first.
    Raises InputError for sizes that do not fit. Derivation: the module.
    """

    def forward(x, h, wx, wh, b, bh):
        check_gru("gru", x, h, wx, wh, b, bh, axis)
        dtype = jnp.result_type(x, h, wx, wh, b, bh)

        def step(h, a):
            _, z, _, n = gates(a, times(h, wh), bh)
            h = ((1 - z) * n + z * h).astype(dtype)
            return h, h

        def chunk(h, x):
            return lax.scan(step, h, times(x, wx) + b, reverse=reverse)

        last, hs = in_chunks(chunk, h.astype(dtype), jnp.moveaxis(x, axis, 0), reverse)
        hs = jnp.moveaxis(hs, 0, axis)
        return (hs, last), Residuals(x, h, wx, wh, b, bh, hs)

    def backward(residuals, dy):
        x, h, wx, wh, b, bh, hs = residuals
        dhs, dlast = dy

        def step(dh, here):
            dy, by_u, z = here
            dh = dh + dy
            return dh * z + times(through(dh, by_u), wh.T), dh

        def chunk(dh, here):
            x, h, dy = here
            r, z, m, n = gates(times(x, wx) + b, times(h, wh), bh)
            by_a, by_u = derivatives(r, z, m, n, h)
            dh, dhs = lax.scan(step, dh, (dy, by_u, z), reverse=not reverse)
            da, du = through(dhs, by_a), through(dhs, by_u)
            dparams = outer(x, da), outer(h, du), total(da), total(n_of(du))
            return dh, dparams, times(da, wx.T).astype(x.dtype)

        x, hs, dhs = (jnp.moveaxis(a, axis, 0) for a in (x, hs, dhs))
        here = x, before(h.astype(hs.dtype), hs, reverse), dhs
        dh, dparams, dx = backward_in_chunks(chunk, wide(dlast), (wx, wh, b, bh), here, reverse)
        return jnp.moveaxis(dx, 0, axis), dh.astype(h.dtype), *dparams

    return forward, backward


def check_gru(op: str, x, h, wx, wh, b, bh, axis: int | None = None) -> None:
    check(op, 3, x, {"h": h}, wx, wh, b, axis)
    want_float(op, bh=bh)
    want_shape(op, wh.shape[:1], "[hidden]", bh=bh)
