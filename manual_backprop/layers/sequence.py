"""Recurrent layers: from a sequence to all hidden states, starting from zero, or where the last batch ended.

Time is the axis before the last, as in the rest of the library: x [..., time, in] → h [..., time, hidden].

With `carried`, a long sequence goes in consecutive batches: the layer's state is the recurrent state, and each batch
starts from where the one before ended. Values go on, the gradient does not: it ends at the batch's first step, which is
backpropagation through time, truncated (Werbos 1990; Williams & Peng 1990). A state is for one batch size. Within
`MicroBatches` it would go from one part of the batch to the next.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from manual_backprop import ops
from manual_backprop.contract import Op, Stateless
from manual_backprop.errors import InputError, want_count
from manual_backprop.layers.base import Initializer, OpLayer, lecun_normal, vectors, zeros
from manual_backprop.ops.arrays import Spec, spec, want_axis, wide_dtype
from manual_backprop.options import want_type

orthogonal = jax.nn.initializers.orthogonal()


def keeping(key, shape, dtype) -> jax.Array:
    """Biases of an LSTM that keeps its state at first: one for the gate f, zero for the others (Gers 2000)."""
    return jnp.repeat(jnp.asarray([0, 1, 0, 0], dtype), shape[0] // 4)


@dataclass(frozen=True, repr=False)
class _Sequence(OpLayer):
    """What has a state that goes along time. A subclass has the fields axis, reverse and carried."""

    def __post_init__(self):
        super().__post_init__()
        name = type(self).__name__
        want_type(f"{name}: carried", self.carried, bool)
        if self.carried and self.reverse:
            raise InputError(f"{name}: reverse starts at the end, which carried has not got yet; wants one of the two")

    def init(self, key, x):
        params = self.parameters(key, x)
        return params, self._zero(x) if self.carried else ()

    def _zero(self, x):
        """The state before a sequence that nothing comes before."""
        raise NotImplementedError

    def _batch(self, x) -> tuple[int, ...]:
        """The shape of x without time and features."""
        shape, _ = self._sequence(x)
        time = want_axis(type(self).__name__, self.axis, len(shape))
        return shape[:time] + shape[time + 1 : -1]

    def _sequence(self, x) -> tuple:
        """The shape and dtype of x, which has an axis of time."""
        name = type(self).__name__
        shape, dtype = vectors(name, x)
        if len(shape) < 2:
            raise InputError(f"{name}: x has shape {shape}; wants [..., time, in]")
        return shape, dtype

    def _start(self, state, x) -> list:
        """The parts of the state before x, in x's dtype."""
        zero = jax.tree.leaves(self._zero(x))
        if not self.carried:
            return zero
        state = jax.tree.leaves(state)
        for before, wanted in zip(state, zero, strict=False):
            if before.shape != wanted.shape:
                raise InputError(
                    f"{type(self).__name__}: the carried state has shape {before.shape}, x {x.shape}; wants "
                    f"{wanted.shape}: a state is for one batch size, that of init"
                )
        if len(state) != len(zero):
            raise InputError(f"{type(self).__name__}: got {len(state)} arrays of state; wants {len(zero)}, as of init")
        return [before.astype(wanted.dtype) for before, wanted in zip(state, zero, strict=True)]

    def _end(self, state, last):
        """The new state, in the old one's dtype."""
        return jax.tree.map(lambda old, new: new.astype(old.dtype), state, last) if self.carried else state


@dataclass(frozen=True, repr=False)
class _Recurrent(_Sequence):
    """The op's first output. A subclass gives `op` and the number of `gates` and `states`."""

    hidden: int
    axis: int = -2
    reverse: bool = False
    wx_init: Initializer = lecun_normal
    wh_init: Initializer = orthogonal
    b_init: Initializer = zeros
    carried: bool = False

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

    def _zero(self, x):
        h = jnp.zeros_like(x, shape=(*self._batch(x), self.hidden))
        return h if self.states == 1 else (h,) * self.states

    def apply(self, params, state, x):
        return super().apply(params, state, (x, *self._start(state, x)))[0]

    def forward(self, params, state, x, key=None):
        (hs, last), residuals = self.run(params, (x, *self._start(state, x)))
        return hs, self._end(state, last), residuals

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
    """Long short-term memory along time: x [..., time, in] → all h [..., time, hidden]. The op: `ops.lstm`.

    Carried, the state is (h, c). `b_init=keeping` lets it forget slowly at first.
    """

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


@dataclass(frozen=True, repr=False)
class LinearRecurrentUnit(_Sequence):
    """hₜ = λ hₜ₋₁ + γ xₜ of complex numbers: x [..., time, 2 d] → all h, as x; the op: `ops.linear_recurrent_unit`.

    It has no weights but λ [d]: what mixes the numbers is before and after it, such as `Dense`. λ starts evenly spread
    over a ring, smallest ≤ |λ| ≤ largest, at angles 0 … phase: 1 / (1 - |λ|) steps is how long a number is remembered,
    2π / phase the shortest period.  (Orvieto 2023, lemma 3.2.)
    """

    axis: int = -2
    reverse: bool = False
    carried: bool = False
    smallest: float = 0.9
    largest: float = 0.999
    phase: float = math.pi / 10

    def __post_init__(self):
        super().__post_init__()
        for name in ("smallest", "largest", "phase"):
            want_type(f"LinearRecurrentUnit: {name}", getattr(self, name), float)
        if not 0 <= self.smallest < self.largest <= 1:
            raise InputError(
                f"LinearRecurrentUnit: the ring is {self.smallest} … {self.largest}; wants 0 ≤ smallest < largest ≤ 1"
            )

    @property
    def op(self) -> Op:
        return ops.linear_recurrent_unit(axis=self.axis, reverse=self.reverse, initial=self.carried)

    def parameters(self, key, x):
        shape, dtype = self._sequence(x)
        if shape[-1] % 2:
            raise InputError(f"LinearRecurrentUnit: x has shape {shape}; wants [..., time, 2 d], an even last axis")
        ring_key, phase_key = jax.random.split(key)
        size, wide = (shape[-1] // 2,), wide_dtype(dtype)
        area = jax.random.uniform(ring_key, size, wide, self.smallest**2, self.largest**2)
        area = jnp.clip(area, jnp.finfo(wide).tiny, 1 - jnp.finfo(wide).eps)  # ν is finite
        theta = jax.random.uniform(phase_key, size, wide, 0, self.phase)
        return {"nu": jnp.log(-jnp.log(area) / 2).astype(dtype), "theta": theta.astype(dtype)}

    def _zero(self, x):
        return jnp.zeros_like(x, shape=(*self._batch(x), x.shape[-1]))

    def apply(self, params, state, x):
        return super().apply(params, state, self._with_start(state, x))

    def forward(self, params, state, x, key=None):
        y, residuals = self.run(params, self._with_start(state, x))
        last = y.take(-1, self.axis) if self.carried and y.shape[self.axis] else state  # of no step: as it was
        return y, self._end(state, last), residuals

    def backward(self, params, residuals, dy):
        dparams, dx = super().backward(params, residuals, dy)
        return dparams, dx[0] if self.carried else dx

    def _with_start(self, state, x):
        return (x, *self._start(state, x)) if self.carried else x


@dataclass(frozen=True, repr=False)
class LastStep(Stateless):
    """y = x at the last step: x [..., time, features] → [..., features];  dx is dy there, and zero before."""

    def run(self, params, x):
        shape, _ = vectors("LastStep", x)
        if len(shape) < 2 or not shape[-2]:
            raise InputError(f"LastStep: x has shape {shape}; wants [..., time, features], at least one step")
        return x[..., -1, :], spec(x)

    def backward(self, params, residuals: Spec, dy):
        before = residuals.shape[-2] - 1
        return {}, jnp.pad(dy[..., None, :], [(0, 0)] * (dy.ndim - 1) + [(before, 0), (0, 0)])
