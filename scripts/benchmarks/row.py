"""A line of the benchmark: two programs that do the same work, and what was measured of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from manual_backprop.testing.timing import Comparison, Program


class TorchTraining(NamedTuple):
    """What tests/peers/torch_gpt.py starts with, and whether torch.compile compiles it."""

    start: dict[str, np.ndarray]
    compiled: bool


class Row(NamedTuple):
    """flops: of the matrix products of one call, where the share of the machine's limit is to be told."""

    title: str
    peer_name: str
    ours: Program
    peer: Program | TorchTraining
    flops: float | None = None


class Result(NamedTuple):
    """peak_bytes: of ours and the peer, all that a call holds at most, its arguments and results with it.

    What a side does not have, or cannot tell, is nan.
    """

    comparison: Comparison
    peak_bytes: tuple[int, int]
    torch: str | None = None  # its version


def peak_bytes(compiled) -> int:
    """As the compiler plans it."""
    plan = compiled.memory_analysis()
    stays = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return stays + plan.temp_size_in_bytes
