"""Walks over a model: structure is data, so a schedule of the backward pass can be a function from layers to layers."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

from manual_backprop.contract import Layer


def children(layer: Layer) -> tuple[Layer, ...]:
    """The layers that a combinator is made of, in order; none for a layer that is no combinator."""
    found = []
    for field in dataclasses.fields(layer):
        value = getattr(layer, field.name)
        found += [each for each in (value if isinstance(value, tuple) else (value,)) if isinstance(each, Layer)]
    return tuple(found)


def with_children(layer: Layer, change: Callable[[Layer, int], Layer]) -> Layer:
    """The same combinator of other layers: each is change(layer, its number)."""
    numbers = iter(range(len(children(layer))))
    new = copy.copy(layer)
    for field in dataclasses.fields(layer):
        value = getattr(layer, field.name)
        if isinstance(value, Layer):
            object.__setattr__(new, field.name, change(value, next(numbers)))
        elif isinstance(value, tuple) and any(isinstance(each, Layer) for each in value):
            object.__setattr__(new, field.name, tuple(change(each, next(numbers)) for each in value))
    return new


def is_several(layer: Layer) -> bool:
    """Whether params and state are tuples, one entry a layer within; else they are those of the one layer within.

    So it is with several layers, and with a tuple of layers, be it of one.
    """
    fields = [getattr(layer, field.name) for field in dataclasses.fields(layer)]
    return len(children(layer)) > 1 or any(
        isinstance(f, tuple) and any(isinstance(e, Layer) for e in f) for f in fields
    )


def map_leaves(layer: Layer, change: Callable[[Layer, tuple[int, ...]], Layer], at: tuple[int, ...] = ()) -> Layer:
    """The model with change(layer, its place in params) for every layer that is no combinator."""
    if not children(layer):
        return change(layer, at)
    several = is_several(layer)
    return with_children(layer, lambda child, i: map_leaves(child, change, (*at, i) if several else at))


def leaves(layer: Layer) -> list[tuple[Layer, tuple[int, ...]]]:
    """The layers that are no combinators, each with its place in params."""
    found = []
    map_leaves(layer, lambda leaf, at: found.append((leaf, at)) or leaf)
    return found
