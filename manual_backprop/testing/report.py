"""What the oracle found, for people: one line a leaf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Finding:
    """One property of one leaf, held or not.

    property: "primal in float32", "gradient in float64", "jit = eager, float32", "arity", "structure", "runs", …
    leaf: "y", "dx", "dparams[0]['w']", …
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

    def __str__(self) -> str:
        line = f"{'ok  ' if self.ok else 'FAIL'} {self.leaf:16} {self.property:22}"
        if self.detail:
            return f"{line} {self.detail}"
        line += f" {self.dtype}{list(self.shape)}  error {self.error:.1e}, allowed {self.allowed:.1e}"
        if 0 in self.shape:
            return line
        count = "" if self.ok else f" {self.wrong} of {int(np.prod(self.shape))} wrong,"
        line += f";{count} worst at {list(self.worst)}: got {self.got:.6g}, expected {self.expected:.6g}"
        return line + (f"; {self.kinks} at a kink, where any slope between its sides is right" if self.kinks else "")


@dataclass(frozen=True)
class Report:
    """The verdict on one backward pass. True when every finding holds; prints one line a leaf."""

    candidate: str
    reference: str
    seed: int
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return all(finding.ok for finding in self.findings)

    def __bool__(self) -> bool:
        return self.ok

    @property
    def failures(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if not finding.ok)

    @property
    def primal_ok(self) -> bool:
        return all(finding.ok for finding in self.findings if finding.property.startswith("primal"))

    def __str__(self) -> str:
        verdict = "ok" if self.ok else f"FAIL, {len(self.failures)} of {len(self.findings)} findings"
        head = f"{self.candidate} against {self.reference}, seed={self.seed}: {verdict}"
        return "\n  ".join([head, *map(str, self.findings)])
