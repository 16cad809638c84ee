"""How sharply a candidate can be judged: in float64 where it computes in it, else in a precision of its own.

A kernel that rounds to float32 inside is not wrong to 1e-10; its own precision decides, and the report says what that
cannot see.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from manual_backprop.testing import judge, laws
from manual_backprop.testing.jaxprs import Rounding, roundings
from manual_backprop.testing.leaves import largest, to_numpy, ulp
from manual_backprop.testing.report import Finding
from manual_backprop.testing.subject import (
    FLOAT64,
    Precision,
    Subject,
    answer,
    expected,
    rougher_than_float32,
    softened,
)
from manual_backprop.testing.trials import Trial
from manual_backprop.testing.truth import Leaves


class Sight(NamedTuple):
    """Which leaves of y and of the cotangents are judged in the sharper precision; the others round inside.

    eps: of the lowest precision that the candidate rounds to inside, 0 where it rounds to none.
    """

    y: tuple[bool, ...]
    dargs: tuple[bool, ...]
    eps: float

    def blurs(self, finding: Finding) -> bool:
        """Whether what is found may be that rounding."""
        if finding.ok or finding.detail or not self.eps:
            return False
        return finding.error <= 64 * self.eps * largest([np.asarray(finding.expected), np.asarray(finding.got)])


def sharper(on: Subject, given: Trial, own, in_64, in_own, seed) -> tuple[Precision, Sight | None, list[Finding]]:
    """The sharpest precision that the candidate computes in, what it decides, and the findings there."""
    coarse = [Precision("float32", "float32")] if rougher_than_float32(given.args, on.wanted) else []
    kept: list[Finding] = []
    for precision in (FLOAT64, *coarse):
        expect = in_64 if precision is FLOAT64 else expected(on, given.args, given.dy, precision, seed)
        try:
            y, dargs = answer(on, on.jitted, given.args, given.dy, precision)
        except Exception as error:
            kept = [_blind("cotangents", f"it raised {type(error).__name__} in {precision.name}", in_own, on)]
            continue
        rounding = _rounded_inside(on, given, precision)
        dargs = laws.flat(on, dargs, given.args)
        y = jax.tree.leaves(y)
        found = list(judge.values(on.names, y, dargs, expect, precision.name))
        if judge.is_slight(found, expect, precision.name):
            expect = softened(on, given.args, given.dy, precision, expect)
            found = list(judge.values(on.names, y, dargs, expect, precision.name))
        y_names = judge.y_names(len(y))
        values = dict(zip((*y_names, *on.names), (*y, *dargs), strict=True))
        blind = {
            name: f"it answers in {value.dtype}"
            for name, value in values.items()
            if precision is FLOAT64 and judge.is_narrow(value)
        }
        for finding in found:
            if finding.leaf not in blind and not finding.ok:
                why = _excuse(values.get(finding.leaf), rounding.get(finding.leaf), finding, precision)
                blind |= {finding.leaf: why} if why else {}
        sees = Sight(
            tuple(name not in blind for name in y_names),
            tuple(name not in blind for name in on.names),
            max((found.eps for found in rounding.values()), default=0.0),
        )
        notes = [_blind(leaf, why, in_own, on) for leaf, why in blind.items()]
        kept = [finding for finding in found if finding.leaf not in blind] + notes
        if any(want and see for want, see in zip(on.wanted, sees.dargs, strict=True)):
            return precision, sees, kept
    return own, None, kept


def _rounded_inside(on: Subject, given: Trial, precision: Precision) -> dict[str, Rounding]:
    """By leaf, what rounds to a lower precision on the way to it."""

    def run(args, dy):
        y, dargs = on.run(args, dy)
        return jax.tree.leaves(y), [d for d in laws.flat(on, dargs, args) if d is not None]

    with precision.context():
        args, dy = precision((given.args, given.dy))
        found = roundings(jax.make_jaxpr(run)(args, dy))
        y, dargs = jax.eval_shape(on.run, args, dy)
    names = judge.y_names(len(jax.tree.leaves(y)))
    names += [name for name, d in zip(on.names, laws.flat(on, dargs, args), strict=True) if d is not None]
    return {name: one for name, one in zip(names, found, strict=True) if one is not None}


def _excuse(value, rounding, finding: Finding, precision: Precision) -> str | None:
    """Why a finding in a sharper precision than the candidate's own says nothing."""
    if value is None or finding.detail:
        return None
    size = largest([np.asarray(finding.expected), to_numpy(value)])
    least = 0.0 if rounding is None else np.inf if rounding.eps > ulp("float32") else 64 * rounding.eps * size
    if finding.error <= least:
        return f"it rounds inside, to {rounding}"
    if precision is FLOAT64 and judge.is_rounded(value) and finding.error <= 1e-3 * size:
        return "its values are rounded to a lower precision"
    return None


def _blind(leaf: str, why: str, in_own: Leaves, on: Subject) -> Finding:
    """A leaf that its own precision alone decides, and how small a mistake that cannot see."""
    expects = dict(zip(on.names, in_own.dargs, strict=True))
    chosen = [expects[leaf]] if leaf in expects else [*expects.values()] if leaf == "cotangents" else in_own.y
    shares = [
        largest([np.where(np.isfinite(e.allowed), e.allowed, 0)]) / (largest([e.truth]) or 1.0)
        for e in chosen
        if e is not None
    ]
    below = f"undecidable below {max(shares, default=0.0):.0e} of the largest entry"
    detail = f"judged in its own precision alone, not in float64: {why}; {below}"
    return Finding("float64", leaf, True, detail=detail)


def seen(expect: Leaves, sight: Sight | None, precision: Precision) -> Leaves:
    """Without what the sharper precision cannot decide."""
    if sight is None or precision.dtype is None:
        return expect
    blind = lambda e: None if e is None else e._replace(allowed=np.full(e.truth.shape, np.inf), sums=())
    y = [e if sees else blind(e) for e, sees in zip(expect.y, sight.y, strict=True)]
    return expect._replace(
        y=y, dargs=[e if sees else blind(e) for e, sees in zip(expect.dargs, sight.dargs, strict=True)]
    )
