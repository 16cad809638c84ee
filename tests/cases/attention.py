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
from cases.case import Case, Draw, exactly, key_from, layer_case, normal
from manual_backprop.layers import Rotary


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
        wide = jnp.result_type(q, jnp.float32)
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
        y = jnp.einsum("...nts,...snh->...tnh", p.astype(jnp.result_type(v)), repeated(q, v))
        total = jnp.where(some, jax.nn.logsumexp(s, -1), -jnp.inf)
        return (y, jnp.swapaxes(total, -1, -2)) if lse else y

    return reference


def keep_all(probability: float) -> Callable:
    return lambda key, shape: jax.random.bernoulli(key, jnp.float32(probability), shape) / probability


def keep_by_chunk(probability: float, chunk: int, keys: Callable) -> Callable:
    """keys(c): how many keys the chunk c reaches."""

    def keep(key, shape):
        *leading, T, S = shape
        parts = []
        for c in range(-(-T // chunk)):
            size = (*leading, min(chunk, T - c * chunk), keys(c))
            part = jax.random.bernoulli(jax.random.fold_in(key, c), jnp.float32(probability), size)
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
    x, H = jnp.asarray(x), x.shape[-1]
    timescale = base ** (2 * jnp.arange(H // 2) / H)
    angle = (positions[..., None] / timescale)[..., None, :].astype(jnp.promote_types(x.dtype, jnp.float32))
    first, second = jnp.split(x, 2, axis=-1)
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)


def turned(base: float, R: int) -> Callable:
    """As complex numbers, of neighbouring entries, the first R of a head."""

    def reference(x, positions):
        x = jnp.asarray(x)
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


def far_from_zero(rng):
    """ds is a difference of large numbers."""
    q, k, v = normal(*LONG)(rng)
    return q, k, v + 10


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
        formula(causal, 0.9, 0.7, True, keep_by_chunk(0.8, 4, lambda c: (4, 8, 11)[c])),
        further(*LONG, mask=(11, 13), bias=(2, 6, 11, 13), key=True),
    ),
    Case("chunked_attention, values far from zero", CHUNKED(chunk=4, scale=10.0), formula(scale=10.0), far_from_zero),
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


LAYERS: list[Case] = [
    layer_case(
        "Rotary",
        Rotary(base=500.0),
        lambda p, x: (*(rotated(500.0, each, jnp.arange(5)) for each in x[:2]), x[2]),
        normal((2, 5, 3, 6), (2, 5, 1, 6), (2, 5, 1, 7)),
    ),
]


def far(rng):
    """Scores of ±1e4, and a key that wins by as much."""
    q, k = rng.choice([-1.0, 1.0], (2, 5, 3, 4)), rng.choice([-1.0, 1.0], (2, 7, 3, 4))
    return 50 * q, 50 * k, rng.standard_normal((2, 7, 3, 2))


def masked(mask) -> Draw:
    return lambda rng: (*normal(*qkv(5, 7, 3, 3, 2, (2,)))(rng), np.broadcast_to(mask, (5, 7)))


def identical_keys(rng):
    q, k, v = normal(*SHAPES)(rng)
    return q, np.repeat(k[:, :1], 7, 1), v


def infinite_bias(rng):
    """A whole row, and half of the others."""
    bias = rng.standard_normal((3, 5, 7))
    bias[:, 2], bias[:, :, 1::2] = -np.inf, -np.inf
    return *normal(*qkv(5, 7, 3, 3, 2, (2,)))(rng), bias


def with_infinite_bias(q, k, v, bias):
    return formula()(q, k, v, bias > -jnp.inf, jnp.where(bias > -jnp.inf, bias, 0))


SOME_ROWS = np.array([True, False, True, False, False])[:, None]
# Judged in every precision: finite where the truth is, and right.
EXTREMES: list[Case] = [
    Case(f"{unit.name}, {name}", unit, reference, draw)
    for make in (ATTENTION, lambda **options: CHUNKED(chunk=2, **options))
    for name, unit, reference, draw in (
        ("scores of 1e4", make(scale=1.0), formula(scale=1.0), far),
        ("scores of 1e4, capped", make(scale=1.0, softcap=2.0), formula(scale=1.0, softcap=2.0), far),
        ("rows masked", make(mask=True, lse=True), formula(lse=True), masked(SOME_ROWS)),
        ("all masked", make(mask=True, lse=True), formula(lse=True), masked(False)),
        ("rows before the first key", make(causal=True, align="bottom_right"), formula(causal_from_the_end), normal(*qkv(7, 3, 2, 2, 5))),
        ("no key in the window", make(window=1), formula(lambda T, S: band(T, S, -1, 1)), normal(*qkv(11, 3, 2, 2, 5))),
        ("identical keys", make(), formula(), identical_keys),
        ("an infinite bias", make(bias=True), with_infinite_bias, infinite_bias),
    )
] + [
    Case(
        "rotary_embedding, far positions",
        mb.ops.rotary_embedding(),
        lambda x, positions: rotated(10000.0, x, positions),
        exactly(np.full((3, 1, 2), 1e4), np.array([0, -7, 4099], np.int32)),
    ),
    Case("alibi, large scores", mb.ops.alibi(), biased, exactly(np.full((2, 3, 5), -1e4))),
]  # fmt: skip

# No examples: cotangents of the right shapes, zeros where a sum has no terms.
EMPTY: list[Case] = [
    Case("attention, no examples", ATTENTION(bias=True), lambda q, k, v, b: formula()(q, k, v, bias=b), further(*qkv(5, 7, 3, 3, 5, (0,)), bias=(3, 1, 7))),
    Case("attention, no queries", ATTENTION(causal=True), formula(causal), normal(*qkv(0, 7, 3, 3, 5, (2,)))),
    Case("chunked_attention, no examples", CHUNKED(chunk=2, causal=True), formula(causal), normal(*qkv(5, 7, 3, 3, 5, (0,)))),
    Case("chunked_attention, no queries", CHUNKED(), formula(), normal(*qkv(0, 7, 3, 3, 5, (2,)))),
    Case("rotary_embedding, no examples", mb.ops.rotary_embedding(), OPS[-5].reference, with_positions((0, 5, 3, 6))),
    Case("alibi, no examples", mb.ops.alibi(), biased, normal((0, 4, 5, 7))),
]  # fmt: skip


@st.composite
def drawn(draw) -> Case:
    """Plain or chunked attention, its options and its shapes; or a rotation."""
    T, S, K, G, H, Hv = (draw(st.integers(1, n)) for n in (9, 9, 2, 3, 3, 3))
    leading = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    if draw(st.integers(0, 7)) == 0:
        draws = with_positions((*leading, T, K, 2 * H))
        return Case("rotary_embedding", mb.ops.rotary_embedding(interleaved=True), turned(10000.0, 2 * H), draws)
    options = {
        "causal": draw(st.booleans()),
        "window": draw(st.sampled_from([None, 0, 2, (3, 1), (0, 4)])),
        "align": draw(st.sampled_from(["top_left", "bottom_right"])),
        "softcap": draw(st.sampled_from([None, 0.7])),
        "scale": draw(st.sampled_from([None, -0.3])),
        "lse": draw(st.booleans()),
    }
    left, right = options["window"] if isinstance(options["window"], tuple) else (options["window"],) * 2
    offset = S - T if options["align"] == "bottom_right" else 0
    low = -math.inf if left is None else offset - left
    high = offset if options["causal"] else math.inf if right is None else offset + right
    # A row without a key has lse = -∞, whose cotangent is nothing: the reference says so too.
    names = draw(st.lists(st.sampled_from(["mask", "bias"]), unique=True).map(sorted))
    whole = (*leading, K * G, T, S)
    cut = draw(st.integers(0, len(leading)))
    shapes = {name: tuple(draw(st.sampled_from([1, n])) for n in whole[cut:]) for name in names}
    make = draw(st.sampled_from([ATTENTION, CHUNKED]))
    if make is CHUNKED:
        options["chunk"] = draw(st.integers(1, 5))
    reference = formula(lambda T, S: band(T, S, low, high), options["scale"], options["softcap"], options["lse"])
    return Case(
        "attention",
        make(**options, mask="mask" in names, bias="bias" in names),
        lambda q, k, v, *rest: reference(q, k, v, **dict(zip(("mask", "bias"), in_order(names, rest), strict=True))),
        further(*qkv(T, S, K * G, K, H, leading, Hv), **shapes),
    )


def in_order(names: list[str], rest: tuple) -> tuple:
    given = dict(zip([name for name in ("mask", "bias") if name in names], rest, strict=True))
    return given.get("mask", True), given.get("bias", 0.0)


Q, KV = jnp.ones((2, 5, 6, 3)), jnp.ones((2, 7, 2, 3))
KEY = jax.random.key(0)
POSITIONS = jnp.arange(5)
# What a user gets wrong, and the part of the one line that says so.
MISTAKES: dict = {
    "heads that do not divide": (
        lambda: ATTENTION()(Q, KV[:, :, [0, 1, 0, 1]], KV[:, :, [0, 1, 0, 1]]),
        "attention: q has 6 heads, k and v 4; the query heads must be a multiple of the key heads",
    ),
    "head sizes that differ": (
        lambda: ATTENTION()(Q, KV[..., :2], KV),
        "attention: q has shape (2, 5, 6, 3), k (2, 7, 2, 2); k must be [2, keys, heads, 3]",
    ),
    "batches that differ": (lambda: CHUNKED()(Q, KV[:1], KV[:1]), "chunked_attention: q has shape (2, 5, 6, 3), k (1, 7, 2, 3)"),
    "keys without values": (
        lambda: ATTENTION()(Q, KV, KV[:, :6]),
        "attention: k has shape (2, 7, 2, 3), v (2, 6, 2, 3); v must be [2, 7, 2, head size]",
    ),
    "queries without heads": (lambda: ATTENTION()(Q[0, 0], KV, KV), "q has shape (6, 3); wants [..., length, heads, head size]"),
    "integer queries": (lambda: ATTENTION()(Q.astype(int), KV, KV), "attention: q is int32; wants floating point"),
    "dropout without a key": (
        lambda: ATTENTION(keep_probability=0.5)(Q, KV, KV),
        "attention: got 3 arguments, missing a required argument: 'key'; wants q, k, v, key",
    ),
    "a key without dropout": (lambda: CHUNKED()(Q, KV, KV, KEY), "chunked_attention: got 4 arguments, too many positional arguments; wants q, k, v"),
    "a number for a key": (lambda: ATTENTION(keep_probability=0.5)(Q, KV, KV, 3), "key is int32[]; wants one key, such as jax.random.key(0)"),
    "a mask of numbers": (lambda: ATTENTION(mask=True)(Q, KV, KV, jnp.ones((5, 7))), "attention: mask is float32; wants bool"),
    "a bias of integers": (lambda: ATTENTION(bias=True)(Q, KV, KV, jnp.ones((5, 7), int)), "attention: bias is int32; wants floating point"),
    "a mask of another length": (
        lambda: ATTENTION(mask=True)(Q, KV, KV, jnp.ones((5, 6), bool)),
        "attention: mask has shape (5, 6); must broadcast to (2, 6, 5, 7): [..., heads, T, S]",
    ),
    "a bias with an axis too many": (lambda: CHUNKED(bias=True)(Q, KV, KV, jnp.ones((1, 1, 1, 5, 7))), "bias has shape (1, 1, 1, 5, 7)"),
    "a negative window": (lambda: ATTENTION(window=(2, -1)), "attention: window is -1; wants at least 0"),
    "a window of truth": (lambda: ATTENTION(window=True), "attention: window is True; wants a whole number, a tuple"),
    "a window with one end": (lambda: CHUNKED(window=(None, 2)), "chunked_attention: window is (None, 2); wants a whole number, a tuple"),
    "a batch of keys": (lambda: CHUNKED(keep_probability=0.5)(Q, KV, KV, jax.random.split(KEY)), "chunked_attention: key is key<fry>[2]; wants one key"),
    "floats for a key": (lambda: ATTENTION(keep_probability=0.5)(Q, KV, KV, jnp.ones(2)), "attention: key is float32[2]; wants one key"),
    "a window of three": (lambda: ATTENTION(window=(2, 1, 0)), "attention: window is (2, 1, 0); wants"),
    "an unknown alignment": (lambda: ATTENTION(align="left"), "attention: align is 'left'; wants 'top_left' or 'bottom_right'"),
    "a chunk of nothing": (lambda: CHUNKED(chunk=0), "chunked_attention: chunk is 0; wants a whole number, at least 1"),
    "nothing kept": (lambda: CHUNKED(keep_probability=0.0), "chunked_attention: keep_probability is 0.0; wants above 0, at most 1"),
    "more than all kept": (lambda: ATTENTION(keep_probability=1.5), "attention: keep_probability is 1.5; wants above 0, at most 1"),
    "a cap of zero": (lambda: ATTENTION(softcap=0.0), "attention: softcap is 0.0; wants a number above 0"),
    "an odd head to turn": (
        lambda: mb.ops.rotary_embedding()(Q, POSITIONS),
        "rotary_embedding: 1.0 of a head size of 3 is 3 entries to turn; wants an even number, at least 2",
    ),
    "positions that are no integers": (lambda: mb.ops.rotary_embedding()(Q[..., :2], jnp.ones(5)), "positions are float32; wants integers"),
    "positions of another length": (
        lambda: mb.ops.rotary_embedding()(Q[..., :2], jnp.arange(4)),
        "rotary_embedding: x has shape (2, 5, 6, 2), positions (4,); positions must broadcast to (2, 5)",
    ),
    "a vector to turn": (lambda: mb.ops.rotary_embedding()(jnp.ones(4), 1), "x has shape (4,); wants [..., length, heads, head size]"),
    "a base of zero": (lambda: mb.ops.rotary_embedding(base=0), "rotary_embedding: base is 0; wants a number above 0"),
    "more than all of a head": (lambda: mb.ops.rotary_embedding(fraction=1.2), "rotary_embedding: fraction is 1.2; wants above 0, at most 1"),
    "scores without heads": (lambda: mb.ops.alibi()(jnp.ones((5, 7))), "alibi: x has shape (5, 7); wants scores [..., heads, queries, keys]"),
    "integer scores": (lambda: mb.ops.alibi()(jnp.ones((2, 5, 7), int)), "alibi: x is int32; wants floating point"),
}  # fmt: skip
