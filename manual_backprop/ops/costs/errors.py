"""Costs of the error of each number alone, e = a - t: the prediction a, the target t.

Each entry is an item of its own, and reaches C by one path, so with dc from `reduction.py`

    da = dc · f′(e),    dt = -da

`optax.losses` has the same functions. All are computed in at least float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from manual_backprop.contract import op
from manual_backprop.ops.arrays import is_float, want_float, want_real, want_shape, wide
from manual_backprop.ops.costs.reduction import Reduction, dcosts, dweights, reduce, unless_masked, want_items
from manual_backprop.options import want_positive


class Residuals(NamedTuple):
    prediction: jax.Array  # [...]
    target: jax.Array  # [...]
    weights: jax.Array | None  # [...]


@op
def mean_squared_error(*, reduction: Reduction = "mean", weights: bool = False):
    """prediction [...], target [...] (, weights [...]) → C = ⟨(a - t)²⟩, the mean over every entry.

        da = dc · 2 (a - t),    dt = -da

    The reductions and the weights: `reduction.py`.  Raises InputError for shapes that differ, and for no entries.
    Source: Rumelhart, Hinton & Williams 1986, eq. 3.  Saved: the arguments, nothing new.
    """
    return of_errors("mean_squared_error", jnp.square, lambda e: 2 * e, reduction, weights)


@op
def absolute_error(*, reduction: Reduction = "mean", weights: bool = False):
    """prediction [...], target [...] (, weights [...]) → C = ⟨|a - t|⟩, the mean over every entry.

        da = dc · sign(a - t),  0 at the kink,    dt = -da

    The reductions and the weights: `reduction.py`.  Raises InputError for shapes that differ, and for no entries.
    Source: Bloomfield & Steiger 1983, "Least absolute deviations".  Saved: the arguments, nothing new.
    """
    return of_errors("absolute_error", jnp.abs, jnp.sign, reduction, weights)


@op
def huber(*, delta: float = 1.0, reduction: Reduction = "mean", weights: bool = False):
    """prediction [...], target [...] (, weights [...]) → C = ⟨c⟩, c = ½ e² where |e| ≤ δ, else δ (|e| - ½ δ).

        c = q (e - ½ q),  q = max(-δ, min(e, δ)),    da = dc · q,    dt = -da

    huber / δ is the smooth L1 cost.  The reductions and the weights: `reduction.py`.
    Raises InputError unless δ > 0, for shapes that differ, and for no entries.
    Source: Huber 1964, "Robust estimation of a location parameter".  Saved: the arguments, nothing new.
    """
    want_positive("huber", delta=delta)

    def clipped(e):
        return jnp.where(jnp.abs(e) > delta, jnp.copysign(delta, e), e)

    return of_errors("huber", lambda e: clipped(e) * (e - 0.5 * clipped(e)), clipped, reduction, weights)


def of_errors(name: str, cost: Callable, derivative: Callable, reduction: str, weights: bool):
    """(forward, backward) of c = cost(a - t), reduced."""

    def forward(prediction, target, weights):
        check(name, prediction, target, reduction, weights)
        c = cost(wide(prediction) - target)
        return reduce(reduction, c, weights), Residuals(prediction, target, weights)

    def forward_unweighted(prediction, target):
        return forward(prediction, target, None)

    def backward(residuals, dy):
        prediction, target, w = residuals
        error = unless_masked(wide(prediction) - target, w)
        da = dcosts(reduction, dy, error.size, w) * derivative(error)
        cotangents = da.astype(prediction.dtype), (-da).astype(target.dtype) if is_float(target) else None
        return cotangents if w is None else (*cotangents, dweights(reduction, dy, cost(error), w))

    return (forward if weights else forward_unweighted), backward


def check(name: str, prediction, target, reduction: str, weights) -> None:
    want_float(name, prediction=prediction)
    want_real(name, target=target)
    want_shape(name, prediction.shape, "as prediction", target=target)
    want_items(name, reduction, prediction, prediction.shape, weights)
