"""How far the gradient of a whole objective is from autodiff's: one number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manual_backprop.contract import Layer, value_and_grad
from manual_backprop.testing.leaves import to_float64


def gradient_difference(objective: Layer, reference: Callable, params: Any, state: Any, batch: Any) -> float:
    """The largest relative difference between our ∇C and `jax.grad`'s of the reference, both in float64.

    reference(params, batch) is the cost, written independently. For each leaf: the largest absolute difference over
    the largest entry; of these the largest.
    """
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        params, batch = jax.tree.map(lambda leaf: to_float64(jnp.asarray(leaf)), (params, batch))
        _, ours = jax.jit(value_and_grad(objective))(params, state, batch)
        theirs = jax.jit(jax.grad(reference))(params, batch)
        return max(map(_relative, jax.tree.leaves(ours), jax.tree.leaves(theirs)))


def _relative(ours, theirs) -> float:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return float(np.abs(ours - theirs).max() / (np.abs(theirs).max() or 1.0))
