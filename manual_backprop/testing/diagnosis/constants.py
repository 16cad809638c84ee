"""Numbers that are off: a constant, or a factor of one term, fitted so that all becomes right."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from manual_backprop.testing.diagnosis.factors import named
from manual_backprop.testing.diagnosis.run import Operand, Run
from manual_backprop.testing.leaves import to_numpy

SCALED = ("add", "add_any", "sub", "mul", "div", "neg", "max", "min", "pow", "integer_pow", "exp", "select_n",
          "dot_general")  # fmt: skip
SECONDS = 3.0


def constants(run: Run) -> Iterator[tuple[float, str, Callable]]:
    """(rank, sentence, edit) for every number that makes the run right: first those that stand in several places."""
    literals: dict = {}
    for operand in run.operands:
        if operand.literal and operand.array.ndim == 0 and float(operand.array) != 0:
            literals.setdefault(float(operand.array), []).append(operand)
    for number, uses in literals.items():
        if len(uses) > 1:
            yield from _fitting(run, uses, f"the constant {number:.10g}, in {len(uses)} places,")
    deadline = time.monotonic() + SECONDS
    for operand in reversed(run.operands):
        if time.monotonic() > deadline:
            return
        if operand.equation.primitive.name in SCALED:
            name = operand.equation.primitive.name
            yield from _fitting(run, [operand], f"operand {operand.place.operand + 1} of {name}")


def _fitting(run: Run, operands: list[Operand], which: str) -> Iterator[tuple[float, str, Callable]]:
    places = frozenset(operand.place for operand in operands)
    factor = _fitted(run, places)
    if factor is None:
        return
    edit, first = _times(places, factor), operands[0]
    which = f"{which} in {run.said(first.equation)}"
    if first.literal and first.array.ndim == 0:
        value = float(first.array)
        change = f"the constant {value:.10g} changed to {value * factor:.10g}"
        yield 2.0, f"a constant is changed: one edit away, right with {which} {change}", edit
    else:
        change = f"multiplied by the constant factor {named(factor, run.scene)}"
        yield 2.0, f"a term has a wrong factor: one edit away, right with {which} {change}", edit


def _times(places: frozenset, factor) -> Callable:
    return lambda place, equation, value: value * factor if place in places else value


def _fitted(run: Run, places: frozenset) -> float | None:
    """The number c for which c · operand makes all right: by a few steps of the secant method."""
    target = np.concatenate([run.scene.expect[i].truth.ravel() for i in run.leaves])

    def miss(c):
        results = run.results(run.flat, _times(places, c))
        return np.concatenate([np.ravel(to_numpy(result)) for result in results]) - target

    a, b = 1.0, 1.01
    at_a, at_b = miss(a), miss(b)
    for _ in range(16):
        slope = (at_b - at_a) / (b - a)
        size = np.sum(np.abs(slope) ** 2)
        if not size or not np.isfinite(size):
            return None
        step = float(np.real(np.sum(at_b * np.conj(slope))) / size)
        a, at_a, b = b, at_b, b - step
        at_b = miss(b)
        if not np.sum(np.abs(at_b) ** 2) <= 0.9 * np.sum(np.abs(at_a) ** 2) or b == a:
            break
    return b if abs(b - 1) > 1e-12 and run.right(_times(places, b)) else None
