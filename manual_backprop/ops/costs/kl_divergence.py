"""The Kullback-Leibler divergence of a prediction from a target, both distributions along the last axis.

    c = Σⱼ tⱼ rⱼ,    rⱼ = ln tⱼ - qⱼ,    q = the logarithms of the prediction

q is taken to be normalised already (as `jax.nn.log_softmax` gives it), so each of its entries is a path of its own; so
is each tⱼ, where ∂(t ln t)/∂t = ln t + 1:

    dq = -dc · t,    dt = dc · (r + 1)

With `log_target=True` the target is given as u = ln t, and by the chain rule du = t dt:

    dq = -dc · eᵘ,    du = dc · eᵘ (r + 1)

A target of 0 costs nothing (0 ln 0 = 0), whatever q is there, so r counts as 0; dt is -∞ there, as that of t ln t.
Source: Kullback & Leibler 1951, "On information and sufficiency".
Saved: the arguments, nothing new.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from manual_backprop.contract import op
from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import want_float, want_shape, wide
from manual_backprop.ops.costs.reduction import Reduction, dcosts, dweights, reduce, share, unless_masked, want_items


class Residuals(NamedTuple):
    log_prediction: jax.Array  # [..., outcomes]
    target: jax.Array  # [..., outcomes]
    weights: jax.Array | None  # [...]


@op
def kl_divergence(*, log_target: bool = False, reduction: Reduction = "mean", weights: bool = False):
    """log_prediction [..., outcomes], target [..., outcomes] (, weights [...]) → C, the mean over the distributions.

    An item is a distribution, summed over its outcomes: as `optax.losses.kl_divergence`, and PyTorch's "batchmean".
    The reductions and the weights: `reduction.py`.  Raises InputError for shapes that differ, and for no distributions.
    """

    def forward(log_prediction, target, weights):
        check(log_prediction, target, reduction, weights)
        t, r = shares_and_ratios(log_prediction, target)
        return reduce(reduction, jnp.sum(t * r, -1), weights), Residuals(log_prediction, target, weights)

    def forward_unweighted(log_prediction, target):
        return forward(log_prediction, target, None)

    def backward(residuals, dy):
        log_prediction, target, w = residuals
        t, r = shares_and_ratios(*(unless_masked(x, w) for x in (log_prediction, target)))
        dc = dcosts(reduction, dy, math.prod(t.shape[:-1]), w)[..., None]
        dq = -share(dc, t)
        dtarget = share(dc, t * (r + 1) if log_target else jnp.where(t == 0, -jnp.inf, r + 1))
        cotangents = dq.astype(log_prediction.dtype), dtarget.astype(target.dtype)
        return cotangents if w is None else (*cotangents, dweights(reduction, dy, jnp.sum(t * r, -1), w))

    def shares_and_ratios(log_prediction, target) -> tuple[jax.Array, jax.Array]:
        """t and r."""
        t = jnp.exp(wide(target)) if log_target else wide(target)
        ln_t = wide(target) if log_target else jnp.log(jnp.where(t == 0, 1, t))
        return t, jnp.where(t == 0, 0, ln_t - wide(log_prediction))

    return (forward if weights else forward_unweighted), backward


def check(log_prediction, target, reduction: str, weights) -> None:
    want_float("kl_divergence", log_prediction=log_prediction, target=target)
    want_shape("kl_divergence", log_prediction.shape, "as log_prediction", target=target)
    if log_prediction.ndim == 0:
        raise InputError("kl_divergence: log_prediction has shape (); wants [..., outcomes]")
    want_items("kl_divergence", reduction, log_prediction, log_prediction.shape[:-1], weights)
