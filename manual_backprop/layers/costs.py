"""Costs with parameters."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from manual_backprop import ops
from manual_backprop.contract import Op
from manual_backprop.errors import InputError, want_count
from manual_backprop.layers.base import Initializer, OpLayer, vectors

by_row = jax.nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)


@dataclass(frozen=True, repr=False)
class LinearCrossEntropy(OpLayer):
    """The head of a classifier and its cost in one: (hidden [..., d], labels [...]) → C, with weight [classes, d].

    A cost for `Objective`; `weights=True` takes (hidden, labels, weights). The op: `ops.linear_cross_entropy`.
    """

    classes: int
    gradients: str = "forward"
    chunk: int = 1024
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    ignored: int | None = None
    softcap: float | None = None
    weights: bool = False
    reduction: str = "mean"
    weight_init: Initializer = by_row

    def __post_init__(self):
        object.__setattr__(self, "classes", want_count("LinearCrossEntropy: classes", self.classes))
        super().__post_init__()

    @property
    def op(self) -> Op:
        names = ("gradients", "chunk", "label_smoothing", "z_loss", "ignored", "softcap", "weights", "reduction")
        return ops.linear_cross_entropy(**{name: getattr(self, name) for name in names})

    def parameters(self, key, x):
        if not isinstance(x, tuple) or len(x) != 2 + self.weights:
            got = f"a tuple of {len(x)}" if isinstance(x, tuple) else f"a {type(x).__name__}"
            wants = "a tuple (hidden, labels, weights)" if self.weights else "a tuple (hidden, labels)"
            raise InputError(f"LinearCrossEntropy: x is {got}; wants {wants}")
        shape, dtype = vectors("LinearCrossEntropy", x[0])
        return {"weight": self.weight_init(key, (self.classes, shape[-1]), dtype)}
