"""Integer labels: what stands for a row of the target, and what does not fit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import known
from manual_backprop.ops.costs.reduction import counting


def are_classes(labels, logits) -> bool:
    """Whether labels are integers, one for each row of the logits; else they are rows themselves."""
    return labels.ndim < logits.ndim


def class_index(labels, ignored: int | None) -> jax.Array:
    """The class of each label, [..., 1]; 0 where the label is ignored, so that no NaN arises, to be masked or not."""
    index = signed(labels)[..., None]
    return index if ignored is None else jnp.where(index == ignored, 0, index)


def one_hot(labels, logits, ignored: int | None) -> jax.Array:
    """True at the class of each label, [..., classes]; a negative label counts from the end."""
    index = from_zero(class_index(labels, ignored), logits.shape[-1])
    return lax.broadcasted_iota(index.dtype, logits.shape, logits.ndim - 1) == index


def from_zero(index, classes: int) -> jax.Array:
    """The class counted from 0, for a negative one counts from the end; `classes`, which is none, for any other."""
    index = jnp.where(index < 0, index + classes, index)
    return jnp.where(index < 0, classes, index)


def signed(labels) -> jax.Array:
    """Of a dtype that counts any number of classes, and below zero: uint8 ends at 255."""
    wide_enough = jnp.issubdtype(labels.dtype, jnp.signedinteger) and jnp.iinfo(labels.dtype).bits >= 32
    return labels if wide_enough else labels.astype(jnp.int32)


def want_classes(name: str, labels, classes: int, ignored: int | None, weights) -> None:
    """Raises InputError for labels that are no integers and, in an eager call, for one outside 0 … classes - 1.

    A label that is ignored, or has the weight 0, may be anything.
    """
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise InputError(f"{name}: labels are {labels.dtype}; wants integers: convert them with .astype(int)")
    values, counts = known(labels), counting(weights)
    if values is None or counts is None:
        return
    outside = ((values < 0) | (values >= classes)) & (values != ignored) & counts
    if outside.any():
        wrong = values[outside].flat[0]
        raise InputError(f"{name}: label {wrong} is outside 0 … {classes - 1}, the {classes} classes")


def want_smoothing(name: str, label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 1:
        raise InputError(f"{name}: label_smoothing is {label_smoothing}; wants a number in [0, 1)")
