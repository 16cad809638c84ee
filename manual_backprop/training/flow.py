"""How large the gradient is in each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from manual_backprop.combinators import Objective, Precision, Repeat, Reversible
from manual_backprop.combinators.walk import children, is_several
from manual_backprop.contract import Layer


def layer_norms(objective: Layer) -> Callable[[Any], dict[str, jax.Array]]:
    """A function of the gradient: the length of ∂C/∂w of every layer that has weights, by the layer's name.

    Layers that `Repeat` stacks are one entry, with a length for each: [n].
    """
    places = list(_places(objective, "", (), 0))

    def norms(gradient) -> dict[str, jax.Array]:
        found = {}
        for name, at, stacked in places:
            part = gradient
            for i in at:
                part = part[i]
            leaves = jax.tree.leaves(part)
            if leaves:
                sums = [
                    jnp.sum(jnp.square(leaf.astype(jnp.float32)), tuple(range(stacked, leaf.ndim))) for leaf in leaves
                ]
                found[name] = jnp.sqrt(sum(sums))
        return found

    return norms


def _places(layer: Layer, name: str, at: tuple[int, ...], stacked: int) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Of every layer that is no combinator: its name, its place in params, and how many axes of them stack layers."""
    inner = children(layer)
    if not inner or isinstance(layer, Precision):
        yield f"{name or 'objective'} {type(layer).__name__}", at, stacked
        return
    several = is_several(layer)
    stacked += isinstance(layer, Repeat | Reversible)
    for i, child in enumerate(inner):
        step = ("model", "cost")[i] if isinstance(layer, Objective) else f"{name}[{i}]" if several else name
        yield from _places(child, step, (*at, i) if several else at, stacked)
