"""One edit of the candidate's own backward pass that makes it right: what to change, and in which line.

The candidate's equations are carried out again with one operand, or one value wherever it is used, replaced by another
array: itself flipped, moved, transposed or squared; another value of its own or of the reference's way, alone or as a
factor. Where an operand stands is a number to the compiled program, and what replaces it is data, so a program for each
shape tries thousands of edits in a second. Reductions along other axes and changed constants, which come in twos and
threes, are tried one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from manual_backprop.testing.compiled import quickly
from manual_backprop.testing.diagnosis.alternatives import Alternative, alternatives
from manual_backprop.testing.diagnosis.constants import constants
from manual_backprop.testing.diagnosis.reductions import reductions
from manual_backprop.testing.diagnosis.run import Run, program, run_of
from manual_backprop.testing.diagnosis.scene import Scene

MOST = 4_000_000  # numbers that the alternatives of one shape may have together


def repairs(first: Scene, second: Scene | None) -> Iterator[tuple[float, str, bool]]:
    """(how plain, sentence, whether the second cotangent agrees) for every edit that gives the truth, in every leaf."""
    with jax.enable_x64(True):
        closed = program(first)
        if closed is None:
            return
        run = run_of(first, closed)
        again = None if second is None else run_of(second, closed)
        found = list(_of_operands(run, again))
        yield from found
        for source in (reductions, constants) if not found else ():
            for rank, text, edit in source(run):
                yield rank, text, again is not None and again.right(edit)


def _of_operands(run: Run, again: Run | None) -> Iterator[tuple[float, str, bool]]:
    by_shape: dict = {}
    for one in alternatives(run):
        by_shape.setdefault((np.shape(one.of(run)), one.operand.dtype), []).append(one)
    for (shape, dtype), tried in by_shape.items():
        tried = tried[: max(1, MOST // max(1, int(np.prod(shape))))]
        fits = _fits(run, shape, dtype)
        kept = [one for one, right in zip(tried, fits(run, tried), strict=True) if right]
        sure = [False] * len(kept) if again is None else fits(again, kept)
        for one, agrees in zip(kept, sure, strict=True):
            yield one.rank, one.text, bool(agrees)


def _fits(run: Run, shape, dtype) -> Callable[[Run, list[Alternative]], list[bool]]:
    """(run, alternatives of one shape) -> which make every leaf the truth."""
    operands = [operand for operand in run.operands if operand.fits(shape, dtype)]
    places = {operand.place: n for n, operand in enumerate(operands)}
    keys = {key: n for n, key in enumerate(dict.fromkeys(operand.key for operand in operands))}
    key_of = {operand.place: keys[operand.key] for operand in operands}

    def right(flat, truths, allowed, place, key, new):
        def edit(p, equation, value):
            if p not in places:
                return value
            return jnp.where((place == places[p]) | (key == key_of[p]), new, value)

        misses = zip(run.results(flat, edit), truths, allowed, strict=True)
        return jnp.all(jnp.stack([jnp.all(jnp.abs(got - truth) <= most) for got, truth, most in misses]))

    compiled = quickly(
        lambda flat, truths, allowed, rows: jax.lax.map(lambda row: right(flat, truths, allowed, *row), rows)
    )

    def fits(run: Run, tried: list[Alternative]) -> list[bool]:
        if not tried:
            return []
        rows = (
            jnp.asarray([-1 if one.everywhere else places[one.operand.place] for one in tried]),
            jnp.asarray([keys[one.operand.key] if one.everywhere else -1 for one in tried]),
            jnp.asarray(np.stack([np.broadcast_to(one.of(run), shape) for one in tried]), dtype),
        )
        truths, allowed = run.wanted()
        return list(np.asarray(compiled(run.flat, truths, allowed, rows)))

    return fits
