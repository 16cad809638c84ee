"""Softmax and cross-entropy in one: the cost of a classifier from its logits, averaged over the examples.

    C = 1/N Σₙ Cₙ,    Cₙ = -Σⱼ tₙⱼ ln pₙⱼ,    ln pⱼ = zⱼ - lse,    lse = ln Σₖ e^zₖ

z are the logits, t the labels: a distribution over classes, or an integer that stands for a one-hot row.
zₖ reaches C by its own term and, through lse, by every term: ∂lse/∂zₖ = pₖ. The paths add up to

    dzₖ = dC · (pₖ Σⱼ tⱼ - tₖ) / N,    dtⱼ = -dC · ln pⱼ / N

Source: Bridle 1990, "Probabilistic interpretation of feedforward classification network outputs".
Saved: the arguments and one number an example (lse); p is recomputed.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.contract import InputError, op
from manual_backprop.ops.arrays import is_float, known, want_examples, want_float, wide


class Residuals(NamedTuple):
    logits: jax.Array  # [..., classes]
    labels: jax.Array  # [...] of integers, or [..., classes]
    lse: jax.Array  # [..., 1]


@op
def softmax_cross_entropy():
    """logits [..., classes], labels [...] of integers or [..., classes] → C, a scalar in at least float32.

    Raises InputError for shapes that do not fit, for float labels where integers are due, for an empty batch, and for a
    label outside 0 … classes - 1 in an eager call. Inside jit values are not known, and indexing is that of
    `jnp.take_along_axis`: a label beyond the classes makes the cost NaN, a negative one counts from the end.
    """

    def forward(logits, labels):
        check(logits, labels)
        z = wide(logits)
        highest = jnp.max(z, -1, keepdims=True)
        lse = highest + jnp.log(jnp.sum(jnp.exp(z - highest), -1, keepdims=True))
        if labels.ndim < logits.ndim:
            costs = lse - jnp.take_along_axis(z, labels[..., None], -1, mode="fill")
        else:
            costs = labels * (lse - z)
        return jnp.sum(costs) / lse.size, Residuals(logits, labels, lse)

    def backward(residuals, dy):
        logits, labels, lse = residuals
        z = wide(logits)
        p = jnp.exp(z - lse)
        if labels.ndim < logits.ndim:
            classes = logits.shape[-1]
            index = jnp.where(labels < 0, labels + classes, labels)[..., None]
            t = lax.broadcasted_iota(index.dtype, logits.shape, logits.ndim - 1) == index
            return ((dy / lse.size) * (p - t)).astype(logits.dtype), None
        dz = (dy / lse.size) * (p * jnp.sum(wide(labels), -1, keepdims=True) - labels)
        dt = (dy / lse.size) * (lse - z)
        return dz.astype(logits.dtype), dt.astype(labels.dtype) if is_float(labels) else None

    return forward, backward


def check(logits, labels) -> None:
    want_float("softmax_cross_entropy", logits=logits)
    if jnp.ndim(logits) == 0 or jnp.shape(labels) not in (jnp.shape(logits)[:-1], jnp.shape(logits)):
        raise InputError(
            f"softmax_cross_entropy: logits have shape {jnp.shape(logits)}, labels {jnp.shape(labels)}; "
            f"wants labels {jnp.shape(logits)[:-1]} of integers, or {jnp.shape(logits)}"
        )
    want_examples("softmax_cross_entropy", logits)
    if jnp.ndim(labels) == jnp.ndim(logits):
        return
    if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        dtype = jnp.result_type(labels)
        raise InputError(f"softmax_cross_entropy: labels are {dtype}; wants integers: convert them with .astype(int)")
    values, classes = known(labels), jnp.shape(logits)[-1]
    if values is not None and (values.min() < 0 or values.max() >= classes):
        wrong = values[(values < 0) | (values >= classes)][0]
        raise InputError(f"softmax_cross_entropy: label {wrong} is outside 0 … {classes - 1}, the {classes} classes")
