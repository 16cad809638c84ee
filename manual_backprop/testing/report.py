"""What the oracle found, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from manual_backprop.errors import InputError


@dataclass(frozen=True)
class Finding:
    """One property of one leaf, held or not.

    property: "primal in float32", "gradient in float64", "jit", "linear in the cotangent", "second derivative", …
    leaf: "y", "dx", "dparams[0]['w']", …
    arguments: on which: "as given", "dy × 1e4", "with constant rows", "drawn with seed 3"; with how many others.
    worst: the entry that exceeds its allowance most, or else errs most; there error, allowed, got and expected.
    wrong: how many entries exceed it.  kinks: at how many the reference has a kink.
    detail: what went wrong where there is no number to show.
    """

    property: str
    leaf: str
    ok: bool
    dtype: str = ""
    shape: tuple[int, ...] = ()
    error: float = 0.0
    allowed: float = 0.0
    wrong: int = 0
    worst: tuple[int, ...] = ()
    got: Any = None
    expected: Any = None
    kinks: int = 0
    detail: str = ""
    arguments: str = "as given"

    def __str__(self) -> str:
        line = f"{'ok  ' if self.ok else 'FAIL'} {self.leaf:16} {self.property:22}"
        if self.arguments != "as given":
            line += f" [{self.arguments}]"
        if self.detail:
            return f"{line} {self.detail}"
        line += f" {self.dtype}{list(self.shape)}  error {self.error:.1e}, allowed {self.allowed:.1e}"
        if 0 in self.shape:
            return line
        count = "" if self.ok else f" {self.wrong} of {int(np.prod(self.shape))} wrong,"
        line += f";{count} worst at {list(self.worst)}: got {self.got:.6g}, expected {self.expected:.6g}"
        return line + (f"; {self.kinks} at a kink, where any slope between its sides is right" if self.kinks else "")


@dataclass(frozen=True)
class Errors:
    """A cotangent beside its truth, entry by entry: what the heat map draws."""

    leaf: str
    arguments: str
    got: np.ndarray
    expected: np.ndarray
    allowed: np.ndarray


@dataclass(frozen=True)
class Explanation:
    """What is said of a failure. diagnosis: what is wrong, in words, most sure first; smallest: the smallest arguments
    that still fail; again: the line that runs it again; errors: the wrong leaves, entry by entry."""

    diagnosis: tuple[str, ...] = ()
    smallest: str = ""
    again: str = ""
    errors: tuple[Errors, ...] = ()


@dataclass(frozen=True)
class Report:
    """The verdict on one backward pass. True when every finding holds; prints one line a leaf, and what explains them.

    The explanation is sought when it is first asked for, so that a verdict alone is quick.
    """

    candidate: str
    reference: str
    seed: int
    findings: tuple[Finding, ...]
    explain: Callable[[], Explanation] = field(default=Explanation, repr=False, compare=False)

    @cached_property
    def explanation(self) -> Explanation:
        return Explanation() if self.ok else self.explain()

    @property
    def diagnosis(self) -> tuple[str, ...]:
        return self.explanation.diagnosis

    @property
    def smallest(self) -> str:
        return self.explanation.smallest

    @property
    def again(self) -> str:
        return self.explanation.again

    @property
    def errors(self) -> tuple[Errors, ...]:
        return self.explanation.errors

    @property
    def ok(self) -> bool:
        return all(finding.ok for finding in self.findings)

    def __bool__(self) -> bool:
        return self.ok

    @property
    def failures(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if not finding.ok)

    def holds(self, prefix: str) -> bool:
        """Whether every finding whose property starts so holds."""
        return all(finding.ok for finding in self.findings if finding.property.startswith(prefix))

    @property
    def primal_ok(self) -> bool:
        return self.holds("primal")

    @property
    def gradient_ok(self) -> bool:
        return self.holds("gradient")

    @property
    def structure_ok(self) -> bool:
        return all(map(self.holds, ("arity", "structure", "shape and dtype")))

    @property
    def linear_ok(self) -> bool:
        return self.holds("linear") and self.holds("zero")

    @property
    def transforms_ok(self) -> bool:
        return all(map(self.holds, ("jit", "vmap", "scan", "sharded")))

    @property
    def deterministic_ok(self) -> bool:
        return all(map(self.holds, ("deterministic", "pure")))

    @property
    def second_derivative_ok(self) -> bool:
        return self.holds("derivative of order")

    def __str__(self) -> str:
        verdict = "ok" if self.ok else f"FAIL, {len(self.failures)} of {len(self.findings)} findings"
        lines = [f"{self.candidate} against {self.reference}, seed={self.seed}: {verdict}", *map(str, self.findings)]
        lines += [f"diagnosis: {text}" for text in self.diagnosis]
        lines += [f"smallest that fails: {self.smallest}"] * bool(self.smallest)
        lines += [f"again: {self.again}"] * bool(self.again)
        return "\n  ".join(lines)

    def to_json(self) -> str:
        """The same as one JSON object; numbers that JSON does not have (nan, inf, complex) are strings."""
        findings = [
            {name: _plain(getattr(finding, name)) for name in Finding.__dataclass_fields__} for finding in self.findings
        ]
        facts = {name: getattr(self, name) for name in ("candidate", "reference", "seed", "ok", "smallest", "again")}
        return json.dumps(facts | {"diagnosis": list(self.diagnosis), "findings": findings}, indent=1)

    def heat_map(self, file: str | Path) -> None:
        """Draws error over allowance for every wrong leaf, as a PNG. Needs matplotlib.

        Raises InputError where nothing is wrong, or matplotlib is missing.
        """
        from manual_backprop.testing.picture import heat_map

        if not self.errors:
            raise InputError("heat_map: no leaf has wrong values; there is nothing to draw")
        heat_map(self, file)


def _plain(value):
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, complex) or (isinstance(value, float) and not np.isfinite(value)):
        return str(value)
    return value
