"""Gaussian error linear unit (Hendrycks & Gimpel 2016, arXiv:1606.08415).

    y = x Φ(x),   Φ the distribution function of the normal distribution

    exactly:              Φ = ½ erfc(-x/√2),   Φ′ = e^(-x²/2) / √(2π)
    `approximate=True`:   Φ = ½ (1 + t),  t = tanh u,  u = √(2/π) (x + 0.044715 x³),   Φ′ = ½ (1 - t²) u′

    dx = dy · (Φ + x Φ′)

x² in u and u′ is cut at 625: beyond x = ±25 t is ±1 to the last bit, so 1 - t² is 0, and 0 · ∞ would be NaN.
Saved: x, since y takes values twice.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import lax

from manual_backprop.contract import op
from manual_backprop.ops.activations.rules import from_input


@op
def gelu(*, approximate: bool = True):
    """y = x Φ(x), elementwise; `approximate=False` is exact.  dx = dy · (Φ + x Φ′).  Saved: x.  (2016; the module.)"""

    def derivative(x):
        phi, dphi = normal_distribution(x, approximate)
        return phi + x * dphi

    return from_input("gelu", lambda x: x * normal_distribution(x, approximate)[0], derivative)


def normal_distribution(x, approximate: bool):
    """Φ(x) and Φ′(x)."""
    if not approximate:
        return 0.5 * lax.erfc(-x * math.sqrt(0.5)), jnp.exp(-0.5 * x * x) * math.sqrt(0.5 / math.pi)
    square = jnp.minimum(x * x, 625)
    t = jnp.tanh(math.sqrt(2 / math.pi) * x * (1 + 0.044715 * square))
    du = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * square)
    return 0.5 * (1 + t), 0.5 * (1 - t) * (1 + t) * du
