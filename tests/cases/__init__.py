"""The table of units: every op, layer and model, with an independent reference and a way to draw arguments.

A new op is one file and one row in its family's table; every property in `tests/` then holds for it, or fails.
A family has OPS, LAYERS, EXTREMES, EMPTY, MISTAKES, and `drawn`, a Hypothesis strategy of Cases.
"""

from cases import (
    activations,
    algebra,
    attention,
    collectives,
    costs,
    linear,
    models,
    norms,
    pooling,
    routing,
    sequence,
    shape,
    softmax,
)
from cases.case import Case, arrays, compiled, differentiable, each, gradient, leaves_of, random_like, sweep
from cases.costs import integer_cross_entropy, squared_error
from cases.models import BLOCK, MODELS

FAMILIES = (
    linear,
    activations,
    norms,
    softmax,
    costs,
    attention,
    pooling,
    sequence,
    routing,
    algebra,
    shape,
    collectives,
)
OPS = [case for family in FAMILIES for case in family.OPS]
LAYERS = [case for family in (*FAMILIES, models) for case in family.LAYERS]
EXTREMES = [case for family in FAMILIES for case in family.EXTREMES]
EMPTY = [case for family in FAMILIES for case in family.EMPTY]
MISTAKES = {name: mistake for family in FAMILIES for name, mistake in family.MISTAKES.items()}
CASES = [*OPS, *LAYERS, *MODELS]

__all__ = [
    "BLOCK",
    "CASES",
    "EMPTY",
    "EXTREMES",
    "FAMILIES",
    "LAYERS",
    "MISTAKES",
    "MODELS",
    "OPS",
    "Case",
    "arrays",
    "compiled",
    "differentiable",
    "each",
    "gradient",
    "integer_cross_entropy",
    "leaves_of",
    "random_like",
    "squared_error",
    "sweep",
]
