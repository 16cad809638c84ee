"""What a diagnosis looks at: one wrong answer beside the truth, entry by entry."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from manual_backprop.testing import judge, laws
from manual_backprop.testing.leaves import largest, to_float64, to_numpy
from manual_backprop.testing.subject import Precision, Subject, answer, expected


class Scene(NamedTuple):
    """got, expect: for each leaf of the arguments, None where there is no gradient. wrong: the leaves that fail.

    args, dy: in float64. candidate(dy) and truth(dy): the cotangents for another cotangent of y, numpy, one a leaf.
    slack: what an explanation may miss by, relative to the largest entry.
    """

    on: Subject
    args: tuple
    dy: tuple  # the floating leaves of the cotangent of y
    got: list
    expect: list
    wrong: tuple[int, ...]
    candidate: Callable
    truth: Callable
    slack: float

    def name(self, i: int) -> str:
        return self.on.names[i]

    def matches(self, i: int, predicted, got=None) -> bool:
        """Whether leaf i is what a hypothesis predicts."""
        got = self.got[i] if got is None else got
        if predicted is None or np.shape(predicted) != np.shape(got):
            return False
        predicted = np.asarray(predicted)
        allowed = self.expect[i].allowed
        allowed = np.broadcast_to(np.where(np.isfinite(allowed), allowed, 0), self.expect[i].truth.shape)
        allowed = 4 * allowed if allowed.shape == predicted.shape else 4 * np.max(allowed, initial=0)
        with np.errstate(invalid="ignore"):
            return bool(np.all(np.abs(got - predicted) <= allowed + self.slack * largest([predicted])))


def scene(on: Subject, args, dy, precision: Precision, seed: int) -> Scene | None:
    """None where the candidate or the reference raises."""
    try:
        expect = expected(on, args, dy, precision, seed)
        got = _answers(on, args, dy, precision)
    except Exception:
        return None
    wrong = []
    for i, (leaf, e) in enumerate(zip(got, expect.dargs, strict=True)):
        if e is None or leaf is None:
            continue
        if not judge.compared("", "", leaf, e).ok:  # of another shape, too
            wrong.append(i)
    with jax.enable_x64(True):
        args_64, dy_64 = jax.tree.map(to_float64, (args, dy))
    tree = jax.tree.structure(dy)

    def rebuilt(leaves, like):
        return tree.unflatten(
            [np.asarray(a, np.asarray(b).dtype) for a, b in zip(leaves, jax.tree.leaves(like), strict=True)]
        )

    def candidate(leaves):
        return _answers(on, args, jax.tree.map(jax.numpy.asarray, rebuilt(leaves, dy)), precision)

    def truth(leaves):
        with jax.enable_x64(True):
            return on.vjp(args_64, jax.tree.map(jax.numpy.asarray, rebuilt(leaves, dy_64))).dargs

    slack = 1e-9 if precision.dtype == "float64" else 1e-5 if precision.dtype == "float32" else None
    if slack is None:
        eps = max(
            (
                float(np.max(e.allowed[np.isfinite(e.allowed)], initial=0)) / (largest([e.truth]) or 1)
                for e in expect.dargs
                if e is not None
            ),
            default=0,
        )
        slack = max(1e-6, min(eps, 0.02))
    flat = tuple(to_numpy(leaf) for leaf in jax.tree.leaves(dy))
    return Scene(on, args_64, flat, got, expect.dargs, tuple(wrong), candidate, truth, slack)


def _answers(on: Subject, args, dy, precision: Precision) -> list:
    _, dargs = answer(on, on.jitted, args, dy, precision)
    flat = laws.flat(on, dargs, args)
    return [to_numpy(leaf) if want and leaf is not None else None for leaf, want in zip(flat, on.wanted, strict=True)]
