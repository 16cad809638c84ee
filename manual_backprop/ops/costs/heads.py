"""A slice of the logits of `linear_cross_entropy`, its costs, and its derivative."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.ops.arrays import wide_dtype
from manual_backprop.ops.costs.reduction import unless_masked


class Head(NamedTuple):
    """The options that a slice depends on."""

    classes: int
    label_smoothing: float
    z_loss: float
    softcap: float | None
