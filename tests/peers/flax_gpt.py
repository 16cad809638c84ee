"""GPT-2 and today's transformer as a flax user writes them, and our parameters in their structure."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from manual_backprop.models.gpt import Size


def attention(q, k, v):
    """Causal; [batch, length, heads, head size], fewer heads of k and v are shared by groups."""
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], 2) for x in (k, v))
    s = jnp.einsum("bthd,bshd->bhts", q, k) / jnp.sqrt(q.shape[-1]).astype(q.dtype)
    s = jnp.where(jnp.tril(jnp.ones(s.shape[-2:], bool)), s.astype(jnp.promote_types(s.dtype, jnp.float32)), -jnp.inf)
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(s).astype(v.dtype), v)


def rotated(x):
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None] * 10000.0 ** (-jnp.arange(half) / half)
    cos, sin = (f(angle)[:, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


class Block(nn.Module):
    """dtype: of the products."""

    size: Size
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x, _=None):
        s, old = self.size, self.size.architecture == "gpt2"
        norm = lambda name: (
            nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)
            if old
            else nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name=name)
        )
        dense = lambda n, name: nn.Dense(n, use_bias=old, dtype=self.dtype, name=name)
        H = s.width // s.heads
        h = dense((s.heads + 2 * s.key_heads) * H, "qkv")(norm("norm1")(x))
        h = h.reshape(*x.shape[:2], -1, H)
        q, k, v = jnp.split(h, (s.heads, s.heads + s.key_heads), 2)
        if not old:
            q, k = rotated(q), rotated(k)
        x = x + dense(s.width, "out")(attention(q, k, v).reshape(x.shape))
        h = dense(s.hidden if old else 2 * s.hidden, "up")(norm("norm2")(x))
        if old:
            h = nn.gelu(h)
        else:
            gate, value = jnp.split(h, 2, -1)
            h = nn.silu(gate) * value
        return x + dense(s.width, "down")(h), None


class GPT(nn.Module):
    """scanned: the blocks as one `nn.scan`.  remat: a policy of `jax.checkpoint` for each block."""

    size: Size
    scanned: bool = False
    remat: Callable | None = None
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, ids):
        s, old = self.size, self.size.architecture == "gpt2"
        table = self.param("table", nn.initializers.normal(0.02), (s.vocabulary, s.width))
        x = table[ids]
        if old:
            x = x + self.param("positions", nn.initializers.normal(0.02), (s.length, s.width))[: ids.shape[1]]
        if self.dtype is not None:
            x = x.astype(self.dtype)
        block = Block if self.remat is None else nn.remat(Block, policy=self.remat, prevent_cse=not self.scanned)
        if self.scanned:
            stack = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=s.depth)
            x, _ = stack(s, self.dtype, name="blocks")(x, None)
        else:
            for i in range(s.depth):
                x, _ = block(s, self.dtype, name=f"block{i}")(x)
        norm = nn.LayerNorm if old else nn.RMSNorm
        x = norm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)
        head = table if old else self.param("head", nn.initializers.normal(0.02), (s.vocabulary, s.width))
        return lax.dot_general(
            x, head.astype(x.dtype), (((2,), (1,)), ((), ())),
            preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
        )  # fmt: skip


def cost(model: GPT) -> Callable:
    """(variables, ids, labels) → the average cost of a token."""
    return lambda variables, ids, labels: jnp.mean(
        optax.softmax_cross_entropy_with_integer_labels(model.apply(variables, ids), labels)
    )


def to_flax(size: Size, params, scanned: bool = False) -> dict:
    """Parameters, or gradients, of `models.gpt.gpt` in flax's structure."""
    (embedding, positions, blocks, norm), head = params
    attention, perceptron = blocks
    dense = lambda p: {"kernel": p["w"]} | ({"bias": p["b"]} if "b" in p else {})
    named = {
        "norm1": attention[0][0],
        "qkv": dense(attention[0][1]),
        "out": dense(attention[-1]),
        "norm2": perceptron[0][0],
        "up": dense(perceptron[0][1]),
        "down": dense(perceptron[-1][1]),
    }
    tree = {"table": embedding["table"], "norm": norm}
    tree |= {"positions": positions["table"]} if size.architecture == "gpt2" else {"head": head["weight"]}
    if scanned:
        return {"params": tree | {"blocks": named}}
    return {"params": tree | {f"block{i}": jax.tree.map(lambda leaf, i=i: leaf[i], named) for i in range(size.depth)}}
