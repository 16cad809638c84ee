"""Rotary position embedding (Su 2021, arXiv:2104.09864, eq. 34): a head's entries, two by two, turned by the position.

Pair i of the R entries that turn, at position m, stands for a complex number, and is turned by the angle m θᵢ:

    y = x · e^(i m θ),    θᵢ = base^(-2 i / R):    y₁ = x₁ cos mθ - x₂ sin mθ,    y₂ = x₂ cos mθ + x₁ sin mθ

so a product of a query with a key depends on the distance of their positions alone. The transpose of a rotation is the
rotation back:

    dx = dy · e^(-i m θ):    dx₁ = dy₁ cos mθ + dy₂ sin mθ,    dx₂ = dy₂ cos mθ - dy₁ sin mθ

Saved: cos mθ and sin mθ, which all heads share; x is not needed. To make them again from the positions would take less
memory and, measured in a scan, 1.8 times as long.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from manual_backprop.contract import op
from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import want_float, wide, wide_dtype
from manual_backprop.options import want_fraction, want_positive


class Residuals(NamedTuple):
    cos: jax.Array  # [..., T, 1, R / 2], or 1 along leading axes that share their positions
    sin: jax.Array


@op
def rotary_embedding(*, base: float = 10000.0, interleaved: bool = False, fraction: float = 1.0):
    """x [..., T, N, H], positions integers that broadcast to [..., T] → y [..., T, N, H].

    interleaved: which entries make a pair: i and i + R / 2 (False; GPT-NeoX, LLaMA in its checkpoints of Hugging Face),
    or 2 i and 2 i + 1 (True; the paper, GPT-J).  fraction: of the entries that turn, the first R = fraction · H.
    Angles are in at least float32. Raises InputError when R is odd or shapes do not fit. Derivation: the module.
    """
    want_positive("rotary_embedding", base=base)
    want_fraction("rotary_embedding", fraction=fraction)

    def turned(x, cos, sin):
        """y, of x and the angles' cos and sin; dx, of dy and those of the angles back."""
        R = 2 * cos.shape[-1]
        turning, rest = wide(x[..., :R]), x[..., R:]
        if interleaved:
            x1, x2 = turning[..., 0::2], turning[..., 1::2]
            y = jnp.stack([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1).reshape(turning.shape)
        else:
            x1, x2 = jnp.split(turning, 2, -1)
            y = jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1)
        return jnp.concatenate([y.astype(x.dtype), rest], -1)

    def forward(x, positions):
        check(x, positions, fraction)
        R, dtype = round(x.shape[-1] * fraction), wide_dtype(x.dtype)
        theta = jnp.asarray(base, dtype) ** (-jnp.arange(0, R, 2, dtype=dtype) / R)
        angle = positions[..., None, None].astype(dtype) * theta  # [..., T, 1, R / 2]
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        return turned(x, cos, sin), Residuals(cos, sin)

    def backward(residuals, dy):
        cos, sin = residuals
        return turned(dy, cos, -sin), None

    return forward, backward


def check(x, positions, fraction: float) -> None:
    want_float("rotary_embedding", x=x)
    if x.ndim < 3:
        raise InputError(f"rotary_embedding: x has shape {x.shape}; wants [..., length, heads, head size]")
    R = round(x.shape[-1] * fraction)
    if R % 2 or not R:
        of = f"{fraction} of a head size of {x.shape[-1]}"
        raise InputError(f"rotary_embedding: {of} is {R} entries to turn; wants an even number, at least 2")
    if not jnp.issubdtype(positions.dtype, jnp.integer):
        raise InputError(f"rotary_embedding: positions are {positions.dtype}; wants integers")
    wants = x.shape[:-2]
    trailing = wants[len(wants) - positions.ndim :]
    if positions.ndim > len(wants) or any(a not in (1, b) for a, b in zip(positions.shape, trailing, strict=True)):
        raise InputError(
            f"rotary_embedding: x has shape {x.shape}, positions {positions.shape}; positions must broadcast to {wants}"
        )
