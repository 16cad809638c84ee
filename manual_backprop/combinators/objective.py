"""A model and its cost."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from manual_backprop.combinators.shapes import output, shapes
from manual_backprop.contract import Layer, want_layer
from manual_backprop.errors import InputError, inside


@dataclass(frozen=True, repr=False)
class Objective(Layer):
    """The whole of C as one layer, from (x, target) to cost(model(x), target): the chain rule's last link.

    The cost averages over the examples, so every derivative that comes back is an average over them.
    """

    model: Layer
    cost: Layer

    def __post_init__(self):
        want_layer("Objective's model", self.model)
        want_layer("Objective's cost", self.cost)

    def init(self, key, batch):
        x, target = _pair(batch)
        model_key, cost_key = jax.random.split(key)
        with inside("model"):
            params, state = self.model.init(model_key, x)
            prediction = output(self.model, params, state, x)
        with inside("cost"):
            cost_params, cost_state = self.cost.init(cost_key, (prediction, shapes(target)))
        return (params, cost_params), (state, cost_state)

    def apply(self, params, state, batch):
        x, target = _pair(batch)
        with inside("model"):
            prediction = self.model.apply(params[0], state[0], x)
        with inside("cost"):
            return self.cost.apply(params[1], state[1], (prediction, target))

    def forward(self, params, state, batch, key=None):
        x, target = _pair(batch)
        model_key, cost_key = (None, None) if key is None else jax.random.split(key)
        with inside("model"):
            prediction, model_state, model_residuals = self.model.forward(params[0], state[0], x, model_key)
        with inside("cost"):
            cost, cost_state, cost_residuals = self.cost.forward(params[1], state[1], (prediction, target), cost_key)
        return cost, (model_state, cost_state), (model_residuals, cost_residuals)

    def backward(self, params, residuals, dy):
        dcost_params, (dprediction, dtarget) = self.cost.backward(params[1], residuals[1], dy)
        dparams, dx = self.model.backward(params[0], residuals[0], dprediction)
        return (dparams, dcost_params), (dx, dtarget)


def _pair(batch) -> tuple:
    if not (isinstance(batch, tuple | list) and len(batch) == 2):
        raise InputError(f"Objective: the batch is a {type(batch).__name__}; wants a pair (x, target)")
    return tuple(batch)
