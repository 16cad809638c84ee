"""Softmax and cross-entropy in one: the cost of a classifier from its logits, averaged over the examples.

    C = 1/N Σₙ Cₙ,    Cₙ = -Σⱼ tₙⱼ ln pₙⱼ,    ln pⱼ = (zⱼ - m) - s,    s = ln Σₖ e^(zₖ - m),    m = maxₖ zₖ

z are the logits, t the labels: a distribution over classes, or an integer that stands for a one-hot row.
m takes nothing from p: it keeps e from overflowing, and m + s is never formed, for it would round at the size of z.
zₖ reaches C by its own term and, through m + s, by every term: ∂(m + s)/∂zₖ = pₖ. The paths add up to

    dzₖ = dC · (pₖ Σⱼ tⱼ - tₖ) / N,    dtⱼ = -dC · ln pⱼ / N

Source: Bridle 1990, "Probabilistic interpretation of feedforward classification network outputs".
Saved: the arguments and two numbers an example (m and s); p is recomputed.
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
    m: jax.Array  # [..., 1]
    s: jax.Array  # [..., 1]


@op
def softmax_cross_entropy():
    """logits [..., classes], labels [...] of integers or [..., classes] → C, a scalar in at least float32.

    Raises InputError for shapes that do not fit, for float labels where integers are due, for an empty batch, and for a
    label outside 0 … classes - 1 in an eager call. Inside jit values are not known, and indexing is that of
    `jnp.take_along_axis`: a label beyond the classes makes the cost NaN, a negative one counts from the end.
    """

    def forward(logits, labels):
        check(logits, labels)
        m = wide(jnp.max(logits, -1, keepdims=True))
        shifted = wide(logits) - m
        s = jnp.log(jnp.sum(jnp.exp(shifted), -1, keepdims=True))
        if labels.ndim < logits.ndim:
            costs = s - jnp.take_along_axis(shifted, _index(labels), -1, mode="fill")
        else:
            costs = jnp.where(labels == 0, 0, labels * (s - shifted))  # 0 ln 0 is 0
        return jnp.sum(costs) / s.size, Residuals(logits, labels, m, s)

    def backward(residuals, dy):
        logits, labels, m, s = residuals
        ln_p = wide(logits) - m - s
        p = jnp.exp(ln_p)
        if labels.ndim < logits.ndim:
            classes, index = logits.shape[-1], _index(labels)
            index = jnp.where(index < 0, index + classes, index)
            t = lax.broadcasted_iota(index.dtype, logits.shape, logits.ndim - 1) == index
            return ((dy / s.size) * (p - t)).astype(logits.dtype), None
        dz = (dy / s.size) * (p * jnp.sum(wide(labels), -1, keepdims=True) - labels)
        dt = -(dy / s.size) * ln_p
        return dz.astype(logits.dtype), dt.astype(labels.dtype) if is_float(labels) else None

    return forward, backward


def _index(labels) -> jax.Array:
    """[..., 1], of a dtype that counts any number of classes: uint8 ends at 255."""
    labels = labels[..., None]
    return labels if jnp.iinfo(labels.dtype).bits >= 32 else labels.astype(jnp.int32)


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
