"""Layers that draw random numbers in training: they need a key there, and draw nothing in `apply`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from manual_backprop import ops
from manual_backprop.contract import Layer, Op
from manual_backprop.errors import InputError


class _Drawing(Layer):
    """What they share: in `forward` an op whose last argument is the key."""

    op: Op

    def arguments(self, x) -> tuple:
        """The others."""
        return (x,)

    def init(self, key, x):
        return {}, ()

    def forward(self, params, state, x, key=None):
        if key is None:
            raise InputError(
                f"{type(self).__name__}: got no key; wants one, to draw from: give forward a key, or call apply"
            )
        y, residuals = self.op.forward(*self.arguments(x), key)
        return y, state, residuals

    def backward(self, params, residuals, dy):
        *dx, _ = self.op.backward(residuals, dy)
        return {}, tuple(dx) if len(dx) > 1 else dx[0]


@dataclass(frozen=True, repr=False)
class _Dropping(_Drawing):
    """The identity in `apply`."""

    keep_probability: float
    _rule: ClassVar[Callable[..., Op]]

    def __post_init__(self):
        _ = self.op  # a wrong probability is told here

    @property
    def op(self) -> Op:
        return type(self)._rule(keep_probability=self.keep_probability)

    def apply(self, params, state, x):
        return x


class Dropout(_Dropping):
    """Entries of x at random set to 0, the others scaled by 1 / keep_probability. The op: `ops.dropout`."""

    _rule = ops.dropout


class StochasticDepth(_Dropping):
    """Examples at random set to 0: a residual branch left out, `Residual(Serial(…, StochasticDepth(0.9)))`.

    The others are scaled by 1 / keep_probability. The op: `ops.stochastic_depth`.
    """

    _rule = ops.stochastic_depth


@dataclass(frozen=True, repr=False)
class GaussianSample(_Drawing):
    """A pair (mean [...], log_variance [...]) → a sample; in `apply` the mean. The op: `ops.gaussian_sample`."""

    op: ClassVar[Op] = ops.gaussian_sample()

    def arguments(self, x) -> tuple:
        if not (isinstance(x, tuple) and len(x) == 2):
            got = f"a tuple of {len(x)}" if isinstance(x, tuple) else "one array"
            raise InputError(f"GaussianSample: got {got}; wants a pair (mean, log_variance)")
        return x

    def apply(self, params, state, x):
        mean, _ = self.arguments(x)
        return mean
