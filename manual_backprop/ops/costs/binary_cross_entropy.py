"""Binary cross-entropy from the logit: the cost of a yes or no, t of which is yes, for each entry alone.

    c = -P t ln σ(z) - (1 - t) ln(1 - σ(z)),    σ(z) = 1 / (1 + e⁻ᶻ)

z is the logit, t the target in 0 … 1, P the positive weight: what a yes counts for, 1 unless given. No logarithm is
taken of a rounded σ: with z = z⁺ - z⁻, z⁺ = max(z, 0), z⁻ = -min(z, 0), and s = ln(1 + e⁻|ᶻ|), which never overflows,
-ln σ(z) = z⁻ + s and -ln(1 - σ(z)) = z⁺ + s. So without a difference of large numbers

    c = (1 - t) (z⁺ + s) + P t (z⁻ + s)
    dz = dc · ((1 - t) σ(z) - P t σ(-z)),    dt = -dc · (z⁺ - P z⁻ + (1 - P) s),    dP = Σ dc · t (z⁻ + s)

and for P = 1 dt = -dc · z.

Source: Cox 1958, "The regression analysis of binary sequences".
Saved: the arguments, nothing new.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.contract import op
from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import is_float, sum_to, want_float, want_real, want_shape, wide
from manual_backprop.ops.costs.reduction import (
    Reduction,
    dcosts,
    dweights,
    reduce,
    share,
    unless_masked,
    want_items,
    want_range,
)


class Residuals(NamedTuple):
    logits: jax.Array  # [...]
    target: jax.Array  # [...]
    positive_weight: jax.Array | None  # broadcasts to [...]
    weights: jax.Array | None  # [...]


@op
def binary_cross_entropy(*, reduction: Reduction = "mean", positive_weight: bool = False, weights: bool = False):
    """logits [...], target [...] (, positive_weight) (, weights [...]) → C, the mean over every entry.

    `positive_weight=True` takes P as the third argument, of a shape that broadcasts to the logits', such as one for
    each class. The reductions and the weights: `reduction.py`.
    Raises InputError for shapes that do not fit, for a target outside 0 … 1 in an eager call, and for no entries.
    """

    def forward(logits, target, positive_weight, weights):
        check(logits, target, reduction, positive_weight, weights)
        c = costs(wide(logits), wide(target), 1 if positive_weight is None else wide(positive_weight))
        return reduce(reduction, c, weights), Residuals(logits, target, positive_weight, weights)

    def backward(residuals, dy):
        logits, target, positive, w = residuals
        z, t = (unless_masked(wide(x), w) for x in (logits, target))
        P = 1 if positive is None else wide(positive)
        dc = dcosts(reduction, dy, logits.size, w)
        dz = share(dc, (1 - t) * lax.logistic(z) - P * t * lax.logistic(-z))
        above, below, s = parts(z)
        dt = -share(dc, z if positive is None else above - P * below + (1 - P) * s)
        cotangents = [dz.astype(logits.dtype), dt.astype(target.dtype) if is_float(target) else None]
        if positive is not None:
            dP = sum_to(jnp.broadcast_to(share(dc, t * (below + s)), logits.shape), positive.shape)
            cotangents.append(dP.astype(positive.dtype))
        if w is not None:
            cotangents.append(dweights(reduction, dy, costs(z, t, P), w))
        return tuple(cotangents)

    forwards = {
        (False, False): lambda logits, target: forward(logits, target, None, None),
        (False, True): lambda logits, target, weights: forward(logits, target, None, weights),
        (True, False): lambda logits, target, positive_weight: forward(logits, target, positive_weight, None),
        (True, True): forward,
    }
    return forwards[bool(positive_weight), bool(weights)], backward


def costs(z, t, P) -> jax.Array:
    """c."""
    above, below, s = parts(z)
    return (1 - t) * (above + s) + P * t * (below + s)


def parts(z) -> tuple[jax.Array, jax.Array, jax.Array]:
    """z⁺, z⁻ and s."""
    return jnp.maximum(z, 0), -jnp.minimum(z, 0), jnp.log1p(jnp.exp(-jnp.abs(z)))


def check(logits, target, reduction: str, positive_weight, weights) -> None:
    want_float("binary_cross_entropy", logits=logits)
    want_real("binary_cross_entropy", target=target)
    want_shape("binary_cross_entropy", logits.shape, "as logits", target=target)
    want_items("binary_cross_entropy", reduction, logits, logits.shape, weights)
    want_range("binary_cross_entropy", "target", target, 0, 1, weights)
    if positive_weight is None:
        return
    want_float("binary_cross_entropy", positive_weight=positive_weight)
    sizes = zip(positive_weight.shape[::-1], logits.shape[::-1], strict=False)
    if positive_weight.ndim > logits.ndim or any(size not in (1, whole) for size, whole in sizes):
        shape = positive_weight.shape
        raise InputError(
            f"binary_cross_entropy: positive_weight has shape {shape}, logits {logits.shape}; it must broadcast to them"
        )
