"""Every value that flows, forward and backward, in order; and where the first NaN or infinity arose."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manual_backprop.combinators import LossScale, MicroBatches, Objective, Recompute, Repeat, Serial, Tied
from manual_backprop.contract import Layer
from manual_backprop.testing.leaves import is_inexact


def first_nonfinite(objective: Layer, params: Any, state: Any, batch: tuple, key=None) -> str | None:
    """Names the first place, forward and then backward, that holds a value which is not finite; None if all are.

    objective: an `Objective`, or one within Tied, MicroBatches, LossScale; another layer is taken whole.
    Runs it layer by layer, outside jit; layers of a `Repeat` one by one, other combinators whole.
    Places: "the input", "forward, at …", "backward, at …".
    """
    for place, values in every_value(objective, params, state, batch, key):
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(values) if is_inexact(leaf)):
            return place
    return None


def every_value(objective: Layer, params, state, batch, key=None, dC=1.0) -> Iterator[tuple[str, Any]]:
    """(place, values) of all that flows, in the order in which it arises; dC is what the backward pass starts with.

    Places are those of `first_nonfinite`; a layer's values forward are its y, backward (dparams, dx).
    """
    if isinstance(objective, Tied):
        yield from every_value(objective.layer, objective.spread(params), state, batch, key, dC)
    elif isinstance(objective, LossScale):
        yield from every_value(objective.objective, params, state.of_objective, batch, key, dC * state.scale)
    elif isinstance(objective, MicroBatches):
        parts = objective.parts(batch)
        keys = [None] * objective.n if key is None else jax.random.split(key, objective.n)
        for i, (share, k) in enumerate(zip(objective.shares(parts), keys, strict=True)):
            part = jax.tree.map(lambda leaf, i=i: leaf[i], parts)
            for place, values in every_value(objective.objective, params, state, part, k, dC * share):
                yield f"part {i + 1} of {objective.n} of the batch: {place}", values
    elif isinstance(objective, Objective):
        yield from _values_of_one(objective, params, state, batch, key, dC)
    else:
        yield "the batch", batch
        yield "the parameters", params
        cost, _, residuals = objective.forward(params, state, batch, key)
        yield f"forward, at {objective!r}", cost
        yield f"backward, at {objective!r}", objective.backward(params, residuals, jnp.full_like(cost, dC))


def _values_of_one(objective: Objective, params, state, batch, key, dC) -> Iterator[tuple[str, Any]]:
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
    dparams, (dx, _) = objective.cost.backward(params[1], residuals, jnp.full_like(cost, dC))
    yield f"backward, at the cost {objective.cost!r}", (dparams, dx)
    for name, layer, p, residuals in reversed(links):
        dparams, dx = layer.backward(p, residuals, dx)
        yield f"backward, at {name} {layer!r}", (dparams, dx)


def _links(layer: Layer, params, state, key, name: str) -> Iterator[tuple]:
    """The layers of nested Serials and Repeats in order, each with its part of params, state and key."""
    if isinstance(layer, Serial):
        for i, (inner, p, s, k) in enumerate(zip(layer.layers, params, state, layer.keys(key), strict=True)):
            yield from _links(inner, p, s, k, f"{name}[{i}]")
    elif isinstance(layer, Repeat):
        keys = [None] * layer.n if key is None else jax.random.split(key, layer.n)
        for i, k in enumerate(keys):
            p, s = jax.tree.map(lambda leaf, i=i: leaf[i], (params, state))
            yield from _links(layer.layer, p, s, k, f"{name}[{i}]")
    elif isinstance(layer, Recompute):
        yield from _links(layer.layer, params, state, key, name)
    else:
        yield name, layer, params, state, key
