"""A sample of a Gaussian, drawn so that the gradient goes through it: the reparameterisation.

A draw has no derivative. But noise ε of the standard normal distribution, drawn apart, makes one that has (Kingma &
Welling 2014, arXiv:1312.6114, section 2.4; Rezende, Mohamed & Wierstra 2014, arXiv:1401.4082). With the mean μ and the
logarithm of the variance v = ln σ², each entry alone:

    z = μ + d,    d = e^(v/2) ε = σ ε

ε is a constant, so z reaches C by two paths, and ∂d/∂v = ½ d:

    dμ = dz,    dv = ½ dz d

Saved: d, one number a sample. It is not z - μ of the rounded z, which is nothing where σ is small beside μ.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from manual_backprop.contract import op
from manual_backprop.errors import want_key
from manual_backprop.ops.arrays import Spec, spec, want_float, want_shape, wide


class Residuals(NamedTuple):
    of_mean: Spec  # [...]
    of_log_variance: Spec  # [...]
    deviation: jax.Array  # [...]: d


@op
def gaussian_sample():
    """mean [...], log_variance [...], key → z [...], with the draws of `jax.random.normal(key, shape, float32)`.

    Saved: z - mean.  Raises InputError for shapes that differ, and for what is no key.  Derivation: the module.
    """

    def forward(mean, log_variance, key):
        check(mean, log_variance, key)
        # Drawn in float32: the same noise whatever the dtype.
        noise = jax.random.normal(key, mean.shape, jnp.float32)
        d = jnp.exp(wide(log_variance) / 2) * noise
        dtype = jnp.result_type(mean, log_variance)
        return (wide(mean) + d).astype(dtype), Residuals(spec(mean), spec(log_variance), d.astype(dtype))

    def backward(residuals, dy):
        mean, log_variance, d = residuals
        dv = wide(dy) * wide(d) / 2
        return dy.astype(mean.dtype), dv.astype(log_variance.dtype), None

    return forward, backward


def check(mean, log_variance, key) -> None:
    want_float("gaussian_sample", mean=mean, log_variance=log_variance)
    want_shape("gaussian_sample", mean.shape, "as mean", log_variance=log_variance)
    want_key("gaussian_sample", key)
