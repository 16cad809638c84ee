"""Every op at a real size, forward and backward, against `jax.vjp` of its reference: see also `run.py table`."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.row import Row
from cases import FAMILIES
from cases.measure import alone

from manual_backprop.testing.timing import Program


def ops() -> Iterator[Row]:
    """The first case of each op that has arguments of a real size."""
    seen = set()
    for family in FAMILIES:
        for case in family.OPS:
            if case.large is not None and case.unit.name not in seen:
                seen.add(case.unit.name)
                ours, peer = alone(case)
                yield Row(case.unit.name, "jax.vjp of the reference", ours, peer)
