"""The head of a language model and its cost, the classes cut over devices: `linear_cross_entropy` of which no device
has all logits of a token.

Device d of n has K/n rows wₖ of the weight, and of each token with activations h and label y the logits of its classes,
uₖ = h · wₖ and zₖ = uₖ, or softcap · tanh(uₖ / softcap). What a softmax needs of all of them is three numbers a token:

    m = max_d max_k zₖ,    l = m + ln Σ_d Σₖ e^(zₖ - m),    z_y = Σ_d Σₖ [k = y] zₖ    (and with smoothing Σ_d Σₖ zₖ)

each the all-reduce of a number that a device has of its own classes. Then, as in `linear_cross_entropy.py`,

    c = -Σₖ tₖ (zₖ - l) + ζ l²,    duₖ = dc · ((1 + 2 ζ l) pₖ - tₖ) · (1 - (zₖ / softcap)²),    pₖ = e^(zₖ - l)

for its own k alone: dwₖ = Σ duₖ h over the tokens is all there is of it. h has a path through each device's classes:

    dh = Σ_d dh⁽ᵈ⁾,    dh⁽ᵈ⁾ = Σₖ duₖ wₖ over the classes of d

so h is a copy on each device (`copy_to_devices`, or `all_gather` of parts), whose backward pass takes that sum.
As there, `chunk` tokens go at a time, and gradients for dC = 1 are made in the forward pass.

Source: Shoeybi et al. 2019 (Megatron-LM), arXiv:1909.08053, section 3 (the cost fused with the parallel logits).
Saved: dh and dw.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.contract import op
from manual_backprop.errors import InputError, want_count
from manual_backprop.ops.arrays import Spec, spec, want_float, want_shape, wide_dtype
from manual_backprop.ops.collectives.devices import devices
from manual_backprop.ops.costs.head import Head, filled, over_largest, product, put, starts, take
from manual_backprop.ops.costs.labels import class_index, from_zero, signed, want_classes, want_smoothing
from manual_backprop.ops.costs.reduction import dcosts, reduce, unless_masked, want_items
from manual_backprop.options import want_positive


class Gradients(NamedTuple):
    """The cotangents for dC = 1, over the largest dc; of the arguments only shapes and dtypes."""

    dhidden: jax.Array  # [tokens, d]
    dweight: jax.Array  # [classes of a device, d]
    largest: jax.Array  # a number
    specs: tuple[Spec, Spec]  # of hidden and weight


@op
def parallel_cross_entropy(
    *,
    axis: str,
    chunk: int = 1024,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignored: int | None = None,
    softcap: float | None = None,
    reduction: Literal["mean", "sum"] = "mean",
):
    """hidden [..., d], a copy on each device; weight [classes, d], a device's own; labels [...], whole → C, whole.

    Options as of `linear_cross_entropy`, sums in at least float32.
    Raises InputError for an axis that is not there, and as `linear_cross_entropy`.
    """
    name = "parallel_cross_entropy"
    want_smoothing(name, label_smoothing)
    chunk = want_count(f"{name}: chunk", chunk)
    want_positive(name, softcap=softcap)
    head = Head(label_smoothing, z_loss, softcap)

    def forward(hidden, weight, labels):
        classes = check(name, hidden, weight, labels, ignored, reduction, axis)
        h, index, valid = flat(hidden, labels, ignored, classes)
        dc = jnp.broadcast_to(dcosts(reduction, jnp.ones((), wide_dtype(h.dtype)), labels.size, valid), index.shape)
        dc, largest = over_largest(dc)
        c, dhidden, dweight = in_slices(head, chunk, axis, classes, h, index, weight, dc, valid)
        return reduce(reduction, c, valid), Gradients(dhidden, dweight, largest, (spec(hidden), spec(weight)))

    def backward(residuals, dy):
        dhidden, dweight, largest, (hidden, weight) = residuals
        dhidden = (dy * largest * dhidden).reshape(hidden.shape).astype(hidden.dtype)
        return dhidden, (dy * largest * dweight).astype(weight.dtype), None

    return forward, backward


def in_slices(head: Head, chunk: int, axis: str, classes: int, h, index, weight, dc, valid) -> tuple:
    """h [tokens, d], index and dc and valid [tokens, 1], weight [own classes, d] → c [tokens, 1], dh, dweight."""
    length, begins, news = starts(h.shape[0], chunk)
    dtype = wide_dtype(jnp.result_type(h, weight))
    own = lax.axis_index(axis) * len(weight) + jnp.arange(len(weight))

    def step(carry, places):
        c, dh, dweight = carry
        begin, new = places
        x, right, share = take(h, begin, length), take(index, begin, length), take(dc, begin, length)
        is_label = own == right
        z, t = head.logits(x, weight)
        m = lax.pmax(lax.stop_gradient(jnp.max(z, -1, keepdims=True)), axis)  # no path: it cancels
        terms = [jnp.exp(z - m), jnp.where(is_label, z, 0), *([z] if head.label_smoothing else [])]
        sums = lax.psum(jnp.concatenate([jnp.sum(term, -1, keepdims=True) for term in terms], -1), axis)
        total, at_label, everything = sums[:, :1], sums[:, 1:2], sums[:, 2:]
        at_label = jnp.where(right < classes, at_label, jnp.nan)  # a label that no device has
        du = share * head.dlogits(z, t, m, total, is_label, classes)
        if valid is not None:
            du = unless_masked(du, take(valid, begin, length))
        du = du.astype(jnp.result_type(h, weight))
        once = jnp.where(begin + jnp.arange(length)[:, None] >= new, x, 0)
        dweight = dweight + product(du, 0, once, 0)
        costs = head.costs(m, total, at_label, everything / classes)
        return (put(c, costs, begin), put(dh, product(du, 1, weight, 0), begin), dweight), None

    # c is the same on all devices of the axis, so it does not start from what differs there.
    costs = filled(0, (h.shape[0], 1), dtype, index, dc)
    empty = costs, *(filled(0, shape, dtype, h, index, weight, dc, own) for shape in (h.shape, weight.shape))
    return lax.scan(step, empty, (begins, news))[0]


def flat(hidden, labels, ignored: int | None, classes: int) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """One token a row: h [tokens, d], the class of each [tokens, 1], and where labels may be ignored, which count."""
    h = hidden.reshape(labels.size, hidden.shape[-1])
    index = from_zero(class_index(labels, ignored), classes).reshape(-1, 1)
    if ignored is None:
        return h, index, None
    valid = signed(labels).reshape(-1, 1) != ignored
    return unless_masked(h, valid), index, valid


def check(name: str, hidden, weight, labels, ignored, reduction, axis: str) -> int:
    """How many classes there are on all devices."""
    want_float(name, hidden=hidden, weight=weight)
    if weight.ndim != 2 or weight.shape[0] == 0:
        raise InputError(f"{name}: weight has shape {weight.shape}; wants [classes, d], at least one class")
    if hidden.ndim == 0 or hidden.shape[-1] != weight.shape[1]:
        shapes = f"hidden has shape {hidden.shape}, weight {weight.shape}"
        raise InputError(f"{name}: {shapes}; hidden's last axis must be {weight.shape[1]}")
    want_shape(name, hidden.shape[:-1], "as hidden without its last axis", labels=labels)
    want_items(name, reduction, hidden, labels.shape, None)
    classes = devices(name, axis) * weight.shape[0]
    want_classes(name, labels, classes, ignored, None)
    return classes
