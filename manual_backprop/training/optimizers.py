"""Optimisers by name: every alias that optax has."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

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
