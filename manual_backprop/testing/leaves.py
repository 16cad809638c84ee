"""The leaves of arguments and of cotangents: which have a gradient, what they are called, how they are cast."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manual_backprop.errors import InputError


def array(leaf):
    """As a JAX array. Raises InputError for what is none."""
    try:
        return jnp.asarray(leaf)
    except TypeError:
        raise InputError(f"check_vjp: an argument is {leaf!r}; wants arrays, or pytrees of them") from None


def is_inexact(leaf) -> bool:
    """Whether it is floating or complex."""
    dtype = getattr(leaf, "dtype", None)
    return bool(jnp.issubdtype(jnp.result_type(leaf) if dtype is None else dtype, jnp.inexact))


def is_complex(leaf) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.complexfloating))


def to_precision(leaf, dtype: str):
    """A floating leaf in this dtype, a complex one in the complex dtype as wide; any other as it is."""
    if not is_inexact(leaf):
        return leaf
    return leaf.astype(np.result_type(np.dtype(dtype), np.complex64) if is_complex(leaf) else dtype)


def to_float64(leaf):
    return to_precision(leaf, "float64")


def is_float64(tree) -> bool:
    """Whether every floating or complex leaf is as wide as can be."""
    return all(leaf.dtype in (jnp.float64, jnp.complex128) for leaf in jax.tree.leaves(tree) if is_inexact(leaf))


def to_numpy(leaf) -> np.ndarray:
    """A numpy array wide enough to subtract in."""
    leaf = leaf if isinstance(leaf, np.ndarray) else np.asarray(leaf)
    return leaf.astype(np.complex128 if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else np.float64)


def ulp(dtype) -> float:
    return float(jnp.finfo(dtype).eps)


def largest(leaves) -> float:
    """The largest finite magnitude in the leaves, 0 if there is none."""
    magnitudes = [np.abs(to_numpy(leaf)).ravel() for leaf in leaves]
    finite = np.concatenate([m[np.isfinite(m)] for m in magnitudes]) if magnitudes else np.zeros(0)
    return float(finite.max()) if finite.size else 0.0


def draw(rng, leaf):
    """A random cotangent for an output, on a grid that every dtype holds: both sides get the same numbers.

    None for an integer output, which has none.
    """
    if not is_inexact(leaf):
        return None

    def normal():
        return np.round(np.clip(rng.standard_normal(leaf.shape), -3.9, 3.9) * 32) / 32

    return jnp.asarray(normal() + 1j * normal() if is_complex(leaf) else normal(), leaf.dtype)


def as_cotangent(y, dy):
    """dy in the structure and the dtypes of y, and JAX's float0 where an output is an integer. dy has None there."""

    def one(leaf, d):
        if leaf is None:
            return None
        if not is_inexact(leaf):
            return np.zeros(jnp.shape(leaf), jax.dtypes.float0)
        return d.astype(jnp.result_type(leaf))

    leaves, tree = jax.tree.flatten(y, is_leaf=lambda leaf: leaf is None)
    dys = jax.tree.leaves(dy, is_leaf=lambda leaf: leaf is None)
    return tree.unflatten([one(leaf, d) for leaf, d in zip(leaves, dys, strict=True)])


def flat_cotangents(dargs: Any, args: tuple) -> list:
    """The cotangents, one a leaf of args. None stands for a whole argument, of zeros, as for JAX; for an integer it is
    None, as JAX's float0 is.

    Raises ValueError where the structures differ.
    """
    leaves = []
    for arg, darg in zip(args, dargs, strict=True):
        tree = jax.tree.structure(arg)
        zeros = lambda leaf: np.zeros(jnp.shape(leaf), jnp.result_type(leaf)) if is_inexact(leaf) else None
        leaves += [zeros(leaf) for leaf in jax.tree.leaves(arg)] if darg is None else tree.flatten_up_to(darg)
    return [None if getattr(leaf, "dtype", None) == jax.dtypes.float0 else leaf for leaf in leaves]


def text(value) -> str:
    """float32[7, 5], or whatever else it is."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {text(leaf)}" for key, leaf in value.items()) + "}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of " + (", ".join(map(text, value)) or "nothing")
    return repr(value) if value is None else f"{type(value).__name__} {value!r}"[:80]
