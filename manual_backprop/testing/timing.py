"""Two functions timed side by side: both jitted, called in turns in one process, and compared round by round.

A machine's speed drifts; the ratio of two neighbours in time does not. Medians are over the rounds.
Memory is what the compiler plans: `memory_analysis().temp_size_in_bytes`, everything but arguments and results.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Program(NamedTuple):
    """A function and its arguments. `donate`: the first is a state, replaced by the first result of each call."""

    function: Callable
    args: tuple
    donate: bool = False


class Measured(NamedTuple):
    step_s: float  # median seconds of one call
    temp_bytes: int
    trace_s: float  # nan unless measured
    compile_s: float


class Comparison(NamedTuple):
    ours: Measured
    peer: Measured
    step_time_ratio: float  # each ratio is ours over peer
    temp_memory_ratio: float
    trace_ratio: float
    compile_ratio: float


def compare(
    ours: Program, peer: Program, *, rounds: int = 21, tracing_rounds: int = 0, round_s: float = 0.02
) -> Comparison:
    """Times `ours` against `peer`.

    rounds: of step times, each long enough to fill `round_s` seconds.  tracing_rounds: of tracing and compiling, with
    every cache cleared before each (0: not measured, nan).
    """
    programs = ours, peer
    built = [_build(program) for _ in range(tracing_rounds) for program in programs]
    traced = [row.trace_s for row in built]
    compiled = [row.compile_s for row in built]
    last = built[-2:] if built else [_build(program, clear=False) for program in programs]
    calls = [_caller(program, row.compiled) for program, row in zip(programs, last, strict=True)]
    counts = [_calls_to_fill(call, round_s) for call in calls]
    times: tuple[list, list] = ([], [])
    for turn in range(rounds):
        for side in (0, 1) if turn % 2 == 0 else (1, 0):
            start = time.perf_counter()
            calls[side](counts[side])
            times[side].append((time.perf_counter() - start) / counts[side])
    temp = [row.compiled.memory_analysis().temp_size_in_bytes for row in last]
    measured = [
        Measured(statistics.median(times[side]), temp[side], _median(traced[side::2]), _median(compiled[side::2]))
        for side in (0, 1)
    ]
    return Comparison(
        *measured,
        step_time_ratio=_median([a / b for a, b in zip(*times, strict=True)]),
        temp_memory_ratio=temp[0] / temp[1] if temp[1] else (1.0 if temp[0] == 0 else float("inf")),
        trace_ratio=_median([a / b for a, b in zip(traced[::2], traced[1::2], strict=True)]),
        compile_ratio=_median([a / b for a, b in zip(compiled[::2], compiled[1::2], strict=True)]),
    )


class _Built(NamedTuple):
    compiled: Any
    trace_s: float
    compile_s: float


def _build(program: Program, clear: bool = True) -> _Built:
    """Traces and compiles anew: a fresh function object, and on request empty caches, so that nothing is remembered."""
    if clear:
        jax.clear_caches()
        gc.collect()
    jitted = jax.jit(lambda *args: program.function(*args), donate_argnums=(0,) if program.donate else ())
    start = time.perf_counter()
    traced = jitted.trace(*program.args)
    middle = time.perf_counter()
    compiled = traced.lower().compile()
    return _Built(compiled, middle - start, time.perf_counter() - middle)


def _caller(program: Program, compiled) -> Callable[[int], None]:
    if not program.donate:

        def call(n):
            for _ in range(n):
                jax.block_until_ready(compiled(*program.args))

        return call

    first, *rest = program.args
    state = [jax.tree.map(lambda leaf: leaf.copy(), first)]

    def call_with_state(n):
        for _ in range(n):
            state[0], *_ = compiled(state[0], *rest)
        jax.block_until_ready(state[0])

    return call_with_state


def _calls_to_fill(call, seconds: float) -> int:
    call(1)
    start = time.perf_counter()
    call(3)
    return max(1, round(3 * seconds / (time.perf_counter() - start)))


def _median(values) -> float:
    return statistics.median(values) if values else float("nan")
