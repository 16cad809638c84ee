"""Costs. There is none for nll_loss, which takes logarithms of what need not be probabilities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import manual_backprop as mb
from torch_samples import Skip


def nn_functional_mse_loss(input, target, reduction="mean"):
    return mb.ops.mean_squared_error(reduction=reduction)(input, target)


def nn_functional_l1_loss(input, target, reduction="mean"):
    if np.iscomplexobj(input):
        raise Skip("complex numbers")
    return mb.ops.absolute_error(reduction=reduction)(input, target)


def nn_functional_huber_loss(input, target, reduction="mean", delta=1.0):
    return mb.ops.huber(delta=delta, reduction=reduction)(input, target)


def nn_functional_smooth_l1_loss(input, target, reduction="mean", beta=1.0):
    if beta == 0:
        return mb.ops.absolute_error(reduction=reduction)(input, target)
    return mb.ops.huber(delta=beta, reduction=reduction)(input, target) / beta


def nn_functional_binary_cross_entropy_with_logits(input, target, weight=None, reduction="mean", pos_weight=None):
    """PyTorch's mean is over the entries, whatever they weigh; ours over the weights."""
    given = () if pos_weight is None else (pos_weight,)
    if weight is None:
        return mb.ops.binary_cross_entropy(reduction=reduction, positive_weight=bool(given))(input, target, *given)
    summed = "none" if reduction == "none" else "sum"
    op = mb.ops.binary_cross_entropy(reduction=summed, positive_weight=bool(given), weights=True)
    cost = op(input, target, *given, jnp.broadcast_to(weight, input.shape))
    return cost / input.size if reduction == "mean" else cost


def nn_functional_cross_entropy(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    rows = target.shape == input.shape
    classes = 0 if input.ndim == 1 else 1
    op = mb.ops.softmax_cross_entropy(
        label_smoothing=label_smoothing,
        ignored=None if rows else ignore_index,
        class_weights=weight is not None,
        reduction=reduction,
    )
    labels = jnp.moveaxis(target, classes, -1) if rows else target
    return op(jnp.moveaxis(input, classes, -1), labels, *(() if weight is None else (weight,)))


def nn_functional_linear_cross_entropy(
    input,
    linear_weight,
    target,
    *,
    linear_bias=None,
    weight=None,
    reduction="mean",
    ignore_index=None,
    label_smoothing=0.0,
    options=None,
):
    """A bias is one more column of the weight; classes with places of their own are so many heads."""
    classes, *places, _ = linear_weight.shape
    if target.shape == (*input.shape[:-1], classes, *places):
        raise Skip("rows for labels are as large as the logits, which the fused head is to avoid")
    if linear_bias is not None:
        input = jnp.concatenate([input, jnp.ones((*input.shape[:-1], 1))], -1)
        linear_weight = jnp.concatenate([linear_weight, linear_bias[..., None]], -1)
    op = mb.ops.linear_cross_entropy(
        gradients="backward" if places or reduction == "none" else "forward",
        chunk=3 if options is None else options.batch_chunk_size,
        ignored=-100 if ignore_index is None else ignore_index,
        label_smoothing=label_smoothing,
        weights=weight is not None,
        reduction="none" if places else reduction,
    )
    weights = () if weight is None else (weight[target],)
    if not places:
        return op(input, linear_weight, target, *weights)
    heads = linear_weight.reshape(classes, -1, input.shape[-1])
    of_each = [x.reshape(input.shape[0], -1) for x in (target, *weights)]
    cost = jax.vmap(op, (None, 1) + (1,) * len(of_each), 1)(input, heads, *of_each).reshape(target.shape)
    whole = jnp.sum(jnp.where(target == ignore_index, 0, *weights or (1,)))
    return {"none": cost, "sum": jnp.sum(cost), "mean": jnp.sum(cost) / whole}[reduction]


def nn_functional_kl_div(input, target, reduction="mean", log_target=False):
    """Ours is summed over the last axis: for entry by entry, each gets an axis of its own."""
    op = mb.ops.kl_divergence(log_target=log_target, reduction="sum" if reduction == "batchmean" else reduction)
    cost = op(input[..., None], target[..., None])
    return cost / input.shape[0] if reduction == "batchmean" else cost


def nn_functional_cosine_similarity(x1, x2, dim=1, eps=1e-8):
    if x1.ndim == x2.ndim == 0:
        x1, x2 = x1[None], x2[None]
    return mb.ops.cosine_similarity(axis=dim, eps=eps)(x1, x2)


def nn_functional_cosine_embedding_loss(input1, input2, target, margin=0.0, reduction="mean"):
    similarity = mb.ops.cosine_similarity(eps=1e-6)(input1, input2)
    cost = jnp.where(target == 1, 1 - similarity, 0) + jnp.where(target == -1, jax.nn.relu(similarity - margin), 0)
    return {"mean": jnp.mean, "sum": jnp.sum, "none": lambda cost: cost}[reduction](cost)
