"""Every op at a real size, forward and backward, against `jax.vjp` of its reference: see also `run.py table`."""

from __future__ import annotations

from collections.abc import Iterator

import jax

from benchmarks.row import Row
from manual_backprop.testing.timing import Program


def ops() -> Iterator[Row]:
    """The first case of each op that has arguments of a real size."""
    from cases import FAMILIES, random_like  # not before: they make arrays, and the backend starts with the first
    from cases.measure import alone

    seen = set()
    for family in FAMILIES:
        for case in family.OPS:
            if case.large is not None and case.unit.name not in seen:
                seen.add(case.unit.name)
                args = case._replace(draw=case.large).args()
                inputs = args, random_like(jax.eval_shape(case.reference, *args), seed=1)
                ours, peer = alone(case, *inputs)
                yield Row(case.unit.name, "jax.vjp of the reference", Program(ours, inputs), Program(peer, inputs))
