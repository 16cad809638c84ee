"""The documented cost: the squares of the errors, summed over the outputs, averaged over the examples.

    C = 1/N Σₙ Cₙ,    Cₙ = Σⱼ (aₙⱼ - tₙⱼ)²

a is the prediction, t the target. Each error reaches C by one path, its own square, so with dc = dC / N (or what
another reduction, or weights, make of it: `reduction.py`)

    da = dc · 2 (a - t),    dt = -da

Source: Rumelhart, Hinton & Williams 1986, eq. 3, here without its factor ½.
Saved: the arguments, nothing new.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from manual_backprop.contract import op
from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import is_float, want_float, want_real, wide
from manual_backprop.ops.costs.reduction import Reduction, dcosts, dweights, reduce, unless_masked, want_items


class Residuals(NamedTuple):
    prediction: jax.Array  # [..., outputs]
    target: jax.Array  # [..., outputs]
    weights: jax.Array | None  # [...]


@op
def squared_error(*, reduction: Reduction = "mean", weights: bool = False):
    """prediction [..., outputs], target likewise (float or integer) → C, a scalar in at least float32.

    The last axis counts outputs, the axes before it examples, which are the items of `reduction.py`:
    `reduction="none"` gives C [...], and `weights=True` takes weights [...] as a third argument.
    Raises InputError for shapes that differ and for the mean of an empty batch.
    """

    def forward(prediction, target, weights):
        check(prediction, target, reduction, weights)
        c = jnp.sum(jnp.square(wide(prediction) - target), -1)
        return reduce(reduction, c, weights), Residuals(prediction, target, weights)

    def forward_unweighted(prediction, target):
        return forward(prediction, target, None)

    def backward(residuals, dy):
        prediction, target, w = residuals
        error = unless_masked(wide(prediction) - target, w)
        dc = dcosts(reduction, dy, math.prod(error.shape[:-1]), w)[..., None]
        da = dc * 2 * error
        cotangents = da.astype(prediction.dtype), (-da).astype(target.dtype) if is_float(target) else None
        return cotangents if w is None else (*cotangents, dweights(reduction, dy, jnp.sum(jnp.square(error), -1), w))

    return (forward if weights else forward_unweighted), backward


def check(prediction, target, reduction: str, weights) -> None:
    want_float("squared_error", prediction=prediction)
    want_real("squared_error", target=target)
    if prediction.ndim == 0 or prediction.shape != target.shape:
        raise InputError(
            f"squared_error: prediction has shape {prediction.shape}, target {target.shape}; "
            "wants both [examples, outputs], alike"
        )
    want_items("squared_error", reduction, prediction, prediction.shape[:-1], weights)
