"""A batch in parts, one after another: the average over the examples, with the memory of one part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.combinators.shapes import shapes, sum_over_paths
from manual_backprop.contract import Layer, want_layer
from manual_backprop.errors import InputError, inside, want_count


class _Gradient(NamedTuple):
    dparams: Any  # for dC = 1
    of_batch: Any


def equal(batch) -> float:
    """Every part counts alike."""
    return 1.0


@dataclass(frozen=True, repr=False)
class MicroBatches(Layer):
    """An objective over n equal parts of the batch: C = Σᵢ shareᵢ Cᵢ, so ∂C/∂w = Σᵢ shareᵢ ∂Cᵢ/∂w.

    Each part goes forward and, with ∂C/∂Cᵢ = shareᵢ, backward before the next begins; what is kept is the gradient.
    count: of a part of the batch how much its average counts, such as its number of tokens that are not ignored;
    shareᵢ = countᵢ / Σ count. By default all parts count alike.
    State passes from part to part; each has a key of its own. Nothing flows back to the batch: its cotangent is None.
    """

    objective: Layer
    n: int
    count: Callable = equal

    def __post_init__(self):
        want_layer("MicroBatches", self.objective)
        object.__setattr__(self, "n", want_count("MicroBatches: n", self.n))

    def init(self, key, batch):
        part = lambda batch: jax.tree.map(lambda leaf: leaf[0], self.parts(batch))
        return self.objective.init(key, jax.eval_shape(part, shapes(batch)))

    def apply(self, params, state, batch):
        parts = self.parts(batch)
        Cs = lax.map(lambda part: self.objective.apply(params, state, part), parts)
        return jnp.sum(self.shares(parts).astype(Cs.dtype) * Cs)

    def forward(self, params, state, batch, key=None):
        def part(carry, of_part):
            state, dparams = carry
            batch, share, key = of_part
            C, state, residuals = self.objective.forward(params, state, batch, key)
            share = share.astype(C.dtype)
            more, _ = self.objective.backward(params, residuals, share)
            return (state, sum_over_paths(dparams, more)), share * C

        parts = self.parts(batch)
        keys = None if key is None else jax.random.split(key, self.n)
        empty = state, jax.tree.map(jnp.zeros_like, params)
        with inside(f"MicroBatches {self.objective!r}"):
            (state, dparams), Cs = lax.scan(part, empty, (parts, self.shares(parts), keys))
        return jnp.sum(Cs), state, _Gradient(dparams, jax.tree.map(lambda leaf: None, batch))

    def backward(self, params, residuals, dy):
        return jax.tree.map(lambda d: (dy * d).astype(d.dtype), residuals.dparams), residuals.of_batch

    def parts(self, batch):
        """The batch with its first axis cut in n."""

        def cut(leaf):
            if leaf.shape[0] % self.n:
                raise InputError(f"MicroBatches: a batch of {leaf.shape[0]} does not divide into {self.n} parts")
            return jnp.reshape(leaf, (self.n, leaf.shape[0] // self.n, *leaf.shape[1:]))

        return jax.tree.map(cut, batch)

    def shares(self, parts) -> jax.Array:
        counts = jax.vmap(lambda part: jnp.asarray(self.count(part), jnp.float32))(parts)
        return counts / jnp.sum(counts)
