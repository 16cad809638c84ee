"""What may stand in place of an operand: the mistakes of one place, undone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from manual_backprop.testing.diagnosis.run import Operand, Run


class Alternative(NamedTuple):
    """of(run): the array to put in place of an operand, or of its value everywhere. rank: how plain, 1 the plainest."""

    operand: Operand
    everywhere: bool
    of: Callable[[Run], Any]
    rank: float
    text: str


def alternatives(run: Run) -> Iterator[Alternative]:
    """Every edit of one operand, and of one value."""
    operands = [operand for operand in run.operands if not operand.literal]
    numbers = {id(operand): n for n, operand in enumerate(operands)}
    values = list({operand.key: operand for operand in operands}.values())
    uses = [operand.key for operand in operands]
    theirs = [(text, np.asarray(value)) for text, value in run.reference]
    for value in values:
        if value.maker is not None and value.array.ndim and not any(same(value.array, right) for _, right in theirs):
            yield from _as_the_reference(run, value, theirs)
    for operand in operands:
        which = (
            f"operand {operand.place.operand + 1} of {operand.equation.primitive.name} in {run.said(operand.equation)}"
        )
        several = uses.count(operand.key) > 1
        for rank, change, text in changes(operand.array):
            yield Alternative(
                operand, False, _changed(numbers[id(operand)], change), rank,
                f"one edit away, in one term: right with {which} {text}",
            )  # fmt: skip
            if several and operand in values and text.startswith(MOVED):
                yield Alternative(
                    operand, True, _changed(numbers[id(operand)], change), rank + 0.05,
                    f"one edit away: right with {_what(run, operand)} {text}, wherever it is used",
                )  # fmt: skip
        yield from _by_others(run, operand, numbers[id(operand)], values, which)


MOVED = ("reversed", "moved", "transposed")


def changes(value) -> Iterator[tuple[float, Callable, str]]:
    """(rank, change, what it is) of an operand alone."""
    yield 1.0, lambda v: -v, "negated: a sign is flipped"
    yield 1.2, jnp.ones_like, "replaced by one: a factor too much"
    yield 1.2, jnp.zeros_like, "replaced by zero: a term too much"
    yield 1.6, lambda v: v * v, "replaced by its square: a power is missing"
    for axis in range(value.ndim):
        if value.shape[axis] > 1:
            yield 1.5, lambda v, axis=axis: jnp.flip(v, axis), f"reversed (flipped) along axis {axis}"
            for step in (1, -1):
                shift = lambda v, axis=axis, step=step: jnp.roll(v, step, axis)
                yield 1.5, shift, f"moved by {step} along axis {axis}: it is shifted, off by one"
    if value.ndim >= 2 and value.shape[-1] == value.shape[-2] > 1:
        yield 1.4, lambda v: jnp.swapaxes(v, -1, -2), "transposed"


def _changed(number: int, change: Callable) -> Callable:
    """The same operand of whichever run, changed."""
    return lambda run: change([operand for operand in run.operands if not operand.literal][number].array)


def _as_the_reference(run: Run, value: Operand, theirs) -> Iterator[Alternative]:
    """A value that the reference does not compute, replaced by one that it does."""
    wrong = f"wrong residual, or a wrong operand: right with {_what(run, value)} replaced by the reference's"
    for n, (text, right) in enumerate(theirs):
        if right.shape == value.array.shape and right.dtype == value.dtype:
            masked = _masked(value.array, right)
            rank = 1.3 if masked else 1.4
            yield Alternative(value, True, lambda run, n=n: run.reference[n][1], rank, f"{wrong} {text}{masked}")


def _by_others(run: Run, operand: Operand, number: int, values: list[Operand], which: str) -> Iterator[Alternative]:
    """Replaced by, or multiplied by, another value of its shape."""
    if not operand.array.ndim:
        return
    mine = [operand_ for operand_ in run.operands if not operand_.literal]
    place = {id(one): n for n, one in enumerate(mine)}
    at = lambda run, n: [one for one in run.operands if not one.literal][n].array
    for other in values:
        if other.key == operand.key or not operand.fits(other.array.shape, other.dtype):
            continue
        if np.array_equal(other.array, operand.array):
            continue
        n, what = place[id(other)], _what(run, other)
        replaced = f"replaced by {what}{_masked(operand.array, other.array)}"
        wrong = "one edit away: a term has a wrong operand, or a wrong residual: right with"
        yield Alternative(operand, False, lambda run, n=n: at(run, n), 1.5, f"{wrong} {which} {replaced}")
        yield Alternative(
            operand, False, lambda run, n=n: at(run, number) * at(run, n), 1.7,
            f"one edit away: a factor is missing in one term: right with {which} multiplied by {what}",
        )  # fmt: skip


def _what(run: Run, operand: Operand) -> str:
    return "an argument" if operand.maker is None else run.said(operand.maker)


def same(a, b) -> bool:
    return np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=1e-9, atol=1e-12)


def _masked(value, other) -> str:
    """Says so where the two differ in entries that a mask makes very small."""
    lowest = min(float(jnp.min(jnp.nan_to_num(jnp.real(v), neginf=-1e300))) for v in (value, other))
    return " (one of the two is masked)" if lowest < -1e4 else ""
