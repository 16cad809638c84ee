"""Backward passes written by hand from the chain rule, in JAX, and an oracle that judges them.

errors → options → contract → ops → layers → combinators → models → testing → inspection → training:
each imports only what is before it.
"""

from manual_backprop import combinators, inspection, layers, models, ops, testing
from manual_backprop.combinators import (
    LossScale,
    MicroBatches,
    Objective,
    Parallel,
    Penalised,
    Precision,
    Recompute,
    Repeat,
    Residual,
    Reversible,
    Serial,
    Tied,
    Truncated,
)
from manual_backprop.contract import Layer, Op, Stateless, op, value_and_grad
from manual_backprop.errors import InputError

__version__ = "0.1.0"

__all__ = [
    "InputError",
    "Layer",
    "LossScale",
    "MicroBatches",
    "Objective",
    "Op",
    "Parallel",
    "Penalised",
    "Precision",
    "Recompute",
    "Repeat",
    "Residual",
    "Reversible",
    "Serial",
    "Stateless",
    "Tied",
    "Truncated",
    "combinators",
    "inspection",
    "layers",
    "models",
    "op",
    "ops",
    "testing",
    "value_and_grad",
]
