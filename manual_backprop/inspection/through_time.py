"""How much the cost depends on the memory of a recurrent layer, step by step: ∂C/∂hₜ, backwards in time.

hₜ reaches C where it leaves, with cotangent dyₜ, and by the next step. Its whole cotangent is the sum of both:

    ∂C/∂hₜ = dyₜ + ∂C/∂hₜ₊₁ · ∂hₜ₊₁/∂hₜ

A long way back is a long product, which vanishes where its factors are below one, and explodes where they are above.
Source: Hochreiter 1991, "Untersuchungen zu dynamischen neuronalen Netzen"; Bengio, Simard & Frasconi 1994.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop import ops
from manual_backprop.combinators import Objective, Precision, Tied, Truncated
from manual_backprop.combinators.tied import get
from manual_backprop.combinators.truncated import joined
from manual_backprop.combinators.walk import leaves, with_children
from manual_backprop.contract import Layer, Op
from manual_backprop.errors import InputError
from manual_backprop.layers import GRU, LSTM, RNN, LinearRecurrentUnit
from manual_backprop.layers.base import _with
from manual_backprop.ops.arrays import wide
from manual_backprop.ops.sequence.linear_recurrent_unit import constants, recurrence
from manual_backprop.ops.sequence.lstm import derivatives, gates

Recurrent = RNN | LSTM | GRU | LinearRecurrentUnit


class Sensitivities(NamedTuple):
    """The whole cotangents of all states, in at least float32."""

    h: jax.Array  # [..., time, hidden], ∂C/∂hₜ
    c: jax.Array | None  # of an LSTM, ∂C/∂cₜ: by hₜ and by the next step


def through_time(layer: Layer, params: Any, x: jax.Array, dy: jax.Array, state: Any = ()) -> Sensitivities:
    """∂C/∂hₜ at every step of an RNN, GRU, LSTM or LinearRecurrentUnit, by a scan forward and one backward.

    dy: ∂C/∂y of the layer's output y.  state: what a `carried` layer starts from.
    Raises InputError for another layer, and for dy of another shape than y.
    """
    if not isinstance(layer, Recurrent):
        raise InputError(f"through_time: got {layer!r}; wants an RNN, LSTM, GRU or LinearRecurrentUnit")
    y, _, residuals = layer.forward(params, state, x)
    if jnp.shape(dy) != y.shape:
        raise InputError(f"through_time: dy has shape {jnp.shape(dy)}; wants {y.shape}, that of the layer's output")
    return jax.tree.map(lambda d: jnp.moveaxis(d, 0, layer.axis), backwards(layer, params, residuals, dy))


def backwards(layer: Layer, params, residuals, dy) -> Sensitivities:
    """Of the residuals of the layer's forward pass; time first."""
    params, residuals, dy = jax.tree.map(wide, (params, residuals, jnp.asarray(dy)))
    x, dy = (jnp.moveaxis(v, layer.axis, 0) for v in (residuals.x, dy))
    if isinstance(layer, LinearRecurrentUnit):
        _, decay, _ = constants(params["nu"], params["theta"], dy.dtype)
        nothing = jnp.zeros_like(dy, shape=dy.shape[1:])
        return Sensitivities(recurrence(decay.conj(), dy, nothing, not layer.reverse), None)
    cell, gated = _cell(layer), isinstance(layer, LSTM)
    weights = [params[name] for name in cell.arguments if name in params]

    def forward(state, x):
        y, kept = cell.forward(x, *state, *weights)
        return y if gated else (y,), _with(kept, dict.fromkeys(params))

    def backward(dstate, here):
        kept, dy = here
        dh, *dc = dstate
        dh = dh + dy
        _, *before = cell.backward(_with(kept, params), (dh, *dc) if gated else dh)
        by_c = [d + dh * derivatives(*gates(kept.z), kept.c)[0] for d in dc]
        return tuple(before[: len(dstate)]), (dh, *by_c)

    start = (residuals.h, residuals.c) if gated else (residuals.h,)
    _, kept = lax.scan(forward, start, x, reverse=layer.reverse)
    _, found = lax.scan(backward, jax.tree.map(jnp.zeros_like, start), (kept, dy), reverse=not layer.reverse)
    return Sensitivities(*found) if gated else Sensitivities(*found, None)


def _cell(layer: Layer) -> Op:
    if isinstance(layer, RNN):
        return ops.rnn_cell(activation=layer.activation)
    return ops.lstm_cell() if isinstance(layer, LSTM) else ops.gru_cell()


# ── in a whole model ─────────────────────────────────────────────────────────────────────────────────────────────────


def hidden_sensitivities(objective: Layer, params, state, batch, key=None) -> dict[str, jax.Array]:
    """The length of ∂C/∂hₜ for every t, averaged over the batch: [time] of each recurrent layer, by its name.

    objective: an `Objective`, or one within Tied. Names are as "model[1] LSTM"; layers that `Repeat` stacks are one
    entry, [n, time]. Of a `Truncated` layer it is the parts', one after another: it starts anew in each.
    Raises InputError for another objective, and for one without a recurrent layer.
    """
    inner = objective.layer if isinstance(objective, Tied) else objective
    if not isinstance(inner, Objective):
        raise InputError(f"hidden_sensitivities: got {objective!r}; wants an Objective(model, cost)")
    found = [(leaf, at) for leaf, at in leaves(objective) if isinstance(leaf, Recurrent)]
    if not found:
        raise InputError(f"hidden_sensitivities: {inner.model!r} has no recurrent layer; wants at least one")
    measured = _measured(objective)
    cost, _, residuals = measured.forward(params, state, batch, key)
    lengths, _ = measured.backward(params, residuals, jnp.ones_like(cost))
    name = lambda leaf, at: f"{('model', 'cost')[at[0]]}{''.join(f'[{i}]' for i in at[1:])} {type(leaf).__name__}"
    return {name(leaf, at): get(lengths, at).h for leaf, at in found}


def _measured(layer: Layer) -> Layer:
    """The layer, whose backward pass gives lengths in the place of the gradients of recurrent layers."""
    if isinstance(layer, Recurrent):
        return _Measured(layer)
    new = with_children(layer, lambda child, _: _measured(child))
    if isinstance(layer, Truncated):
        return _Parts(new.layer, new.steps, new.carried)
    if isinstance(layer, Precision):
        return _Precision(new.layer, new.compute, new.params)
    return _Tied(new.layer, *new.places) if isinstance(layer, Tied) else new


class _Lengths(NamedTuple):
    h: jax.Array  # [time]


@dataclass(frozen=True, repr=False)
class _Measured(Layer):
    layer: Layer

    def init(self, key, x):
        return self.layer.init(key, x)

    def apply(self, params, state, x):
        return self.layer.apply(params, state, x)

    def forward(self, params, state, x, key=None):
        return self.layer.forward(params, state, x, key)

    def backward(self, params, residuals, dy):
        dh = backwards(self.layer, params, residuals, dy).h
        most = jnp.max(jnp.abs(dh), -1)  # before squares, which underflow long before lengths do
        lengths = most * jnp.linalg.norm(dh / jnp.where(most > 0, most, 1)[..., None], axis=-1)
        _, dx = self.layer.backward(params, residuals, dy)
        return _Lengths(jnp.mean(lengths, tuple(range(1, lengths.ndim)))), dx


class _Parts(Truncated):
    """Lengths of the parts one after another; they are no sum."""

    def backward(self, params, residuals, dy):
        found, dx = lax.map(lambda here: self.layer.backward(params, *here), (residuals, self.parts(dy)))
        whole = lambda node: _Lengths(joined(node.h[..., None])[..., 0]) if isinstance(node, _Lengths) else node
        return jax.tree.map(whole, found, is_leaf=lambda node: isinstance(node, _Lengths)), joined(dx)


class _Precision(Precision):
    def dparams(self, params, dparams):
        return dparams


class _Tied(Tied):
    def backward(self, params, residuals, dy):
        return self.layer.backward(self.spread(params), residuals, dy)
