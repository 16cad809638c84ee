"""The documented network, taken apart: every factor of the chain rule with its number, and a nudge to believe it.

    python3 scripts/run.py chain                          one neuron a layer: three weights, three biases
    python3 scripts/run.py chain --sizes 2 3 2            the general network, indices j and k

For every weight and bias the last table puts the product ∂C/∂a · ∂a/∂z · ∂z/∂w beside (C(w + ε) - C(w)) / ε.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

import manual_backprop as mb
from manual_backprop.errors import choose
from manual_backprop.inspection import Explanation, explain
from manual_backprop.layers import Apply
from manual_backprop.training import run
from manual_backprop.training.config import from_words, want_seed


@dataclass(frozen=True)
class Config:
    """Take a small network apart: every factor of the chain rule with its number."""

    sizes: tuple[int, ...] = (1, 1, 1, 1)
    """Neurons of the input and of each layer."""
    activation: str = "sigmoid"
    """sigmoid, tanh, relu, leaky_relu, softplus, silu or gelu."""
    examples: int = 2
    """Training examples to average over."""
    learning_rate: float = 0.5
    """The length of the one step of gradient descent."""
    epsilon: float = 1e-6
    """The nudge ε."""
    seed: int = 0
    """Of the weights and the examples."""


def main(_: run.Stop) -> int:
    config = from_words(Config, Config(), sys.argv[1:])
    choose("activation", config.activation, mb.ops.ACTIVATIONS)
    if len(config.sizes) < 2 or min(config.sizes) < 1:
        raise mb.InputError(
            f"--sizes {' '.join(map(str, config.sizes))}: wants the input and at least one layer, each ≥ 1"
        )
    if config.examples < 1:
        raise mb.InputError(f"--examples {config.examples} is out of range; wants at least 1")
    want_seed(config.seed)
    if not math.isfinite(config.learning_rate):
        raise mb.InputError(f"--learning-rate {config.learning_rate} is out of range; wants a number")
    if not (config.epsilon != 0 and math.isfinite(config.epsilon)):
        raise mb.InputError(f"--epsilon {config.epsilon} is no nudge; wants a small number, not 0")
    with jax.enable_x64(True):  # a difference of two costs needs the digits
        experiment(config)
    return 0


def experiment(config: Config) -> None:
    inputs, *sizes = config.sizes
    f = mb.ops.ACTIVATIONS[config.activation]()
    one_neuron_each = set(config.sizes) == {1}
    model = mb.models.chain(len(sizes), f) if one_neuron_each else mb.models.mlp(*sizes, activation=f, last=f)
    objective = mb.Objective(model, Apply(mb.ops.squared_error()))
    x_key, t_key, w_key = jax.random.split(jax.random.key(config.seed), 3)
    batch = (
        jax.random.uniform(x_key, (config.examples, inputs)),
        jax.random.uniform(t_key, (config.examples, sizes[-1])),
    )
    params, state = objective.init(w_key, batch)

    explanation = explain(objective, params, batch, learning_rate=config.learning_rate)
    print(f"{model!r}, cost {objective.cost.op!r}\n")
    print(explanation)
    print(f"\nA nudge of ε = {config.epsilon:g} to each weight and bias alone, beside the average product")
    print(f"{'':16}{'(C(w+ε)-C(w))/ε':>18}{'product':>18}{'difference':>14}")
    for name, slope, product in nudges(objective, params, state, batch, explanation, config.epsilon):
        print(f"∂C/∂{name:12}{slope:18.9f}{product:18.9f}{slope - product:14.1e}")


def nudges(objective, params, state, batch, explanation: Explanation, epsilon: float):
    """For each weight and bias: its name, the cost's change over ε, and the chain rule's average product."""
    cost = jax.jit(objective.apply)
    before = cost(params, state, batch)
    factors = {f.name: f.average for f in explanation.factors()}
    dense = [i for i, p in enumerate(params[0]) if p]
    names = iter(explanation.names)
    for i in dense:
        for kind in ("w", "b"):
            # names run over w_jk row by row of j; w is stored [k, j]
            for index in np.ndindex(params[0][i][kind].T.shape):
                name = next(names)
                moved = {**params[0][i], kind: jnp.asarray(params[0][i][kind]).at[index[::-1]].add(epsilon)}
                nudged = (*params[0][:i], moved, *params[0][i + 1 :])
                yield name, float((cost((nudged, params[1]), state, batch) - before) / epsilon), factors[name]


if __name__ == "__main__":
    run.main(main)
