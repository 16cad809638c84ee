"""The gate of a mixture of experts: each token is sent to the k experts of the largest logits, with weights.

z are a token's logits, K its k chosen experts, p = softmax(z) over all E experts. The gates g are 0 off K, and on it

    `renormalise`:   gₑ = e^zₑ / Σ_(j∈K) e^zⱼ        (Shazeer et al. 2017, arXiv:1701.06538, eq. 3; Mixtral)
    else:            gₑ = pₑ                         (Switch Transformer, Fedus et al. 2021, arXiv:2101.03961, eq. 2)

So that no expert is left idle, the load-balancing cost, for T tokens (Fedus et al., eqs. 4-6, there with k = 1):

    B = E Σₑ fₑ Pₑ,    fₑ = the share of the T k choices that fell on e,    Pₑ = 1/T Σ p over the tokens

which is 1 when all experts are used alike. The choice is discrete: K and f have no derivative, P has. A softmax takes a
cotangent u to p · (u - Σ p u); with c = dB · E f / T, which reaches every p of an expert, and dg the gates' cotangent,

    `renormalise`:   dz = g · (dg - Σ g dg) + p · (c - Σ p c)
    else:            dz = p · (u - Σ p u),    u = c + (dg on K, else 0)

Saved: the logits, and one byte an expert for K; p and g are computed again from one exponential, which both share.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.contract import op
from manual_backprop.errors import InputError, want_count
from manual_backprop.ops.arrays import want_examples, want_float, wide


class Residuals(NamedTuple):
    logits: jax.Array  # [..., experts]
    chosen: jax.Array  # [..., experts], bool


@op
def top_k_gate(*, k: int, renormalise: bool = True):
    """logits [..., experts] → (gates [..., experts], 0 off the k chosen; B, a scalar in at least float32).

    Ties go to the lower index, as with `jax.lax.top_k`, which also gives the indices: `lax.top_k(gates, k)`.
    Raises InputError for fewer than k experts, and for no tokens. Derivation: the module.
    """
    k = want_count("top_k_gate: k", k)

    def forward(logits):
        check(logits, k)
        chosen = largest(logits, k)
        p, g = softmaxes(logits, chosen)
        f, P = shares(chosen, k, p.dtype), jnp.mean(p, tokens(p))
        return (g.astype(logits.dtype), logits.shape[-1] * jnp.sum(f * P)), Residuals(logits, chosen)

    def backward(residuals, dy):
        logits, chosen = residuals
        dg, dB = wide(dy[0]), dy[1]
        p, g = softmaxes(logits, chosen)
        T = logits.size // logits.shape[-1]
        c = dB * logits.shape[-1] * shares(chosen, k, p.dtype) / T
        if renormalise:
            dz = through_softmax(g, dg) + through_softmax(p, c)
        else:
            dz = through_softmax(p, c + jnp.where(chosen, dg, 0))
        return (dz.astype(logits.dtype),)

    def softmaxes(logits, chosen):
        """p and g. The largest logit is always chosen, so one exponential serves both."""
        z = wide(logits)
        e = jnp.exp(z - jnp.max(z, -1, keepdims=True))
        p = e / jnp.sum(e, -1, keepdims=True)
        if not renormalise:
            return p, jnp.where(chosen, p, 0)
        e = jnp.where(chosen, e, 0)
        return p, e / jnp.sum(e, -1, keepdims=True)

    return forward, backward


def largest(logits, k: int) -> jax.Array:
    """Which k logits are the largest, ties to the lower index."""
    _, indices = lax.top_k(logits, k)
    return jnp.any(indices[..., None] == jnp.arange(logits.shape[-1]), -2)


def tokens(x) -> tuple[int, ...]:
    """The axes that count tokens: all but the last."""
    return tuple(range(x.ndim - 1))


def shares(chosen, k: int, dtype) -> jax.Array:
    """f: for each expert its share of the choices."""
    T = chosen.size // chosen.shape[-1]
    return jnp.sum(chosen, tokens(chosen), dtype=dtype) / (T * k)


def through_softmax(p, u) -> jax.Array:
    return p * (u - jnp.sum(p * u, -1, keepdims=True))


def check(logits, k: int) -> None:
    want_float("top_k_gate", logits=logits)
    if logits.ndim == 0 or logits.shape[-1] < k:
        raise InputError(f"top_k_gate: logits have shape {logits.shape}; wants a last axis of at least k = {k} experts")
    want_examples("top_k_gate", logits)
