"""Objectives whose gradient is there when the forward pass ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from manual_backprop.contract import Layer


class Gradient(NamedTuple):
    dparams: Any  # for dC = 1
    of_batch: Any  # None for each of its leaves


@dataclass(frozen=True, repr=False)
class GradientAhead(Layer):
    """The base of objectives that go backward in their forward pass: `backward` is dC · ∂C/∂w, None for the batch.

    A subclass's forward pass gives `ahead(dparams, batch)` as its residuals.
    """

    def backward(self, params, residuals, dy):
        return jax.tree.map(lambda d: (dy * d).astype(d.dtype), residuals.dparams), residuals.of_batch


def ahead(dparams, batch) -> Gradient:
    return Gradient(dparams, jax.tree.map(lambda leaf: None, batch))
