"""The row of the table of right gradients, and what the modules of that table share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Right(NamedTuple):
    """A backward pass that is right and must be accepted, and why an oracle may fail to."""

    name: str
    candidate: Any
    reference: Callable | None
    args: Callable[[], tuple]
    options: dict = {}  # noqa: RUF012 - never written to
    why_hard: str = ""


def rule(forward, backward):
    """A jax.custom_vjp out of a pair. Its forward calls itself, so that a second derivative of the values obeys the rule."""
    function = jax.custom_vjp(lambda *args: forward(*args)[0])
    function.defvjp(lambda *args: (function(*args), forward(*args)[1]), backward)
    return function


def normal(seed, *shape, dtype=jnp.float32, scale=1.0, shift=0.0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * scale + shift, dtype)


def uniform(seed, *shape, low=0.0, high=1.0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).uniform(low, high, size=shape), dtype)


def integers(seed, *shape, low=0, high=10, dtype=jnp.int32):
    return jnp.asarray(np.random.default_rng(seed).integers(low, high, size=shape), dtype)


def steps(seed, *shape, high=3, dtype=jnp.float32):
    """Small whole numbers around zero: full of ties and of exact zeros."""
    return jnp.asarray(np.random.default_rng(seed).integers(-high, high + 1, size=shape), dtype)


def wide(x):
    """At least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def size(x):
    """The largest entry of each row, one at least: what is divided by it can be squared, and its own gradient cancels."""
    return jax.lax.stop_gradient(jnp.maximum(jnp.abs(x).max(-1, keepdims=True), 1))


def picked(rows, labels):
    return jax.vmap(lambda row, label: row[label])(rows, labels)


def dot(spec, *operands):
    """An einsum that accumulates in float32 at least."""
    kind = jnp.promote_types(jnp.result_type(*operands), jnp.float32)
    return jnp.einsum(spec, *operands, preferred_element_type=kind)


def drawn(sample, **options):
    """The two last columns of a case whose domain is special: its arguments and its options."""
    return {"args": lambda: sample(0), "options": {"sample": sample, **options}}
