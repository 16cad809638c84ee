"""Recurrent models as a flax user writes them, and our parameters in their structure."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

CELLS = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell, "rnn": nn.SimpleCell}
GATES = {"lstm": "ifgo", "gru": "rzn"}


class LinearRecurrentUnit(nn.Module):
    """Of complex numbers, by `lax.associative_scan`: x [batch, time, 2 d], real parts first."""

    @nn.compact
    def __call__(self, x):
        d = x.shape[-1] // 2
        wide = jnp.promote_types(x.dtype, jnp.float32)  # there are no narrower complex numbers
        nu, theta = (self.param(name, nn.initializers.zeros, (d,)).astype(wide) for name in ("nu", "theta"))
        decay = jnp.exp(-jnp.exp(nu) + 1j * theta)
        u = lax.complex(*jnp.split(x.astype(wide), 2, -1)) * jnp.sqrt(-jnp.expm1(-2 * jnp.exp(nu)))
        then = lambda left, right: (left[0] * right[0], right[0] * left[1] + right[1])
        _, h = lax.associative_scan(then, (jnp.broadcast_to(decay, u.shape), u), axis=1)
        return jnp.concatenate([h.real, h.imag], -1).astype(x.dtype)


class Block(nn.Module):
    width: int
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        h = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)
        h = nn.glu(nn.Dense(4 * self.width, dtype=self.dtype, name="reads")(h))
        return x + nn.Dense(self.width, dtype=self.dtype, name="writes")(LinearRecurrentUnit(name="unit")(h))


class Recurrent(nn.Module):
    """dtype: of the products; the states of cells begin in it."""

    cell: str
    hidden: int
    outputs: int
    depth: int = 1
    vocabulary: int | None = None
    last: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        if self.vocabulary is not None:
            x = nn.Embed(self.vocabulary, self.hidden, dtype=self.dtype, name="table")(x)
        elif self.cell == "state_space":
            x = nn.Dense(self.hidden, dtype=self.dtype, name="first")(x)
        for i in range(self.depth):
            if self.cell == "state_space":
                x = Block(self.hidden, self.dtype, name=f"layer{i}")(x)
            else:
                begins = jnp.zeros((len(x), self.hidden), x.dtype if self.dtype is None else self.dtype)
                start = (begins, begins) if self.cell == "lstm" else begins
                cell = CELLS[self.cell](self.hidden, dtype=self.dtype, name=f"layer{i}")
                x = nn.RNN(cell)(x, initial_carry=start)
        return nn.Dense(self.outputs, dtype=self.dtype, name="head")(x[:, -1] if self.last else x)


def to_flax(model: Recurrent, params) -> dict:
    """Parameters, or gradients, of `models.recurrent` in flax's structure; not of a truncated one."""
    *layers, head = [p for p in params if p]
    tree = {"head": _dense(head)}
    if model.vocabulary is not None:
        tree["table"] = {"embedding": layers.pop(0)["table"]}
    elif model.cell == "state_space":
        tree["first"] = _dense(layers.pop(0))
    at = lambda stacked, i: jax.tree.map(lambda leaf: leaf[i], stacked)
    for i in range(model.depth):
        if model.cell == "state_space":
            norm, reads, _, unit, writes = at(layers[0], i)
            named = {"norm": norm, "reads": _dense(reads), "unit": unit, "writes": _dense(writes)}
        else:
            named = _cell(model.cell, at(layers[1], i - 1) if i else layers[0])
        tree[f"layer{i}"] = named
    return {"params": tree}


def _dense(p) -> dict:
    return {"kernel": p["w"], "bias": p["b"]}


def _cell(cell: str, p) -> dict:
    """A matrix a gate; flax has the bias of an LSTM on the side of h."""
    if cell == "rnn":
        return {"i": {"kernel": p["wx"], "bias": p["b"]}, "h": {"kernel": p["wh"]}}
    tree, names = {}, GATES[cell]
    for gate, wx, wh, b in zip(names, *(jnp.split(p[n], len(names), -1) for n in ("wx", "wh", "b")), strict=True):
        on_x, on_h = ({}, {"bias": b}) if cell == "lstm" else ({"bias": b}, {})
        tree |= {f"i{gate}": {"kernel": wx} | on_x, f"h{gate}": {"kernel": wh} | on_h}
    if cell == "gru":
        tree["hn"]["bias"] = p["bh"]
    return tree
