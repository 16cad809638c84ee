"""Recurrent layers: from a sequence to all hidden states, starting from zero.

Time is the axis before the last, as in the rest of the library: x [..., time, in] → h [..., time, hidden].
To carry a state from one part of a long sequence to the next, use the op.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from manual_backprop import ops
from manual_backprop.contract import Op
from manual_backprop.errors import InputError, want_count
from manual_backprop.layers.base import Initializer, OpLayer, lecun_normal, vectors, zeros
from manual_backprop.ops.arrays import want_axis, wide_dtype

orthogonal = jax.nn.initializers.orthogonal()


@dataclass(frozen=True, repr=False)
class _Recurrent(OpLayer):
    """The op's first output, its states starting from zero. A subclass gives `op` and the number of `gates`."""

    hidden: int
    axis: int = -2
    reverse: bool = False
    wx_init: Initializer = lecun_normal
    wh_init: Initializer = orthogonal
    b_init: Initializer = zeros

    gates = 1
    states = 1

    def __post_init__(self):
        object.__setattr__(self, "hidden", want_count(f"{type(self).__name__}: hidden", self.hidden))
        super().__post_init__()

    def parameters(self, key, x):
        shape, dtype = self._sequence(x)
        wx_key, b_key, *wh_keys = jax.random.split(key, 2 + self.gates)
        square = self.hidden, self.hidden
        wh = [self.wh_init(wh_key, square, wide_dtype(dtype)) for wh_key in wh_keys]  # one a gate
        return {
            "wx": self.wx_init(wx_key, (shape[-1], self.gates * self.hidden), dtype),
            "wh": jnp.concatenate(wh, -1).astype(dtype),
            "b": self.b_init(b_key, (self.gates * self.hidden,), dtype),
        }

    def _sequence(self, x) -> tuple:
        """The shape and dtype of x, which has an axis of time."""
        name = type(self).__name__
        shape, dtype = vectors(name, x)
        if len(shape) < 2:
            raise InputError(f"{name}: x has shape {shape}; wants [..., time, in]")
        return shape, dtype

    def _arguments(self, params, x) -> tuple:
        """x and the states before it."""
        shape, dtype = self._sequence(x)
        time = want_axis(type(self).__name__, self.axis, len(shape))
        batch = shape[:time] + shape[time + 1 : -1]
        return x, *[jnp.zeros_like(x, dtype, (*batch, self.hidden))] * self.states

    def run(self, params, x):
        (hs, _), residuals = super().run(params, x)
        return hs, residuals

    def apply(self, params, state, x):
        return super().apply(params, state, x)[0]

    def backward(self, params, residuals, dy):
        last = jnp.zeros_like(residuals.h)  # nothing comes by the final state
        dparams, dx = super().backward(params, residuals, (dy, last if self.states == 1 else (last,) * self.states))
        return dparams, dx[0]


@dataclass(frozen=True, repr=False)
class RNN(_Recurrent):
    """h′ = f(x wx + h wh + b) along time: x [..., time, in] → all h [..., time, hidden]. The op: `ops.rnn`."""

    activation: str = "tanh"

    @property
    def op(self) -> Op:
        return ops.rnn(activation=self.activation, axis=self.axis, reverse=self.reverse)


@dataclass(frozen=True, repr=False)
class LSTM(_Recurrent):
    """Long short-term memory along time: x [..., time, in] → all h [..., time, hidden]. The op: `ops.lstm`."""

    gates = 4
    states = 2

    @property
    def op(self) -> Op:
        return ops.lstm(axis=self.axis, reverse=self.reverse)


@dataclass(frozen=True, repr=False)
class GRU(_Recurrent):
    """The gated recurrent unit along time: x [..., time, in] → all h [..., time, hidden]. The op: `ops.gru`."""

    gates = 3

    @property
    def op(self) -> Op:
        return ops.gru(axis=self.axis, reverse=self.reverse)

    def parameters(self, key, x):
        params = super().parameters(key, x)
        return params | {"bh": self.b_init(key, (self.hidden,), params["b"].dtype)}
