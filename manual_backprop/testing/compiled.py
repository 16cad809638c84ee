"""Programs that run a few dozen times are compiled quickly rather than well."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

FLAGS = (  # those that this version of XLA knows, of the first row that it knows whole
    {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
        "xla_cpu_use_fusion_emitters": False,
    },
    {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
)


def quickly(function: Callable) -> Callable:
    """`jax.jit`, a few times quicker to compile on a CPU."""
    return jax.jit(function, compiler_options=_flags(jax.default_backend()))


@functools.cache
def _flags(backend: str) -> dict | None:
    if backend != "cpu":
        return None
    for flags in FLAGS:
        try:
            jax.jit(lambda x: x + 1, compiler_options=flags).lower(jnp.zeros(())).compile()
        except Exception:  # an XLA that does not know one of them
            continue
        return flags
    return None
