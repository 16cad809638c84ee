"""Attention: the references are flax's, with the keys repeated for a group of heads, and the formula written out."""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import manual_backprop as mb
from cases.case import Case, Draw, exactly, key_from, normal


def band(T: int, S: int, low: float = -math.inf, high: float = math.inf) -> np.ndarray:
    """Which keys j a query i may attend to: low ≤ j - i ≤ high."""
    distance = np.arange(S)[None, :] - np.arange(T)[:, None]
    return (low <= distance) & (distance <= high)


def causal(T, S):
    return band(T, S, high=0)


def causal_from_the_end(T, S):
    return band(T, S, high=S - T)


def repeated(q, k):
    return jnp.repeat(k, q.shape[-2] // k.shape[-2], axis=-2)


def flax_attention(allowed: Callable = band) -> Callable:
    """allowed(T, S): the mask. Further arguments: a mask, a bias."""

    def reference(q, k, v, mask=True, bias=None):
        both = mask & allowed(q.shape[-3], k.shape[-3])
        both = jnp.broadcast_to(both, (*q.shape[:-3], q.shape[-2], *both.shape[-2:]))
        return nn.dot_product_attention(q, repeated(q, k), repeated(q, v), bias, both)

    return reference


def formula(allowed: Callable = band, scale=None, softcap=None, lse=False, keep: Callable | None = None) -> Callable:
    """y = p v. keep(key, shape of p): the probabilities that are kept, over the part of them that is."""

    def reference(q, k, v, mask=True, bias=0.0, key=None):
        wide = jnp.promote_types(q.dtype, jnp.float32)
        s = jnp.einsum("...tnh,...snh->...nts", q, repeated(q, k)) * (
            1 / math.sqrt(q.shape[-1]) if scale is None else scale
        )
        s = s.astype(wide) if softcap is None else softcap * jnp.tanh(s.astype(wide) / softcap)
        both = jnp.broadcast_to(mask & allowed(*s.shape[-2:]), s.shape)
        s = jnp.where(both, s + bias, -1e30)
        some = both.any(-1)
        p = jnp.where(some[..., None], jax.nn.softmax(s), 0)
        if keep is not None:
            p = p * keep(key, p.shape)
        y = jnp.einsum("...nts,...snh->...tnh", p.astype(v.dtype), repeated(q, v))
        total = jnp.where(some, jax.nn.logsumexp(s, -1), -jnp.inf)
        return (y, jnp.swapaxes(total, -1, -2)) if lse else y

    return reference


def keep_all(probability: float) -> Callable:
    return lambda key, shape: jax.random.bernoulli(key, probability, shape) / probability


def keep_by_chunk(probability: float, chunk: int, keys: Callable) -> Callable:
    """keys(c): how many keys the chunk c reaches."""

    def keep(key, shape):
        *leading, T, S = shape
        parts = []
        for c in range(-(-T // chunk)):
            size = (*leading, min(chunk, T - c * chunk), keys(c))
            part = jax.random.bernoulli(jax.random.fold_in(key, c), probability, size)
            parts.append(jnp.pad(part, [(0, 0)] * (len(shape) - 1) + [(0, S - keys(c))]))
        return jnp.concatenate(parts, -2) / probability

    return keep


def qkv(T: int, S: int, N: int, K: int, H: int, leading=(), Hv: int | None = None) -> tuple:
    return (*leading, T, N, H), (*leading, S, K, H), (*leading, S, K, Hv or H)


def further(*shapes, mask=None, bias=None, key=False) -> Draw:
    """q, k, v, and what is asked for of a mask, a bias, a key."""

    def draw(rng):
        args = normal(*shapes)(rng)
        if mask is not None:
            args += (rng.uniform(size=mask) < 0.7,)
        if bias is not None:
            args += (rng.standard_normal(bias),)
        return (*args, key_from(rng)) if key else args

    return draw


# ── positions ────────────────────────────────────────────────────────────────────────────────────────────────────────


def rotated(base: float, x, positions):
    """As the model codes write it: the halves of a head turned by angles. (Gemma, `apply_rope`.)"""
    H = x.shape[-1]
    timescale = base ** (2 * jnp.arange(H // 2) / H)
    angle = (positions[..., None] / timescale)[..., None, :].astype(jnp.promote_types(x.dtype, jnp.float32))
    first, second = jnp.split(x, 2, axis=-1)
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)


def turned(base: float, R: int) -> Callable:
    """As complex numbers, of neighbouring entries, the first R of a head."""

    def reference(x, positions):
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        pairs = wide[..., :R].reshape(*x.shape[:-1], R // 2, 2)
        angle = positions[..., None, None] * base ** (-2 * jnp.arange(R // 2) / R)
        z = jax.lax.complex(pairs[..., 0], pairs[..., 1]) * jnp.exp(1j * angle).astype(
            jnp.promote_types(wide.dtype, jnp.complex64)
        )
        y = jnp.stack([z.real, z.imag], -1).reshape(*x.shape[:-1], R)
        return jnp.concatenate([y, wide[..., R:]], -1).astype(x.dtype)

    return reference


def with_positions(shape, positions=None) -> Draw:
    """Positions anywhere up to a thousand."""
    return lambda rng: (rng.standard_normal(shape), rng.integers(0, 1000, positions or shape[:-2]).astype(np.int32))


def slopes(n: int) -> list[float]:
    """As the code of the paper has it."""
    if math.log2(n).is_integer():
        start = 2 ** (-(2 ** -(math.log2(n) - 3)))
        return [start * start**i for i in range(n)]
    closest = 2 ** math.floor(math.log2(n))
    return slopes(closest) + slopes(2 * closest)[0::2][: n - closest]


def biased(x):
    N, T, S = x.shape[-3:]
    bias = np.array(slopes(N))[:, None, None] * (np.arange(S) - np.arange(T)[:, None])
    return (x + bias.astype(np.promote_types(x.dtype, np.float32))).astype(x.dtype)


ATTENTION, CHUNKED = mb.ops.attention, mb.ops.chunked_attention
SHAPES = qkv(5, 7, 3, 3, 11, (2,))
GROUPS = qkv(5, 7, 6, 2, 3, (2,), Hv=11)
LONG = qkv(11, 13, 6, 2, 3, (2,))
LARGE = qkv(256, 256, 4, 4, 64, (2,))
EVERYTHING = {
    "causal": True,
    "softcap": 0.7,
    "scale": 0.9,
    "mask": True,
    "bias": True,
    "keep_probability": 0.8,
    "lse": True,
}

OPS = [
    Case("attention", ATTENTION(), flax_attention(), normal(*SHAPES), normal(*LARGE)),
    Case("attention, causal", ATTENTION(causal=True), flax_attention(causal), normal(*qkv(7, 5, 3, 3, 2))),
    Case(
        "attention, groups, bottom right",
        ATTENTION(causal=True, align="bottom_right"),
        flax_attention(causal_from_the_end),
        normal(*qkv(5, 7, 6, 2, 3, (2, 3), Hv=5)),
    ),
    Case(
        "attention, window, scale",
        ATTENTION(window=(2, 1), scale=0.3),
        formula(lambda T, S: band(T, S, -2, 1), scale=0.3),
        normal(*SHAPES),
    ),
    Case(
        "attention, softcap, lse",
        ATTENTION(softcap=0.7, lse=True),
        formula(softcap=0.7, lse=True),
        normal(*qkv(5, 7, 6, 2, 3, Hv=11)),
    ),
    Case(
        "attention, mask and bias",
        ATTENTION(mask=True, bias=True),
        flax_attention(),
        further(*GROUPS, mask=(2, 1, 5, 7), bias=(6, 1, 7)),
    ),
    Case(
        "attention, everything",
        ATTENTION(**EVERYTHING),
        formula(causal, 0.9, 0.7, True, keep_all(0.8)),
        further(*GROUPS, mask=(1, 7), bias=(2, 6, 5, 7), key=True),
    ),
    Case("chunked_attention, one chunk", CHUNKED(causal=True), flax_attention(causal), normal(*SHAPES), normal(*qkv(1024, 1024, 4, 4, 64))),
    Case("chunked_attention", CHUNKED(chunk=4), flax_attention(), normal(*LONG)),
    Case("chunked_attention, causal", CHUNKED(chunk=2, causal=True), flax_attention(causal), normal(*qkv(11, 13, 3, 3, 5))),
    Case(
        "chunked_attention, bottom right",
        CHUNKED(chunk=2, causal=True, align="bottom_right"),
        flax_attention(causal_from_the_end),
        normal(*qkv(11, 13, 6, 2, 3, (2,), Hv=5)),
    ),
    Case(
        "chunked_attention, window, a bias a key",
        CHUNKED(chunk=2, window=(1, 3), scale=0.3, bias=True),
        lambda q, k, v, bias: formula(lambda T, S: band(T, S, -1, 3), scale=0.3)(q, k, v, bias=bias),
        further(*LONG, bias=(6, 1, 13)),
    ),
    Case(
        "chunked_attention, everything",
        CHUNKED(chunk=4, **EVERYTHING),
        formula(causal, 0.9, 0.7, True, keep_by_chunk(0.8, 4, lambda c: (8, 8, 11)[c])),
        further(*LONG, mask=(11, 13), bias=(2, 6, 11, 13), key=True),
    ),
    Case(
        "rotary_embedding",
        mb.ops.rotary_embedding(),
        lambda x, positions: rotated(10000.0, x, positions),
        with_positions((2, 5, 3, 6)),
        with_positions((4, 512, 8, 64)),
    ),
    Case(
        "rotary_embedding, interleaved",
        mb.ops.rotary_embedding(base=500.0, interleaved=True),
        turned(500.0, 6),
        with_positions((2, 5, 3, 6), (5,)),
    ),
    Case(
        "rotary_embedding, a fraction",
        mb.ops.rotary_embedding(fraction=0.5, interleaved=True),
        turned(10000.0, 4),
        with_positions((5, 3, 8)),
    ),
    Case("alibi", mb.ops.alibi(), biased, normal((2, 4, 5, 7)), normal((4, 8, 256, 256))),
    Case("alibi, heads no power of two", mb.ops.alibi(), biased, normal((11, 5, 7))),
]  # fmt: skip


LAYERS: list[Case] = []

EXTREMES: list[Case] = []

EMPTY: list[Case] = []

drawn = None

MISTAKES: dict = {}
