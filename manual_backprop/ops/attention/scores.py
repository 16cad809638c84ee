"""What plain and chunked attention share: the options, the layout, which pairs may attend, and the scores.

Arguments are laid out as those of `jax.nn.dot_product_attention`: q [..., T, N, H], k and v [..., S, K, H]. Inside,
heads come before positions: q, y [..., N, T, H], k, v [..., K, S, H]; what is of pairs [..., N, T, S]. The query
heads n G … n G + G - 1, G = N / K, share the key head n (Ainslie 2023, arXiv:2305.13245). A product folds these G heads
into one of G · T queries: no key is ever repeated, and what flows back to a key is summed over its queries.

    z = (scale · q) kᵀ,    s = softcap(z) + bias, and -∞ where a query may not attend,    softcap(z) = c tanh(z / c)
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.errors import InputError, want_key
from manual_backprop.ops.arrays import want_float, wide_dtype
from manual_backprop.options import want_fraction, want_not_negative, want_positive

Align = Literal["top_left", "bottom_right"]


@dataclasses.dataclass(frozen=True)
class Scoring:
    """The options of an attention op. Raises InputError for one that makes no sense."""

    op: str
    causal: bool
    window: int | tuple[int, int] | None
    align: Align
    softcap: float | None
    scale: float | None
    mask: bool
    bias: bool
    keep_probability: float

    def __post_init__(self):
        for positions in self.window if isinstance(self.window, tuple) else (self.window,):
            want_not_negative(self.op, window=positions)
        want_positive(self.op, softcap=self.softcap)
        want_fraction(self.op, keep_probability=self.keep_probability)

    @property
    def dropping(self) -> bool:
        return self.keep_probability < 1

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of the arguments that the options ask for."""
        return "q", "k", "v", *["mask"] * self.mask, *["bias"] * self.bias, *["key"] * self.dropping

    def takes_them(self, forward: Callable) -> Callable:
        """forward(q, k, v, mask, bias, key) as a function of those arguments alone; the others are None."""

        def run(*args):
            given = dict(zip(self.arguments, args, strict=True))
            q, k, v, mask, bias, key = (given.get(name) for name in ("q", "k", "v", "mask", "bias", "key"))
            self.check(q, k, v, mask, bias, key)
            return forward(q, k, v, mask, bias, key)

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        run.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in self.arguments])
        return run

    def cotangents(self, dq, dk, dv, dbias) -> tuple:
        """One a further argument: None for mask and key."""
        return dq, dk, dv, *[None] * self.mask, *[dbias] * self.bias, *[None] * self.dropping

    def band(self, T: int, S: int) -> tuple[int | None, int | None]:
        """(low, high): query i may attend to the keys j with low ≤ j - i ≤ high; None where there is no end."""
        offset = S - T if self.align == "bottom_right" else 0
        left, right = self.window if isinstance(self.window, tuple) else (self.window, self.window)
        if self.causal:
            right = 0
        return None if left is None else offset - left, None if right is None else offset + right

    def softcapped(self, z) -> tuple[jax.Array, jax.Array | None]:
        """c t, and t = tanh(z / c)."""
        if self.softcap is None:
            return z, None
        t = jnp.tanh(z / self.softcap)
        return self.softcap * t, t

    def scores(self, q, k, mask, bias, i, j, band) -> tuple[jax.Array, jax.Array | None]:
        """s and t of the block of queries from i on and keys from j on; mask and bias are the block's own."""
        s, t = self.softcapped(pairs(q, k))
        if bias is not None:
            s = s + bias
        for allowed in (within(band, i, s.shape[-2], j, s.shape[-1]), mask):
            if allowed is not None:
                s = jnp.where(allowed, s, -jnp.inf)
        return s, t

    def factor(self, H: int) -> float:
        """The scale, for a head size."""
        return 1 / math.sqrt(H) if self.scale is None else self.scale

    def keep(self, key, shape: tuple[int, ...]) -> jax.Array:
        """Which probabilities are kept: a float32 keep draws the same with and without jax_enable_x64."""
        return jax.random.bernoulli(key, jnp.float32(self.keep_probability), shape)

    def check(self, q, k, v, mask, bias, key) -> None:
        """Raises InputError for arguments that do not fit each other."""
        op = self.op
        want_float(op, q=q, k=k, v=v)
        if q.ndim < 3 or q.shape[-1] == 0:
            raise InputError(f"{op}: q has shape {q.shape}; wants [..., length, heads, head size]")
        if k.ndim != q.ndim or k.shape[:-3] != q.shape[:-3] or k.shape[-1] != q.shape[-1]:
            wants = (*q.shape[:-3], "keys", "heads", q.shape[-1])
            raise InputError(f"{op}: q has shape {q.shape}, k {k.shape}; k must be [{', '.join(map(str, wants))}]")
        if v.shape[:-1] != k.shape[:-1]:
            wants = ", ".join(map(str, (*k.shape[:-1], "head size")))
            raise InputError(f"{op}: k has shape {k.shape}, v {v.shape}; v must be [{wants}]")
        N, K = q.shape[-2], k.shape[-2]
        if K == 0 or N % K:
            raise InputError(f"{op}: q has {N} heads, k and v {K}; the query heads must be a multiple of the key heads")
        shape = (*q.shape[:-3], N, q.shape[-3], k.shape[-3])
        if mask is not None and mask.dtype != bool:
            raise InputError(f"{op}: mask is {mask.dtype}; wants bool, True where a query may attend (see bias)")
        if bias is not None:
            want_float(op, bias=bias)
        for name, x in (("mask", mask), ("bias", bias)):
            if x is not None and not _broadcasts(x.shape, shape):
                raise InputError(f"{op}: {name} has shape {x.shape}; must broadcast to {shape}: [..., heads, T, S]")
        if key is not None:
            want_key(op, key)


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    trailing = to[len(to) - len(shape) :]
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(shape, trailing, strict=True))


def within(band, i, rows: int, j, columns: int) -> jax.Array | None:
    """bool [rows, columns]: which pairs of a block lie in the band; None for a band without ends."""
    low, high = band
    if low is None and high is None:
        return None
    difference = j - i + lax.broadcasted_iota(jnp.int32, (rows, columns), 1)
    difference = difference - lax.broadcasted_iota(jnp.int32, (rows, columns), 0)
    if low is None or high is None:
        return difference <= high if low is None else difference >= low
    return (difference >= low) & (difference <= high)


def pairs(q, k) -> jax.Array:
    """q kᵀ: [..., N, T, H], [..., K, S, H] → [..., N, T, S]."""
    z = _product("...rh,...sh->...rs", _folded(q, k.shape[-3]), k)
    return z.reshape(*q.shape[:-1], k.shape[-2])


def to_queries(p, k) -> jax.Array:
    """p k: [..., N, T, S], [..., K, S, H] → [..., N, T, H]."""
    x = _product("...rs,...sh->...rh", _folded(p, k.shape[-3]), k)
    return x.reshape(*p.shape[:-1], k.shape[-1])


def to_keys(p, q, K: int) -> jax.Array:
    """pᵀ q, summed over the heads of a group: [..., N, T, S], [..., N, T, H] → [..., K, S, H]."""
    return _product("...rs,...rh->...sh", _folded(p, K), _folded(q, K))


def _folded(x, K: int) -> jax.Array:
    """[..., N, T, X] → [..., K, G · T, X]."""
    *leading, N, T, X = x.shape
    return x.reshape(*leading, K, N // K * T, X)


def _product(spec: str, a, b) -> jax.Array:
    """An einsum, summed in at least float32."""
    return jnp.einsum(spec, a, b, preferred_element_type=wide_dtype(jnp.result_type(a, b)))


def softmax_parts(s) -> tuple[jax.Array, jax.Array, jax.Array]:
    """e = e^(s - m), m = max s, l = Σ e over the keys; p = e / l. Where nothing may be attended they are 0, -∞ and 1.

    So m + ln l is lse everywhere; it is not formed on the way to p, for it would round at the size of s.
    """
    m = lax.stop_gradient(jnp.max(s, -1, keepdims=True, initial=-jnp.inf))
    e = exponentials(s, m)
    return e, m, jnp.where(m == -jnp.inf, 1, jnp.sum(e, -1, keepdims=True))


def exponentials(s, m) -> jax.Array:
    """e^(s - m), and 0 where m = -∞."""
    return jnp.exp(s - jnp.where(m == -jnp.inf, 0, m))


def swapped(x) -> jax.Array:
    """[..., positions, heads, X] ↔ [..., heads, positions, X]."""
    return jnp.swapaxes(x, -2, -3)
