"""The gradient of the parameters apart from that of the input: only the second is on the way to the first layer.

    dx = dy · ∂y/∂x    at once: the layer before waits for it
    dw = dy · ∂y/∂w    when there is time: nobody waits

`split` makes a layer whose backward pass gives, in the place of a gradient, what it is made of: the residuals and dy.
`settled` makes the gradient of it: later, elsewhere, or of many at once. (Qi 2023, arXiv:2401.10241, fills the bubbles
of a pipeline so.)
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.combinators.deferred import Deferred, is_owed, owes
from manual_backprop.combinators.precision import Precision
from manual_backprop.combinators.repeat import Repeat
from manual_backprop.combinators.reversible import Reversible
from manual_backprop.combinators.tied import Tied
from manual_backprop.combinators.walk import children, is_several, leaves, with_children
from manual_backprop.contract import Layer, want_layer


class _Precision(Precision):
    def backward(self, params, residuals, dy):
        owed, dx = self.layer.backward(self.rounded(params), residuals.residuals, dy)
        return owed, self.dx(residuals, dx)


class _Tied(Tied):
    def backward(self, params, residuals, dy):
        return self.layer.backward(self.spread(params), residuals, dy)


def split(layer: Layer, which: Callable[[Layer], bool] = lambda leaf: True) -> Layer:
    """The layer, whose backward pass owes the gradients of the layers within, no combinators, where `which` is true.

    halves = split(layer)
    owed, dx = halves.backward(params, residuals, dy)
    dparams = settled(halves, params, owed)
    """
    want_layer("split", layer)
    late = [at for leaf, at in leaves(layer) if which(leaf)]
    if not late or isinstance(layer, Deferred):
        return layer
    if not children(layer):
        return Deferred(layer)
    new = with_children(layer, lambda child, _: split(child, which))
    if isinstance(layer, Precision):
        return _Precision(new.layer, new.compute, new.params)
    if isinstance(layer, Tied) and any(map(layer.ties, late)):
        return _Tied(new.layer, *new.places)
    return new


def settled(layer: Layer, params, owed, parts: bool = False):
    """The gradient, shaped as params, of what the backward pass of a layer that was split gave.

    parts: what is owed has a leading axis, of several backward passes with the same params; the gradient is the sum
    over them. That is for layers that map every row of x by itself, such as `Dense`: it is one more axis of rows.
    Gradients that are there are summed already.
    """
    if not owes(owed):
        return owed
    if isinstance(layer, Deferred):
        return layer.settled(params, owed)
    if isinstance(layer, _Precision):
        return layer.dparams(params, settled(layer.layer, layer.rounded(params), owed, parts))
    if isinstance(layer, _Tied):
        return layer.summed(settled(layer.layer, layer.spread(params), owed, parts))
    if isinstance(layer, Repeat | Reversible):
        return lax.map(lambda i: _settled_within(layer, *_at(i, params, owed, int(parts)), parts), jnp.arange(layer.n))
    return _settled_within(layer, params, owed, parts)


def _settled_within(layer: Layer, params, owed, parts: bool):
    within = children(layer)
    if is_several(layer):
        return tuple(settled(*each, parts) for each in zip(within, params, owed, strict=True))
    return settled(within[0], params, owed, parts)


def _at(i, params, owed, axis: int) -> tuple:
    """Layer i of a stack: its params, and what is owed, stacked along that axis; a gradient, along the first."""
    take = lambda tree, axis: jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, i, axis, keepdims=False), tree)
    return take(params, 0), jax.tree.map(lambda node: take(node, axis if is_owed(node) else 0), owed, is_leaf=is_owed)
