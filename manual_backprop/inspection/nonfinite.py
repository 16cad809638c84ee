"""Where the first NaN or infinity arose."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manual_backprop.combinators import Objective, Serial
from manual_backprop.contract import Layer
from manual_backprop.testing.leaves import is_inexact


def first_nonfinite(objective: Objective, params: Any, state: Any, batch: tuple, key=None) -> str | None:
    """Names the first place, forward and then backward, that holds a value which is not finite; None if all are.

    Runs the objective layer by layer, outside jit. Places: "the input", "forward, at …", "backward, at …".
    """
    for place, values in _values(objective, params, state, batch, key):
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(values) if is_inexact(leaf)):
            return place
    return None


def _values(objective: Objective, params, state, batch, key) -> Iterator[tuple[str, Any]]:
    """Every value that flows, in the order in which it arises."""
    x, target = batch
    model_key, cost_key = (None, None) if key is None else jax.random.split(key)
    yield "the input", x
    yield "the target", target
    links = []
    for name, layer, p, s, k in _links(objective.model, params[0], state[0], model_key, "model"):
        yield f"the parameters of {name} {layer!r}", p
        x, _, residuals = layer.forward(p, s, x, k)
        yield f"forward, at {name} {layer!r}", x
        links.append((name, layer, p, residuals))
    cost, _, residuals = objective.cost.forward(params[1], state[1], (x, target), cost_key)
    yield f"forward, at the cost {objective.cost!r}", cost
    dparams, (dx, _) = objective.cost.backward(params[1], residuals, jnp.ones_like(cost))
    yield f"backward, at the cost {objective.cost!r}", (dparams, dx)
    for name, layer, p, residuals in reversed(links):
        dparams, dx = layer.backward(p, residuals, dx)
        yield f"backward, at {name} {layer!r}", (dparams, dx)


def _links(layer: Layer, params, state, key, name: str) -> Iterator[tuple]:
    """The layers of nested Serials in order, each with its part of params, state and key."""
    if not isinstance(layer, Serial):
        yield name, layer, params, state, key
        return
    for i, (inner, p, s, k) in enumerate(zip(layer.layers, params, state, layer.keys(key), strict=True)):
        yield from _links(inner, p, s, k, f"{name}[{i}]")
