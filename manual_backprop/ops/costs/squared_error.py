"""The documented cost: the squares of the errors, summed over the outputs, averaged over the examples.

    C = 1/N Σₙ Cₙ,    Cₙ = Σⱼ (aₙⱼ - tₙⱼ)²

a is the prediction, t the target. Each error reaches C by one path, its own square, so

    da = dC · 2 (a - t) / N,    dt = -da

Source: Rumelhart, Hinton & Williams 1986, eq. 3, here without its factor ½.
Saved: the arguments, nothing new.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from manual_backprop.contract import InputError, op
from manual_backprop.ops.arrays import is_float, want_examples, want_float, wide


class Residuals(NamedTuple):
    prediction: jax.Array  # [..., outputs]
    target: jax.Array  # [..., outputs]


@op
def squared_error():
    """prediction [..., outputs], target likewise (float or integer) → C, a scalar in at least float32.

    The last axis counts outputs, the axes before it examples.
    Raises InputError for shapes that differ and for an empty batch.
    """

    def forward(prediction, target):
        check(prediction, target)
        error = wide(prediction) - target
        return jnp.sum(jnp.square(error)) / examples(prediction), Residuals(prediction, target)

    def backward(residuals, dy):
        prediction, target = residuals
        da = dy * 2 * (wide(prediction) - target) / examples(prediction)
        return da.astype(prediction.dtype), (-da).astype(target.dtype) if is_float(target) else None

    return forward, backward


def examples(x) -> int:
    """N: how many vectors of outputs x holds."""
    return x.size // x.shape[-1]


def check(prediction, target) -> None:
    want_float("squared_error", prediction=prediction)
    if jnp.ndim(prediction) == 0 or jnp.shape(prediction) != jnp.shape(target):
        raise InputError(
            f"squared_error: prediction has shape {jnp.shape(prediction)}, target {jnp.shape(target)}; "
            "wants both [examples, outputs], alike"
        )
    want_examples("squared_error", prediction)
