"""A batch in parts, one after another: the average over the examples, with the memory of one part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.combinators.ahead import GradientAhead, ahead
from manual_backprop.combinators.deferred import is_owed, owes
from manual_backprop.combinators.shapes import shapes, sum_over_paths
from manual_backprop.combinators.split import settled, split
from manual_backprop.contract import Layer, want_layer
from manual_backprop.errors import InputError, inside, want_count
from manual_backprop.layers import Dense
from manual_backprop.ops.arrays import wide_dtype
from manual_backprop.ops.costs.head import filled


def equal(batch) -> float:
    """Every part counts alike."""
    return 1.0


@dataclass(frozen=True, repr=False)
class MicroBatches(GradientAhead):
    """An objective over n equal parts of the batch: C = Σᵢ shareᵢ Cᵢ, so ∂C/∂w = Σᵢ shareᵢ ∂Cᵢ/∂w.

    Each part goes forward and, with ∂C/∂Cᵢ = shareᵢ, backward before the next begins; what is kept is the gradient.
    count: of a part of the batch how much its average counts, such as its number of tokens that are not ignored;
    shareᵢ = countᵢ / Σ count. By default all parts count alike.
    products: the weight's gradient in a `Dense` layer, Σ xᵀ dy, is summed part by part ("each"), or is "one" product at
    the end, over the rows of all parts: then x and dy of every part are kept for it. One large product is faster than
    many narrow ones, of which each reads and writes a whole gradient.
    State passes from part to part; each has a key of its own. Nothing flows back to the batch: its cotangent is None.
    """

    objective: Layer
    n: int
    count: Callable = equal
    products: Literal["each", "one"] = "each"

    def __post_init__(self):
        want_layer("MicroBatches", self.objective)
        object.__setattr__(self, "n", want_count("MicroBatches: n", self.n))
        if not callable(self.count):
            raise InputError(f"MicroBatches: count is {self.count!r}; wants a function of a part of the batch")
        if self.products not in ("each", "one"):
            raise InputError(f"MicroBatches: products is {self.products!r}; wants 'each' or 'one'")

    def init(self, key, batch):
        part = lambda batch: jax.tree.map(lambda leaf: leaf[0], self.parts(batch))
        return self.objective.init(key, jax.eval_shape(part, shapes(batch)))

    def apply(self, params, state, batch):
        parts = self.parts(batch)
        Cs = lax.map(lambda part: self.objective.apply(params, state, part), parts)
        return jnp.sum(self.shares(parts).astype(Cs.dtype) * Cs)

    def forward(self, params, state, batch, key=None):
        late = lambda leaf: self.products == "one" and isinstance(leaf, Dense)
        objective = split(self.objective, late)

        def part(state, of_part):
            batch, share, key = of_part
            C, state, residuals = objective.forward(params, state, batch, key)
            share = share.astype(C.dtype)
            more, _ = objective.backward(params, residuals, share)
            return state, share * C, more

        def step(carry, of_part):
            state, dparams = carry
            state, C, more = part(state, of_part)
            return (state, sum_over_paths(dparams, _summed(more))), (C, _kept(more))

        parts = self.parts(batch)
        keys = None if key is None else jax.random.split(key, self.n)
        of_parts = parts, self.shares(parts), keys
        with inside(f"MicroBatches {self.objective!r}"):
            first = jax.tree.map(lambda leaf: leaf[0], of_parts)
            _, _, more = jax.eval_shape(part, state, first)
            if owes(more) and objective is self.objective:
                raise InputError("gradients are owed, of which there is no sum; wants an objective that is not split")
            nothing = filled(0, (), jnp.float32, *jax.tree.leaves((parts, params)))
            wide_zeros = lambda leaf: jnp.zeros(leaf.shape, dtype := wide_dtype(leaf.dtype)) + nothing.astype(dtype)
            zeros = jax.tree.map(wide_zeros, _summed(more))
            (state, summed), (Cs, kept) = lax.scan(step, (state, zeros), of_parts)
            owed = jax.tree.map(lambda a, b: b if is_owed(b) else a, summed, kept, is_leaf=_is_place)
            dparams = settled(objective, params, owed, parts=True)
            dparams = jax.tree.map(lambda d, p: d.astype(p.dtype), dparams, params)
        return jnp.sum(Cs), state, ahead(dparams, batch)

    def parts(self, batch):
        """The batch with its first axis cut in n."""

        def cut(leaf):
            if not jnp.shape(leaf):
                raise InputError(
                    "MicroBatches: the batch holds a number; wants arrays, examples along their first axis"
                )
            if leaf.shape[0] % self.n:
                raise InputError(f"MicroBatches: a batch of {leaf.shape[0]} does not divide into {self.n} parts")
            return jnp.reshape(leaf, (self.n, leaf.shape[0] // self.n, *leaf.shape[1:]))

        return jax.tree.map(cut, batch)

    def shares(self, parts) -> jax.Array:
        counts = jax.vmap(lambda part: jnp.asarray(self.count(part), float))(parts)
        if counts.ndim != 1:
            raise InputError(f"MicroBatches: count gives an array of shape {counts.shape[1:]} a part; wants a number")
        total = jnp.sum(counts)
        return counts / jnp.where(total == 0, 1, total)


def _summed(dparams):
    """The gradients that are there, None in the place of what is owed."""
    return jax.tree.map(lambda node: None if is_owed(node) else node, dparams, is_leaf=is_owed)


def _kept(dparams):
    """What is owed, None in the place of gradients that are there."""
    return jax.tree.map(lambda node: node if is_owed(node) else None, dparams, is_leaf=is_owed)


def _is_place(node) -> bool:
    return node is None or is_owed(node)
