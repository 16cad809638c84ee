"""Layers that can be run backwards: no activations are kept, however many layers there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jax import lax

from manual_backprop.combinators.shapes import output, shapes, sum_over_paths, want_same_shape
from manual_backprop.contract import Layer, want_layer
from manual_backprop.errors import InputError, inside, want_count
from manual_backprop.ops.arrays import Spec, spec, wide


class _Ends(NamedTuple):
    y: tuple  # both streams after the last block, in at least float32
    state: Any  # of f and g before, stacked
    keys: Any
    of_x: tuple  # a Spec for each leaf of x


@dataclass(frozen=True, repr=False)
class Reversible(Layer):
    """n blocks of two streams (Gomez 2017, arXiv:1707.04585, eqs. 6-8): x = (u, v) → (u′, v′), parameters stacked.

        forward     u′ = u + f(v),      v′ = v + g(u′)
        inverse     v = v′ - g(u′),     u = u′ - f(v)
        backward    du = du′ + dv′ · ∂g/∂u′,    dv = dv′ + du · ∂f/∂v

    Only the last (u′, v′) is kept: the backward pass rebuilds what was before each block on its way down, at the price
    of f and g once more. Streams are summed in at least float32, so that what is rebuilt is what was; f and g get them
    in x's dtype.
    f and g must keep the shape and dtype of a stream. `params` and `state` are tuples, of f and g.
    """

    f: Layer
    g: Layer
    n: int = 1

    def __post_init__(self):
        want_layer("Reversible's f", self.f)
        want_layer("Reversible's g", self.g)
        object.__setattr__(self, "n", want_count("Reversible: n", self.n))

    def init(self, key, x):
        u, v = map(shapes, _streams(x))
        want_same_shape(u, v)
        keys = jax.vmap(jax.random.split)(jax.random.split(key, self.n))
        both = []
        for i, (name, layer) in enumerate((("f", self.f), ("g", self.g))):
            with inside(f"Reversible's {name} {layer!r}"):
                params, state = jax.vmap(lambda k, layer=layer: layer.init(k, u))(keys[:, i])
                first = jax.tree.map(lambda stacked: stacked[0], (params, state))
                want_same_shape(u, output(layer, *first, u))
                both.append((params, state))
        (f, f_state), (g, g_state) = both
        return (f, g), (f_state, g_state)

    def apply(self, params, state, x):
        like = _streams(x)

        def block(x, layer):
            (u, v), ((p, q), (s, t)) = x, layer
            u = sum_over_paths(u, _wide(self.f.apply(p, s, _as(like[1], v))))
            return (u, sum_over_paths(v, _wide(self.g.apply(q, t, _as(like[0], u))))), None

        return _as(like, lax.scan(block, _wide(like), (params, state), length=self.n)[0])

    def forward(self, params, state, x, key=None):
        keys = None if key is None else jax.vmap(jax.random.split)(jax.random.split(key, self.n))
        like = _streams(x)

        def block(x, layer):
            (u, v), ((p, q), (s, t), k) = x, layer
            kf, kg = (None, None) if k is None else k
            fv, s, _ = self.f.forward(p, s, _as(like[1], v), kf)
            u = sum_over_paths(u, _wide(fv))
            gu, t, _ = self.g.forward(q, t, _as(like[0], u), kg)
            return (u, sum_over_paths(v, _wide(gu))), (s, t)

        with inside(repr(self)):
            y, new_state = lax.scan(block, _wide(like), (params, state, keys), length=self.n)
        return _as(like, y), new_state, _Ends(y, state, keys, jax.tree.map(spec, like))

    def backward(self, params, residuals, dy):
        y, state, keys, like = residuals

        def block(carry, layer):
            dparams, *carry = self.back(like, *layer, *carry)
            return tuple(carry), dparams

        ends = y, _wide(_streams(dy))
        (_, dx), dparams = lax.scan(block, ends, (params, state, keys), length=self.n, reverse=True)
        return dparams, _as(like, dx)

    def back(self, like, params, state, key, x, dx):
        """One block downwards: its dparams, the streams before it, and their cotangents."""
        (u, v), (du, dv), (p, q), (s, t) = x, dx, params, state
        kf, kg = (None, None) if key is None else key
        gu, _, of_g = self.g.forward(q, t, _as(like[0], u), kg)
        dq, more = self.g.backward(q, of_g, _as(like[1], dv))
        v, du = _less(v, _wide(gu)), sum_over_paths(du, _wide(more))
        fv, _, of_f = self.f.forward(p, s, _as(like[1], v), kf)
        dp, more = self.f.backward(p, of_f, _as(like[0], du))
        return (dp, dq), (_less(u, _wide(fv)), v), (du, sum_over_paths(dv, _wide(more)))


def _wide(x):
    return jax.tree.map(wide, x)


def _as(like, x):
    """x in the dtypes of arrays, or Specs, like."""
    return jax.tree.map(lambda s, leaf: leaf.astype(s.dtype), like, x, is_leaf=lambda leaf: isinstance(leaf, Spec))


def _less(a, b):
    return jax.tree.map(lambda a, b: a - b, a, b)


def _streams(x) -> tuple:
    if not isinstance(x, tuple) or len(x) != 2:
        raise InputError(f"Reversible: x is a {type(x).__name__}; wants a pair of streams (u, v)")
    return x
