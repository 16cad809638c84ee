"""An op's options: plain values, of the types with which its rule is annotated.

The annotation is the check: `axis: int | tuple[int, ...] | None` refuses a float, a bool and a string in one line, so
that a rule has only to say what a type cannot.
"""

from __future__ import annotations

import types
from typing import Any, Literal, Union, get_args, get_origin

import jax
import numpy as np

from manual_backprop.errors import InputError

WORDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a string", types.NoneType: "None"}


def plain(value: Any) -> Any:
    """A list as a tuple, a number of numpy's or JAX's as Python's: it hashes, and its dtype does not spread."""
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    number = is_array(value) and value.ndim == 0 and not isinstance(value, jax.core.Tracer)
    return value.item() if number else value


def want_type(who: str, value: Any, wanted: Any) -> None:
    """Raises InputError for a value that is not of the type."""
    if fits(value, wanted):
        return
    got = f"an array {value.shape}" if is_array(value) else repr(value)
    hint = ": an array is an argument, not an option" if is_array(value) and fits(True, wanted) else ""
    raise InputError(f"{who} is {got}; wants {in_words(wanted)}{hint}")


def want_positive(op: str, **options: float | None) -> None:
    """Raises InputError for a number that is not above 0."""
    for name, value in options.items():
        if value is not None and not value > 0:
            raise InputError(f"{op}: {name} is {value!r}; wants a number above 0")


def want_not_negative(op: str, **options: float | None) -> None:
    """Raises InputError for a number below 0."""
    for name, value in options.items():
        if value is not None and not value >= 0:
            raise InputError(f"{op}: {name} is {value!r}; wants at least 0")


def want_fraction(op: str, **options: float | None) -> None:
    """Raises InputError for a number that is not above 0 and at most 1."""
    for name, value in options.items():
        if value is not None and not 0 < value <= 1:
            raise InputError(f"{op}: {name} is {value!r}; wants above 0, at most 1")


# ── types ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def fits(value: Any, wanted: Any) -> bool:
    """Whether a value is of a type: of bool, int, float (an int too), str, None, a Literal, a tuple, or a union."""
    origin, parts = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if parts[-1] is Ellipsis:
            return all(fits(one, parts[0]) for one in value)
        return len(value) == len(parts) and all(map(fits, value, parts))
    if isinstance(value, bool):
        return wanted is bool
    return isinstance(value, int | float if wanted is float else wanted)


def in_words(wanted: Any) -> str:
    """`a whole number, a tuple (each a whole number) or None`."""
    origin, parts = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return _listed([word for part in parts for word in _choices(part)])
    if origin is Literal:
        return _listed(_choices(wanted))
    if origin is tuple and parts[-1] is Ellipsis:
        return f"a tuple (each {in_words(parts[0])})"
    if origin is tuple:
        return f"a tuple ({', '.join(map(in_words, parts))})"
    return WORDS[wanted]


def _choices(wanted: Any) -> list[str]:
    return list(map(repr, get_args(wanted))) if get_origin(wanted) is Literal else [in_words(wanted)]


def _listed(words: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def is_array(value: Any) -> bool:
    return isinstance(value, np.generic | np.ndarray | jax.Array)
