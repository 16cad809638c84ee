"""A line of the benchmark: two programs that do the same work."""

from __future__ import annotations

from typing import NamedTuple

from manual_backprop.testing.timing import Program


class Row(NamedTuple):
    """flops: of the matrix products of one call, where the share of the machine's limit is to be told."""

    title: str
    peer_name: str
    ours: Program
    peer: Program
    flops: float | None = None
