"""The head of a language model and its cost in one: the logits of all tokens never exist at once.

For each token with activations h and the label y, one row wₖ of the weight for each of the K classes:

    uₖ = h · wₖ,    zₖ = uₖ, or softcap · tanh(uₖ / softcap),    c = -Σₖ tₖ ln pₖ + ζ l²,    ln pₖ = zₖ - l

l = ln Σₖ e^zₖ,  tₖ = (1 - ε) [k = y] + ε / K  with ε the label smoothing and ζ the z-loss. As in
`softmax_cross_entropy.py`, and by tanh′ = 1 - tanh²,

    duₖ = dc · ((1 + 2 ζ l) pₖ - tₖ) · (1 - (zₖ / softcap)²)
    dh = Σₖ duₖ wₖ,    dwₖ = Σ duₖ h        (Σ over the tokens)

There are two ways to have no more than a slice of z, both a `lax.scan`:

gradients="forward": `chunk` tokens at a time, all classes. A slice holds whole softmaxes, so its dh and dw can be had
at once, for dC = 1; the backward pass only multiplies them. Three matrix products, as many as without slices.

gradients="backward": `chunk` classes at a time, all tokens. e^l is summed up from slice to slice, times e^(m - m′) when
the largest entry so far grows from m to m′; the backward pass computes each slice again. Four products.

A last slice that would not be whole starts earlier instead: what it shares with the one before is computed twice and
counted once.

Sources: gradients in the forward pass, Hsu et al. 2024 (Liger Kernel, arXiv:2410.10989); slices of the vocabulary,
Wijmans et al. 2024 (Cut Cross-Entropy, arXiv:2411.09009); softcap, Gemma Team 2024 (arXiv:2408.00118).
Saved: forward, dh and dw; backward, the arguments and two numbers a token, m and Σ e^(z - m).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from manual_backprop.contract import op
from manual_backprop.errors import InputError, want_count
from manual_backprop.ops.arrays import Spec, is_float, spec, want_float, want_shape, wide, wide_dtype
from manual_backprop.ops.costs import head_by_classes, head_by_tokens
from manual_backprop.ops.costs.head import Head, over_largest
from manual_backprop.ops.costs.labels import class_index, from_zero, signed, want_classes, want_smoothing
from manual_backprop.ops.costs.reduction import (
    Reduction,
    dcosts,
    dweights,
    reduce,
    unless_masked,
    want_items,
)
from manual_backprop.options import want_positive


class Gradients(NamedTuple):
    """The cotangents for dC = 1, two of them over the largest dc; of the arguments only shapes and dtypes."""

    dhidden: jax.Array  # [tokens, d]
    dweight: jax.Array  # [classes, d]
    largest: jax.Array  # a number
    dweights: jax.Array | None  # [tokens, 1], where there are numbers for weights
    specs: tuple[Spec, Spec, Spec | None]  # of hidden, weight and weights


class Residuals(NamedTuple):
    hidden: jax.Array  # [..., d]
    weight: jax.Array  # [classes, d]
    labels: jax.Array  # [...], integers
    weights: jax.Array | None  # [...]
    m: jax.Array  # [tokens, 1]
    total: jax.Array  # [tokens, 1]
    costs: jax.Array | None  # [tokens, 1], where there are weights


@op
def linear_cross_entropy(
    *,
    gradients: Literal["forward", "backward"] = "forward",
    chunk: int = 1024,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignored: int | None = None,
    softcap: float | None = None,
    weights: bool = False,
    reduction: Reduction = "mean",
):
    """hidden [..., d], weight [classes, d] as an embedding's table, labels [...] (, weights [...]) → C.

    It is `softmax_cross_entropy` of hidden weightᵀ, with the same options. A slice is `chunk` tokens, or with
    gradients="backward" `chunk` classes. Sums are in at least float32, and du is rounded to the dtype of the arguments,
    as a multiple of the largest dc. Before the backward pass dC is not known token by token, so `reduction="none"`
    wants gradients="backward".

    Raises InputError for shapes that do not fit, labels that are no integers, an empty batch, options out of range, and
    for a label outside 0 … classes - 1 in an eager call; inside jit it does as `softmax_cross_entropy`.
    """
    name = "linear_cross_entropy"
    want_smoothing(name, label_smoothing)
    chunk = want_count(f"{name}: chunk", chunk)
    want_positive(name, softcap=softcap)
    if gradients == "forward" and reduction == "none":
        raise InputError(f"{name}: reduction 'none' wants gradients='backward'")
    head = Head(label_smoothing, z_loss, softcap)

    def forward_with_gradients(hidden, weight, labels, weights):
        check(hidden, weight, labels, ignored, reduction, weights)
        h, index, w = flat(hidden, weight, labels, weights)
        dc = jnp.broadcast_to(dcosts(reduction, jnp.ones((), wide_dtype(h.dtype)), labels.size, w), index.shape)
        dc, largest = over_largest(dc)
        c, dhidden, dweight = head_by_tokens.forward(head, chunk, h, index, weight, dc, w)
        dw = None if weights is None else of_weights(1.0, c, w, labels)
        specs = spec(hidden), spec(weight), None if weights is None else spec(weights)
        return reduce(reduction, c, w), Gradients(dhidden, dweight, largest, dw, specs)

    def backward_from_gradients(residuals, dy):
        dhidden, dweight, largest, dw, (hidden, weight, weights) = residuals
        dhidden = (dy * largest * dhidden).reshape(hidden.shape).astype(hidden.dtype)
        cotangents = dhidden, (dy * largest * dweight).astype(weight.dtype), None
        if weights is None:
            return cotangents
        return *cotangents, None if dw is None else (dy * dw).reshape(weights.shape).astype(weights.dtype)

    def forward(hidden, weight, labels, weights):
        check(hidden, weight, labels, ignored, reduction, weights)
        h, index, w = flat(hidden, weight, labels, weights)
        c, m, total = head_by_classes.forward(head, chunk, h, index, weight)
        C = reduce(reduction, c, w)
        C = C.reshape(labels.shape) if reduction == "none" else C
        return C, Residuals(hidden, weight, labels, weights, m, total, None if weights is None else c)

    def backward(residuals, dy):
        hidden, weight, labels, weights, m, total, c = residuals
        h, index, w = flat(hidden, weight, labels, weights)
        dC = dy.reshape(index.shape) if reduction == "none" else dy
        dc = dcosts(reduction, dC, labels.size, w)
        dhidden, dweight = head_by_classes.backward(head, chunk, h, index, weight, m, total, dc, w)
        cotangents = dhidden.reshape(hidden.shape).astype(hidden.dtype), dweight, None
        if weights is None:
            return cotangents
        dw = of_weights(dC, c, w, labels)
        return *cotangents, None if dw is None else dw.reshape(weights.shape).astype(weights.dtype)

    def of_weights(dC, c, w, labels):
        """dweights [tokens, 1]: what is ignored has the weight 0, whatever its own."""
        dw = dweights(reduction, dC, c, wide(w) if is_float(w) else w)
        return dw if dw is None or ignored is None else jnp.where(signed(labels).reshape(-1, 1) == ignored, 0, dw)

    def flat(hidden, weight, labels, weights) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """One token a row: h [tokens, d], the class of each [tokens, 1], and its weight [tokens, 1]."""
        h = hidden.reshape(labels.size, hidden.shape[-1])
        index = from_zero(class_index(labels, ignored), weight.shape[0]).reshape(-1, 1)
        w = None if weights is None else weights.reshape(-1, 1)
        if ignored is not None:
            valid = signed(labels).reshape(-1, 1) != ignored
            w = valid if w is None else jnp.where(valid, w, 0)
        return unless_masked(h, w), index, w

    run, back = (forward_with_gradients, backward_from_gradients) if gradients == "forward" else (forward, backward)
    return (run if weights else lambda hidden, weight, labels: run(hidden, weight, labels, None)), back


def check(hidden, weight, labels, ignored, reduction, weights) -> None:
    name = "linear_cross_entropy"
    want_float(name, hidden=hidden, weight=weight)
    if weight.ndim != 2 or weight.shape[0] == 0:
        raise InputError(f"{name}: weight has shape {weight.shape}; wants [classes, d], at least one class")
    if hidden.ndim == 0 or hidden.shape[-1] != weight.shape[1]:
        shapes = f"hidden has shape {hidden.shape}, weight {weight.shape}"
        raise InputError(f"{name}: {shapes}; hidden's last axis must be {weight.shape[1]}")
    want_shape(name, hidden.shape[:-1], "as hidden without its last axis", labels=labels)
    want_items(name, reduction, hidden, labels.shape, weights)
    want_classes(name, labels, weight.shape[0], ignored, weights)
