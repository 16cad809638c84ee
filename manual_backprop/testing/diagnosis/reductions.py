"""Sums and means along wrong axes: all that are along the same ones, put right together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import jax.numpy as jnp
import numpy as np

from manual_backprop.testing.diagnosis.run import Operand, Run

MOST_AXES = 4


def reductions(run: Run) -> Iterator[tuple[float, str, Callable]]:
    """(rank, sentence, edit) for every other choice of axes that makes the run right."""
    found: dict = {}
    for operand in run.operands:
        for axes, mean, of in _reduced(run, operand):
            found.setdefault((axes, mean, of.array.shape), {}).setdefault(operand.key, (operand, of))
    for (axes, mean, shape), group in found.items():
        for others, as_mean in _choices(axes, mean, shape):
            for keys in {tuple(group), *((key,) for key in group)}:
                chosen = {key: group[key][1].key for key in keys}
                edit = _reducing(chosen, others, as_mean)
                if run.right(edit):
                    first = group[keys[0]][0]
                    yield 1.3, _sentence(run, first, (axes, mean), (others, as_mean), len(keys)), edit


def _reduced(run: Run, operand: Operand) -> Iterator[tuple[tuple[int, ...], bool, Operand]]:
    """Of which value, along which axes, an operand is the sum or the mean, kept as axes of size 1 or copied along."""
    if operand.literal or operand.maker is None:
        return
    value = np.asarray(operand.array)
    for of in {one.key: one for one in run.operands if not one.literal and 2 <= one.array.ndim <= MOST_AXES}.values():
        whole = np.asarray(of.array)
        if whole.ndim != value.ndim or of.key == operand.key or whole.dtype != value.dtype:
            continue
        for axes in _subsets(whole.ndim):
            n = np.prod([whole.shape[a] for a in axes])
            if n == 1 or any(
                value.shape[a] not in ((1,) if a in axes else ()) + (whole.shape[a],) for a in range(value.ndim)
            ):
                continue
            total = whole.sum(axes, keepdims=True)
            for mean, reduced in ((False, total), (True, total / n)):
                full = np.broadcast_to(reduced, np.broadcast_shapes(reduced.shape, value.shape))
                if full.shape == value.shape and np.allclose(full, value, rtol=1e-9, atol=0) and value.any():
                    yield axes, mean, of


def _subsets(ndim: int) -> Iterator[tuple[int, ...]]:
    for count in range(1, ndim + 1):
        yield from itertools.combinations(range(ndim), count)


def _choices(axes, mean: bool, shape) -> Iterator[tuple[tuple[int, ...], bool]]:
    for others in _subsets(len(shape)):
        for as_mean in (mean, not mean):
            if (others, as_mean) != (axes, mean):
                yield others, as_mean


def _reducing(chosen: dict, axes, mean: bool) -> Callable:
    """The edit that puts other sums, of the same run's values, in place of these."""
    seen: dict = {}

    def edit(place, equation, value):
        key = (place.path[:-1], id(equation.invars[place.operand]))
        if key not in chosen:
            seen[key] = value
            return value
        of = seen.get(chosen[key])
        if of is None:
            return value
        new = (jnp.mean if mean else jnp.sum)(of, axes, keepdims=True)
        return jnp.broadcast_to(new, of.shape) if new.shape != value.shape else new

    return edit


def _sentence(run: Run, operand: Operand, was, ought, count: int) -> str:
    (axes, mean), (others, as_mean) = was, ought
    named = lambda mean, axes: f"the {'mean' if mean else 'sum'} over axis {' and '.join(map(str, axes))}"
    where = run.said(operand.maker)
    terms = "in one term" if count == 1 else f"in {count} terms"
    return (
        f"wrong axis: one edit away, {terms}: right with {named(as_mean, others)} where the candidate has "
        f"{named(mean, axes)}, in {where}"
    )
