"""Whatever has a backward pass, as one pair (forward, backward) on plain arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from manual_backprop.contract import Layer, Op
from manual_backprop.errors import InputError


class Pair(NamedTuple):
    """`forward(*args) -> (y, residuals)` and `backward(residuals, dy) -> one cotangent per argument`, with names."""

    name: str
    forward: Callable
    backward: Callable
    arguments: tuple[str, ...]  # the names of the arguments, in order; empty where they are not known
    constants: tuple[int, ...] = ()  # the places of arguments without a cotangent, whatever their dtype

    def names(self, count: int, reference: Callable | None = None) -> tuple[str, ...]:
        """Of the first `count` arguments: as the candidate calls them, or else the reference."""
        for names in (self.arguments, () if reference is None else _arguments(reference)):
            if len(names) >= count and not any(name.startswith("*") for name in names):
                return names[:count]
        return tuple(f"arg{i}" for i in range(count))

    def primal(self, *args):
        return self.forward(*args)[0]


def as_pair(candidate: Any) -> Pair:
    """The pair of an Op, of a Layer, of a bare `(forward, backward)`, or of a function that JAX differentiates.

    A Layer's arguments are (params, state, x) or (params, state, x, key); state and key have no cotangent.
    An op's constructor stands for the op with its default options.
    A function's backward pass is `jax.vjp`, so a `jax.custom_vjp` is judged by the rule that it carries.
    Raises InputError for anything else.
    """
    if isinstance(candidate, Op):
        return Pair(repr(candidate), candidate.forward, candidate.backward, candidate.arguments)
    if isinstance(candidate, Layer):
        return _layer(candidate)
    if isinstance(candidate, tuple) and len(candidate) == 2 and all(map(callable, candidate)):
        forward, backward = candidate
        return Pair(_name(forward), forward, backward, _arguments(forward))
    if getattr(candidate, "makes_op", False):
        return as_pair(candidate())
    if callable(candidate):
        return _function(candidate)
    raise InputError(
        f"check_vjp: the candidate is {candidate!r}; wants an Op, a Layer, a pair (forward, backward) or a function"
    )


def _layer(layer: Layer) -> Pair:
    def forward(params, state, x, *key):
        y, _, residuals = layer.forward(params, state, x, *key)
        return y, (params, residuals, len(key) * (None,))

    def backward(saved, dy):
        params, residuals, no_key = saved
        dparams, dx = layer.backward(params, residuals, dy)
        return dparams, None, dx, *no_key

    return Pair(repr(layer), forward, backward, ("params", "state", "x", "key"), constants=(1, 3))


def _function(function: Callable) -> Pair:
    def forward(*args):
        return jax.vjp(function, *args)

    def backward(vjp, dy):
        return vjp(dy)

    return Pair(_name(function), forward, backward, _arguments(function))


def _name(function: Callable) -> str:
    return getattr(function, "__name__", None) or repr(function)


def _arguments(function: Callable) -> tuple[str, ...]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ()
    return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))
