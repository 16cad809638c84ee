"""Long short-term memory: a state c that gates write, keep and show.

    z = x wx + h wh + b, cut into zᵢ, z_f, z_g, zₒ:    i, f, o = σ(zᵢ), σ(z_f), σ(zₒ),    g = tanh z_g
    c′ = f c + i g,    t = tanh c′,    h′ = o t

c′ reaches C by h′ and by the next step: the paths add up. From there each part of z has one path:

    dc′ ← dc′ + dh′ o (1 - t²),    dc = dc′ f
    dz = (dc′ g i (1 - i),  dc′ c f (1 - f),  dc′ i (1 - g²),  dh′ t o (1 - o))
    dx = dz wxᵀ,    dh = dz whᵀ,    dwx = Σ xᵀ dz,    dwh = Σ hᵀ dz,    db = Σ dz

Through time, dyₜ the cotangent of the t-th h where it leaves:  dhₜ = dyₜ + dzₜ₊₁ whᵀ, from the last step to the first,
and Σ is over time too. The order i, f, g, o is that of flax and PyTorch.

Source: Hochreiter & Schmidhuber 1997, "Long short-term memory"; with f, Gers, Schmidhuber & Cummins 2000.
Saved: the arguments, all h, which is the output, and all c. The gates are recomputed, from one product for many steps;
kept, they would be four times as much as h.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.contract import op
from manual_backprop.ops.arrays import Spec, spec, wide, wide_dtype
from manual_backprop.ops.sequence.through_time import backward_in_chunks, before, check, in_chunks, outer, times, total


def gates(z) -> tuple:
    """i, f, g, o. σ is of all of z, then cut: XLA's CPU compiler vectorises no σ of a slice."""
    i, f, _, o = jnp.split(lax.logistic(z), 4, -1)
    return i, f, jnp.tanh(jnp.split(z, 4, -1)[2]), o


def derivatives(i, f, g, o, c) -> tuple:
    """∂h′/∂c′, then ∂c′/∂zᵢ, ∂c′/∂z_f, ∂c′/∂z_g and ∂h′/∂zₒ."""
    t = jnp.tanh(f * c + i * g)
    return o * (1 - t) * (1 + t), g * i * (1 - i), c * f * (1 - f), i * (1 - g) * (1 + g), t * o * (1 - o)


def through_step(dh, dc, by_c, by_i, by_f, by_g, by_o) -> tuple:
    """dc′ of both its paths, and dz."""
    dc = dc + dh * by_c
    return dc, jnp.concatenate([dc * by_i, dc * by_f, dc * by_g, dh * by_o], -1)


class CellResiduals(NamedTuple):
    x: jax.Array  # [..., in]
    h: jax.Array  # [..., hidden]
    c: jax.Array  # [..., hidden]
    wx: jax.Array  # [in, 4 hidden]
    wh: jax.Array  # [hidden, 4 hidden]
    of_b: Spec  # [4 hidden]
    z: jax.Array  # [..., 4 hidden]


@op
def lstm_cell():
    """One step: x [..., in], h and c [..., hidden], wx [in, 4 hidden], wh [hidden, 4 hidden], b [4 hidden] → (h′, c′).

    c′ = f c + i g, h′ = o tanh c′;  dz as in the module, dx = dz wxᵀ, dh = dz whᵀ, dc = dc′ f.
    Saved: the arguments and z, in y's dtype.  (Hochreiter & Schmidhuber 1997.)
    Raises InputError for sizes that do not fit.
    """

    def forward(x, h, c, wx, wh, b):
        check("lstm_cell", 4, x, {"h": h, "c": c}, wx, wh, b)
        dtype = jnp.result_type(x, h, c, wx, wh, b)
        z = times(x, wx) + times(h, wh) + b
        i, f, g, o = gates(z)
        c_next = f * c + i * g
        y = (o * jnp.tanh(c_next)).astype(dtype), c_next.astype(dtype)
        return y, CellResiduals(x, h, c, wx, wh, spec(b), z.astype(dtype))

    def backward(residuals, dy):
        x, h, c, wx, wh, of_b, z = residuals
        i, f, g, o = gates(wide(z))
        dc, dz = through_step(*map(wide, dy), *derivatives(i, f, g, o, c))
        dx, dh, dc = times(dz, wx.T).astype(x.dtype), times(dz, wh.T).astype(h.dtype), (dc * f).astype(c.dtype)
        return dx, dh, dc, outer(x, dz).astype(wx.dtype), outer(h, dz).astype(wh.dtype), total(dz).astype(of_b.dtype)

    return forward, backward


class Residuals(NamedTuple):
    x: jax.Array  # [time, ..., in]
    h: jax.Array  # [..., hidden]
    c: jax.Array  # [..., hidden]
    wx: jax.Array  # [in, 4 hidden]
    wh: jax.Array  # [hidden, 4 hidden]
    b: jax.Array  # [4 hidden]
    hs: jax.Array  # [time, ..., hidden], after each step
    cs: jax.Array  # [time, ..., hidden], before each step, time first


@op
def lstm(*, axis: int = 0, reverse: bool = False):
    """A sequence: x [time, ..., in], h and c before it, wx, wh, b as of `lstm_cell` → (hs [time, ..., hidden], (h, c)).

    c′ = f c + i g, h′ = o tanh c′ step by step;  dzₜ from dhₜ = dyₜ + dzₜ₊₁ whᵀ, dx = dz wxᵀ.
    Saved: the arguments, hs and all c.  (Hochreiter & Schmidhuber 1997; Werbos 1990.)
    The final state is returned beside all h, so that a long sequence can go in parts.
    axis: that of time, in x and hs.  reverse: from the last step to the first.
    Raises InputError for sizes that do not fit. Derivation: the module.
    """

    def forward(x, h, c, wx, wh, b):
        check("lstm", 4, x, {"h": h, "c": c}, wx, wh, b, axis)
        dtype = jnp.result_type(x, h, c, wx, wh, b)

        def step(state, z):
            h, c = state
            i, f, g, o = gates(z + times(h, wh))
            c_next = f * c + i * g
            h = (o * jnp.tanh(c_next)).astype(dtype)
            return (h, c_next), (h, c.astype(dtype))

        def chunk(state, x):
            return lax.scan(step, state, times(x, wx) + b, reverse=reverse)

        state = h.astype(dtype), c.astype(wide_dtype(dtype))
        (h_last, c_last), (hs, cs) = in_chunks(chunk, state, jnp.moveaxis(x, axis, 0), reverse)
        hs = jnp.moveaxis(hs, 0, axis)
        return (hs, (h_last, c_last.astype(dtype))), Residuals(x, h, c, wx, wh, b, hs, cs)

    def backward(residuals, dy):
        x, h, c, wx, wh, b, hs, cs = residuals
        dhs, dlast = dy

        def step(dstate, here):
            dh, dc = dstate
            dy, f, by = here
            dc, dz = through_step(dh + dy, dc, *by)
            return (times(dz, wh.T), dc * f), dz

        def chunk(dstate, here):
            x, h, c, dy = here
            i, f, g, o = gates(times(x, wx) + times(h, wh) + b)
            dstate, dz = lax.scan(step, dstate, (dy, f, derivatives(i, f, g, o, c)), reverse=not reverse)
            return dstate, (outer(x, dz), outer(h, dz), total(dz)), times(dz, wx.T).astype(x.dtype)

        x, hs, dhs = (jnp.moveaxis(a, axis, 0) for a in (x, hs, dhs))
        here = x, before(h.astype(hs.dtype), hs, reverse), cs, dhs
        dlast = tuple(map(wide, dlast))
        (dh, dc), dparams, dx = backward_in_chunks(chunk, dlast, (wx, wh, b), here, reverse)
        return jnp.moveaxis(dx, 0, axis), dh.astype(h.dtype), dc.astype(c.dtype), *dparams

    return forward, backward
