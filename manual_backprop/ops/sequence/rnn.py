"""The simple recurrent net: the state is an activation of the input and of the state before.

    z = x wx + h wh + b,    h′ = f(z)            f: tanh, or max(·, 0)

h′ reaches C by its own output and by the next step. f′ is written in h′: 1 - h′² for tanh, 1 where h′ > 0 for relu.

    dz = dh′ · f′,    dx = dz wxᵀ,    dh = dz whᵀ,    dwx = Σ xᵀ dz,    dwh = Σ hᵀ dz,    db = Σ dz

Through time, dyₜ the cotangent of the t-th state where it leaves:  dhₜ = dyₜ + dzₜ₊₁ whᵀ, from the last step to the
first, and Σ is over time too, since all steps share the parameters.

Source: Elman 1990, "Finding structure in time"; Werbos 1990, "Backpropagation through time".
Saved: the arguments and the output; z is not needed.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.contract import op
from manual_backprop.ops.arrays import Spec, spec, wide
from manual_backprop.ops.sequence.through_time import backward_in_chunks, before, check, in_chunks, outer, times, total

# f, and f′ written in h = f(z)
ACTIVATIONS = {
    "tanh": (jnp.tanh, lambda h: (1 - h) * (1 + h)),
    "relu": (lambda z: jnp.maximum(z, 0), lambda h: (h > 0).astype(h.dtype)),
}


class CellResiduals(NamedTuple):
    x: jax.Array  # [..., in]
    h: jax.Array  # [..., hidden]
    wx: jax.Array  # [in, hidden]
    wh: jax.Array  # [hidden, hidden]
    of_b: Spec  # [hidden]
    h_next: jax.Array  # [..., hidden]


@op
def rnn_cell(*, activation: Literal["tanh", "relu"] = "tanh"):
    """One step: x [..., in], h [..., hidden], wx [in, hidden], wh [hidden, hidden], b [hidden] → h′ [..., hidden].

    h′ = f(x wx + h wh + b);  dz = dh′ · f′(z), dx = dz wxᵀ, dh = dz whᵀ.  Saved: the arguments and h′.  (Elman 1990.)
    activation: "tanh" or "relu". Raises InputError for sizes that do not fit.
    """
    f, slope = ACTIVATIONS[activation]

    def forward(x, h, wx, wh, b):
        check("rnn_cell", 1, x, {"h": h}, wx, wh, b)
        z = times(x, wx) + times(h, wh) + b
        h_next = f(z).astype(jnp.result_type(x, h, wx, wh, b))
        return h_next, CellResiduals(x, h, wx, wh, spec(b), h_next)

    def backward(residuals, dy):
        x, h, wx, wh, of_b, h_next = residuals
        dz = wide(dy) * slope(wide(h_next))
        dx, dh = times(dz, wx.T).astype(x.dtype), times(dz, wh.T).astype(h.dtype)
        return dx, dh, outer(x, dz).astype(wx.dtype), outer(h, dz).astype(wh.dtype), total(dz).astype(of_b.dtype)

    return forward, backward


class Residuals(NamedTuple):
    x: jax.Array  # [time, ..., in]
    h: jax.Array  # [..., hidden]
    wx: jax.Array  # [in, hidden]
    wh: jax.Array  # [hidden, hidden]
    of_b: Spec  # [hidden]
    hs: jax.Array  # [time, ..., hidden]


@op
def rnn(*, activation: Literal["tanh", "relu"] = "tanh", axis: int = 0, reverse: bool = False):
    """A sequence: x [time, ..., in], h before it, wx, wh, b as of `rnn_cell` → (hs [time, ..., hidden], h).

    hₜ = f(xₜ wx + hₜ₋₁ wh + b);  dzₜ = (dyₜ + dzₜ₊₁ whᵀ) · f′, dx = dz wxᵀ.  Saved: the arguments, hs.  (Werbos 1990.)
    The final state is returned beside all states, so that a long sequence can go in parts.
    activation: "tanh" or "relu".  axis: that of time, in x and hs.  reverse: from the last step to the first.
    Raises InputError for sizes that do not fit. Derivation: the module.
    """
    f, slope = ACTIVATIONS[activation]

    def forward(x, h, wx, wh, b):
        check("rnn", 1, x, {"h": h}, wx, wh, b, axis)
        dtype = jnp.result_type(x, h, wx, wh, b)

        def step(h, z):
            h = f(z + times(h, wh)).astype(dtype)
            return h, h

        def chunk(h, x):
            return lax.scan(step, h, times(x, wx) + b, reverse=reverse)

        last, hs = in_chunks(chunk, h.astype(dtype), jnp.moveaxis(x, axis, 0), reverse)
        hs = jnp.moveaxis(hs, 0, axis)
        return (hs, last), Residuals(x, h, wx, wh, spec(b), hs)

    def backward(residuals, dy):
        x, h, wx, wh, of_b, hs = residuals
        dhs, dh = dy

        def step(dh, here):
            dy, slope = here
            dz = (dh + dy) * slope
            return times(dz, wh.T), dz

        def chunk(dh, here):
            x, h, h_next, dy = here
            dh, dz = lax.scan(step, dh, (dy, slope(wide(h_next))), reverse=not reverse)
            return dh, (outer(x, dz), outer(h, dz), total(dz)), times(dz, wx.T).astype(x.dtype)

        x, hs, dhs = (jnp.moveaxis(a, axis, 0) for a in (x, hs, dhs))
        here = x, before(h.astype(hs.dtype), hs, reverse), hs, dhs
        dh, dparams, dx = backward_in_chunks(chunk, wide(dh), (wx, wh, of_b), here, reverse)
        return jnp.moveaxis(dx, 0, axis), dh.astype(h.dtype), *dparams

    return forward, backward
