"""Softmax and cross-entropy in one: the cost of a classifier from its logits, averaged over the examples.

    C = 1/N Σₙ Cₙ,    Cₙ = -Σⱼ tₙⱼ ln pₙⱼ,    ln pⱼ = (zⱼ - m) - s,    s = ln Σₖ e^(zₖ - m),    m = maxₖ zₖ

z are the logits, t the labels: a distribution over classes, or an integer that stands for a one-hot row.
m takes nothing from p: it keeps e from overflowing, and m + s is never formed, for it would round at the size of z.
zₖ reaches C by its own term and, through m + s, by every term: ∂(m + s)/∂zₖ = pₖ. With dc = dC / N (or what another
reduction makes of it: `reduction.py`) the paths add up to

    dzₖ = dc · (pₖ Σⱼ tⱼ - tₖ),    dtⱼ = -dc · ln pⱼ

Three options change the target or the cost. With ε the `label_smoothing`, vⱼ the weight of a class, K classes:

    tⱼ = vⱼ ((1 - ε) labelⱼ + ε / K)        dlabelⱼ = -dc · vⱼ (1 - ε) ln pⱼ,    dvⱼ = -Σ dc · (tⱼ / vⱼ) ln pⱼ
    Cₙ += ζ (m + s)²,  ζ = `z_loss`         dzₖ += dc · 2 ζ (m + s) pₖ

In the mean an example with an integer label counts for the weight of its class, N = Σₙ v(labelₙ): one more path to v,
through dn of `reduction.py`. An example with the label `ignored` has the weight 0.

Source: Bridle 1990, "Probabilistic interpretation of feedforward classification network outputs"; the smoothing is of
Szegedy et al. 2015, arXiv:1512.00567, the z-loss of Chowdhery et al. 2022, arXiv:2204.02311.
Saved: the arguments and two numbers an example, m and Σₖ e^(zₖ - m); p is recomputed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.contract import op
from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import is_float, want_float, want_real, want_shape, wide, wide_dtype
from manual_backprop.ops.costs.labels import (
    are_classes,
    class_index,
    one_hot,
    signed,
    want_classes,
    want_smoothing,
)
from manual_backprop.ops.costs.reduction import (
    Reduction,
    dcosts,
    dcounts,
    dweights,
    reduce,
    share,
    want_items,
)


class Residuals(NamedTuple):
    logits: jax.Array  # [..., classes]
    labels: jax.Array  # [...] of integers, or [..., classes]
    m: jax.Array  # [..., 1]
    total: jax.Array  # [..., 1]
    class_weights: jax.Array | None  # [classes]
    weights: jax.Array | None  # [...]

    @property
    def s(self) -> jax.Array:
        return jnp.log(self.total)


@op
def softmax_cross_entropy(
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    ignored: int | None = None,
    class_weights: bool = False,
    weights: bool = False,
    reduction: Reduction = "mean",
):
    """logits [..., classes], labels [...] of integers or [..., classes] → C, a scalar in at least float32.

    `class_weights=True` takes class_weights [classes] as the third argument, `weights=True` weights [...] as the last;
    the items of `reduction.py` are the examples. The mean over no examples, where all are `ignored`, is 0.

    Raises InputError for shapes that do not fit, for float labels where integers are due, for an empty batch, for a
    smoothing outside [0, 1), and for a label outside 0 … classes - 1 in an eager call. Inside jit values are not known,
    and indexing is that of `jnp.take_along_axis`: a label beyond the classes makes the cost NaN, a negative one counts
    from the end.
    """
    want_smoothing("softmax_cross_entropy", label_smoothing)

    def forward(logits, labels, class_weights, weights):
        check(logits, labels, ignored, reduction, class_weights, weights)
        w, n = weights_and_counts(logits, labels, class_weights, weights)
        m = lax.stop_gradient(wide(jnp.max(logits, -1, keepdims=True)))
        total = jnp.sum(jnp.exp(shown(m, w)(wide(logits) - m)), -1, keepdims=True)
        residuals = Residuals(logits, labels, m, total, class_weights, weights)
        return reduce(reduction, costs(residuals, w), w, n), residuals

    def backward(residuals, dy):
        logits, labels, m, total, v, weights = residuals
        w, n = weights_and_counts(logits, labels, v, weights)
        dc = dcosts(reduction, dy, m.size, w, n)[..., None]
        show = shown(m, w)
        shifted, label = show(wide(logits) - m), smooth(labels, logits)
        ln_p, p = shifted - residuals.s, jnp.exp(shifted) * (1 / total)
        t = label if v is None else wide(v) * label
        whole = 1 if v is None and are_classes(labels, logits) else jnp.sum(wide(t), -1, keepdims=True)  # Σⱼ tⱼ
        if z_loss:
            whole = whole + 2 * z_loss * (show(m) + residuals.s)
        dz = share(dc, p * whole - t)
        dlabels = None
        if is_float(labels):
            dlabels = -share(dc * (1 - label_smoothing), ln_p if v is None else share(wide(v), ln_p))
            dlabels = dlabels.astype(labels.dtype)
        cotangents = [dz.astype(logits.dtype), dlabels]
        if v is not None:
            leading = tuple(range(logits.ndim - 1))
            dv = -jnp.sum(share(dc, share(label, ln_p)), leading)
            if n is not None:
                dn = dcounts(reduction, dy, costs(residuals, w), w, n)[..., None]
                dv = dv + jnp.sum(dn * one_hot(labels, logits, ignored), leading)
            cotangents.append(dv.astype(v.dtype))
        if weights is not None:
            dw = dweights(reduction, dy, costs(residuals, w), w, n) if is_float(weights) else None
            cotangents.append(dw if ignored is None or dw is None else jnp.where(signed(labels) == ignored, 0, dw))
        return tuple(cotangents)

    def costs(residuals, w) -> jax.Array:
        """Cₙ."""
        logits, labels, m, _, v, _ = residuals
        show, s = shown(m, w), residuals.s
        shifted = show(wide(logits) - m)
        if are_classes(labels, logits):
            index = class_index(labels, ignored)
            c = s - show(wide(jnp.take_along_axis(logits, index, -1, mode="fill")) - m)
            c = c if v is None else share(wide(v).at[index].get(mode="fill"), c)
            if label_smoothing:
                others = s - shifted if v is None else share(wide(v), s - shifted)
                c = (1 - label_smoothing) * c + label_smoothing * jnp.mean(others, -1, keepdims=True)
            c = jnp.squeeze(c, -1)
        else:
            label = smooth(labels, logits)
            c = jnp.sum(share(label if v is None else wide(v) * label, s - shifted), -1)
        return c + z_loss * jnp.squeeze(jnp.square(show(m) + s), -1) if z_loss else c

    def smooth(labels, logits) -> jax.Array:
        """(1 - ε) labelⱼ + ε / K."""
        rows = one_hot(labels, logits, ignored) if are_classes(labels, logits) else labels
        if not label_smoothing:
            return rows
        rows = rows.astype(jnp.result_type(rows, wide_dtype(logits.dtype)))
        return (1 - label_smoothing) * rows + label_smoothing / logits.shape[-1]

    def weights_and_counts(logits, labels, v, w) -> tuple[jax.Array | None, jax.Array | None]:
        """w and n of `reduction.py`: an ignored label weighs 0, an integer one counts for the weight of its class."""
        if ignored is not None:
            valid = signed(labels) != ignored
            w = valid if w is None else jnp.where(valid, w, 0)
        by_class = v is not None and are_classes(labels, logits)
        return w, wide(v)[jnp.squeeze(class_index(labels, ignored), -1)] if by_class else None

    forwards = {
        (False, False): lambda logits, labels: forward(logits, labels, None, None),
        (False, True): lambda logits, labels, weights: forward(logits, labels, None, weights),
        (True, False): lambda logits, labels, class_weights: forward(logits, labels, class_weights, None),
        (True, True): forward,
    }
    return forwards[bool(class_weights), bool(weights)], backward


def shown(m, w) -> Callable:
    """Makes zeros of the rows that have no weight and whose largest logit is no number."""
    if w is None:
        return lambda x: x
    hidden = (w == 0)[..., None] & ~jnp.isfinite(m)
    return lambda x: jnp.where(hidden, 0, x)


def check(logits, labels, ignored, reduction, class_weights, weights) -> None:
    name = "softmax_cross_entropy"
    want_float(name, logits=logits)
    want_real(name, labels=labels)
    if logits.ndim == 0 or labels.shape not in (logits.shape[:-1], logits.shape):
        raise InputError(
            f"{name}: logits have shape {logits.shape}, labels {labels.shape}; "
            f"wants labels {logits.shape[:-1]} of integers, or {logits.shape}"
        )
    want_items(name, reduction, logits, logits.shape[:-1], weights)
    if logits.shape[-1] == 0:
        raise InputError(f"{name}: logits have shape {logits.shape}; wants at least one class")
    if class_weights is not None:
        want_float(name, class_weights=class_weights)
        want_shape(name, logits.shape[-1:], "one for each class", class_weights=class_weights)
    if are_classes(labels, logits):
        want_classes(name, labels, logits.shape[-1], ignored, weights)
    elif ignored is not None:
        raise InputError(f"{name}: labels are rows, of shape {labels.shape}; wants integers, for ignored={ignored}")
