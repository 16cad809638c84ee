"""The Kullback-Leibler divergence of a Gaussian of independent entries from the standard one.

With the mean μ and the logarithm of the variance v = ln σ² of each entry, the integrals of ln N are sums:

    c = KL(N(μ, σ²) ‖ N(0, 1)) = ½ Σⱼ (μⱼ² + e^vⱼ - 1 - vⱼ)

Each entry is a path of its own, so with dc from `reduction.py`

    dμ = dc · μ,    dv = dc · ½ (eᵛ - 1)

c is 0 for μ = 0 and v = 0, and positive elsewhere; eᵛ - 1 is `expm1`, which keeps its digits where v is small.
Source: Kingma & Welling 2014, arXiv:1312.6114, appendix B.
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
from manual_backprop.ops.costs.reduction import Reduction, dcosts, dweights, reduce, unless_masked, want_items


class Residuals(NamedTuple):
    mean: jax.Array  # [..., entries]
    log_variance: jax.Array  # [..., entries]
    weights: jax.Array | None  # [...]


@op
def gaussian_kl(*, reduction: Reduction = "mean", weights: bool = False):
    """mean [..., entries], log_variance likewise (, weights [...]) → C, the mean over the Gaussians, in nats.

    An item is a Gaussian, summed over its entries.  The reductions and the weights: `reduction.py`.
    Raises InputError for shapes that differ, and for no Gaussians.
    """

    def forward(mean, log_variance, weights):
        check(mean, log_variance, reduction, weights)
        c = costs(wide(mean), wide(log_variance))
        return reduce(reduction, c, weights), Residuals(mean, log_variance, weights)

    def forward_unweighted(mean, log_variance):
        return forward(mean, log_variance, None)

    def backward(residuals, dy):
        mean, log_variance, w = residuals
        mu, v = (unless_masked(wide(x), w) for x in (mean, log_variance))
        dc = dcosts(reduction, dy, math.prod(mu.shape[:-1]), w)[..., None]
        dmu, dv = dc * mu, dc * jnp.expm1(v) / 2
        cotangents = dmu.astype(mean.dtype), dv.astype(log_variance.dtype)
        return cotangents if w is None else (*cotangents, dweights(reduction, dy, costs(mu, v), w))

    return (forward if weights else forward_unweighted), backward


def costs(mu, v) -> jax.Array:
    """c."""
    return jnp.sum(jnp.square(mu) + (jnp.expm1(v) - v), -1) / 2


def check(mean, log_variance, reduction: str, weights) -> None:
    want_float("gaussian_kl", mean=mean, log_variance=log_variance)
    want_shape("gaussian_kl", mean.shape, "as mean", log_variance=log_variance)
    if mean.ndim == 0:
        raise InputError("gaussian_kl: mean has shape (); wants [..., entries]")
    want_items("gaussian_kl", reduction, mean, mean.shape[:-1], weights)
