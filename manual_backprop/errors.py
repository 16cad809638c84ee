"""A user's mistake is one line: who, what it got, what it wants, what to do."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class InputError(ValueError):
    """An input that does not fit. Its message is one line: who, what it got, what it wants."""


@contextmanager
def inside(place: object) -> Iterator[None]:
    """Names the place in every InputError that comes out of it: `Serial[1] Dense(16): dense: x has …`."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}: {error}") from None


def choose(what: str, name: str, known: Mapping[str, Any]) -> Any:
    """The value that `known` has for a name. Raises InputError with the closest known name, and all of them."""
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise InputError(f"{what} {name!r} is unknown; {hint}known: {', '.join(sorted(known)) or 'none'}")


def want_count(who: str, n: Any) -> int:
    """n as Python's int. Raises InputError unless it is a whole number, at least 1."""
    if isinstance(n, bool) or not hasattr(n, "__index__") or operator.index(n) < 1:
        raise InputError(f"{who} is {n!r}; wants a whole number, at least 1")
    return operator.index(n)


def want_key(who: str, key: Any) -> None:
    """Raises InputError for what is not one key of `jax.random`."""
    array = isinstance(key, np.ndarray | jax.Array)
    typed = array and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not array or (key.ndim != 0 if typed else key.dtype != jnp.uint32 or key.shape not in ((2,), (4,))):
        got = f"{key.dtype}{list(key.shape)}" if array else repr(key)
        raise InputError(f"{who}: key is {got}; wants one key, such as jax.random.key(0)")
