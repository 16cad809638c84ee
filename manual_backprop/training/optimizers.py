"""Optimisers by name: every alias that optax has."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from manual_backprop.errors import InputError, choose


def aliases() -> dict[str, Callable]:
    """optax's optimisers: its functions whose first argument is the learning rate, or (polyak_sgd) its largest."""
    functions = {name: f for name, f in vars(optax).items() if inspect.isfunction(f)}
    return {
        name: f
        for name, f in functions.items()
        if not name.startswith(("_", "scale_by"))
        and next(iter(inspect.signature(f).parameters), "") in ("learning_rate", "max_learning_rate")
    }


def optimizer(name: str, learning_rate: float, seed: int = 0) -> optax.GradientTransformationExtraArgs:
    """`optax.<name>(learning_rate)`. Its update also takes value, grad and value_fn, which a line search asks for.
    seed: for the noise of noisy_sgd.

    Raises InputError for a name that optax does not have and for a learning rate that is not a positive number.
    """
    alias = choose("optimizer", name, aliases())
    if not (learning_rate > 0 and math.isfinite(learning_rate)):
        raise InputError(f"learning rate {learning_rate} is out of range; wants a positive number")
    noise = {"key": seed} if "key" in inspect.signature(alias).parameters else {}
    return optax.with_extra_args_support(alias(learning_rate, **noise))


class Averaged(NamedTuple):
    """The state of `averaging`."""

    inner: Any
    average: Any  # shaped like params


def averaging(optimizer: optax.GradientTransformation, decay: float) -> optax.GradientTransformationExtraArgs:
    """The same optimiser, which also keeps a moving average of the weights: ā ← decay · ā + (1 - decay) · w.

    It starts with the first weights (Polyak & Juditsky 1992, in the exponential form of Tarvainen 2017,
    arXiv:1703.01780). `averages` reads it.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params):
        return Averaged(optimizer.init(params), params)

    def update(updates, state, params=None, **more):
        updates, inner = optimizer.update(updates, state.inner, params, **more)
        new = optax.apply_updates(params, updates)
        return updates, Averaged(inner, optax.incremental_update(new, state.average, 1 - decay))

    return optax.GradientTransformationExtraArgs(init, update)


def averages(optimizer_state, params):
    """The average that `averaging` keeps, wherever in the state it is; params where there is none."""
    is_averaged = lambda node: isinstance(node, Averaged)
    found = [node for node in jax.tree.leaves(optimizer_state, is_leaf=is_averaged) if is_averaged(node)]
    return found[0].average if found else params
