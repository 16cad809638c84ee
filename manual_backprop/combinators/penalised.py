"""A cost with a penalty for something else that the model made."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from manual_backprop.combinators.shapes import shapes
from manual_backprop.contract import Layer, want_layer
from manual_backprop.errors import InputError, inside
from manual_backprop.options import plain, want_type


@dataclass(frozen=True, repr=False)
class Penalised(Layer):
    """C = cost(prediction, target) + weight · penalty(other), of a model whose y is the pair (prediction, other).

    A cost for `Objective`, from ((prediction, other), target): such as a divergence of the latent variables, or the
    load of experts. What the model made reaches C by two paths, one through each: ∂C/∂other = weight · ∂penalty/∂other.
    """

    cost: Layer
    penalty: Layer
    weight: float = 1.0

    def __post_init__(self):
        want_layer("Penalised's cost", self.cost)
        want_layer("Penalised's penalty", self.penalty)
        object.__setattr__(self, "weight", plain(self.weight))
        want_type("Penalised: weight", self.weight, float)

    def init(self, key, x):
        (prediction, other), target = _parts(x)
        cost_key, penalty_key = jax.random.split(key)
        with inside("cost"):
            cost, cost_state = self.cost.init(cost_key, shapes((prediction, target)))
        with inside("penalty"):
            penalty, penalty_state = self.penalty.init(penalty_key, shapes(other))
        return (cost, penalty), (cost_state, penalty_state)

    def apply(self, params, state, x):
        cost, penalty = self.parts(params, state, x)
        return cost + self.weight * penalty

    def parts(self, params, state, x) -> tuple:
        """The cost and the penalty, not weighted yet."""
        (prediction, other), target = _parts(x)
        with inside("cost"):
            cost = self.cost.apply(params[0], state[0], (prediction, target))
        with inside("penalty"):
            return cost, self.penalty.apply(params[1], state[1], other)

    def forward(self, params, state, x, key=None):
        (prediction, other), target = _parts(x)
        keys = (None, None) if key is None else jax.random.split(key)
        with inside("cost"):
            cost, cost_state, cost_residuals = self.cost.forward(params[0], state[0], (prediction, target), keys[0])
        with inside("penalty"):
            penalty, penalty_state, penalty_residuals = self.penalty.forward(params[1], state[1], other, keys[1])
        return cost + self.weight * penalty, (cost_state, penalty_state), (cost_residuals, penalty_residuals)

    def backward(self, params, residuals, dy):
        dcost_params, (dprediction, dtarget) = self.cost.backward(params[0], residuals[0], dy)
        dpenalty_params, dother = self.penalty.backward(params[1], residuals[1], self.weight * dy)
        return (dcost_params, dpenalty_params), ((dprediction, dother), dtarget)


def _parts(x) -> tuple:
    if not (isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], tuple) and len(x[0]) == 2):
        raise InputError("Penalised: got another structure; wants ((prediction, other), target)")
    return x
