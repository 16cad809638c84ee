"""What every op shares about arrays: how wide to compute, and how to say that an argument does not fit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from manual_backprop.contract import InputError


def wide_dtype(dtype) -> jnp.dtype:
    """The dtype that values of `dtype` are computed and summed in: at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


def wide(x) -> jax.Array:
    """x in at least float32; x itself where it is wide already."""
    return x.astype(wide_dtype(x.dtype))


def is_float(x) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def want_float(op: str, **arguments) -> None:
    """Raises InputError for the first argument that is not of a real floating dtype."""
    for name, x in arguments.items():
        if not is_float(x):
            raise InputError(f"{op}: {name} is {jnp.result_type(x)}; wants floating point: convert it with .astype")


def want_examples(op: str, x) -> None:
    """Raises InputError for an empty batch: an average over no examples is not defined."""
    if 0 in jnp.shape(x):
        raise InputError(f"{op}: the batch is empty, shape {jnp.shape(x)}; wants at least one example")


def known(x) -> np.ndarray | None:
    """The values of x where they are known, in eager calls; None inside a transformation."""
    return None if isinstance(x, jax.core.Tracer) else np.asarray(x)
