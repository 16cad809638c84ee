"""PyTorch as a peer: in a process of its own, for two thread pools in one would fight; it and ours step in turns.

Equal work is checked by the costs of the first steps. Memory is what torch's allocator holds, against what XLA plans.
torch.compile works in the first step: what that takes longer than others is held against our tracing and compiling.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.row import Result, TorchTraining, peak_bytes
from manual_backprop.errors import InputError
from manual_backprop.testing.timing import Comparison, Measured, Program

SERVER = Path(__file__).parents[2] / "tests" / "peers" / "torch_gpt.py"
FIRST_STEPS = 3  # whose costs are compared
ROUND_S = 0.3
# OpenMP's threads wait for the next loop awake for so long: enough within a step, and no longer than that, for while it
# is our turn, or another program's, they would hold the cores.
WAITING = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}
NAN = float("nan")


class TorchError(Exception):
    """Why there is no row with PyTorch: the last line that it said, where it ended without an answer."""


def find_torch(python: str | None) -> str | None:
    """A Python that has PyTorch: the one named; or this one, None where it has not."""
    if python is None:
        return sys.executable if importlib.util.find_spec("torch") else None
    try:
        done = subprocess.run([python, "-c", "import numpy, torch"], capture_output=True, text=True)
    except OSError as error:
        raise InputError(f"--torch: {python!r} does not start: {error.strerror}") from None
    if done.returncode:
        raise InputError(f"--torch: {python!r} does not import PyTorch and NumPy: {_last_line(done.stderr)}")
    return python


def compare_with_torch(
    ours: Program, peer: TorchTraining, python: str, threads: int, rounds: int, tracing_rounds: int
) -> Result:
    """As `compare`. Raises TorchError where torch cannot."""
    built = [_build(ours) for _ in range(tracing_rounds)]
    compiled = built[-1].compiled
    with _started(peer, python, threads) as ask:
        sides = _stepper(ours, compiled), ask
        first = [[side(1) for side in sides] for _ in range(FIRST_STEPS)]
        costs = np.array([[answer["cost"] for answer in answers] for answers in first])
        np.testing.assert_allclose(costs[:, 0], costs[:, 1], rtol=1e-4)
        counts = [max(1, round(ROUND_S / answer["seconds"])) for answer in first[-1]]
        times = np.empty((rounds, 2))
        for turn in range(rounds):
            for side in (0, 1) if turn % 2 == 0 else (1, 0):
                times[turn, side] = sides[side](counts[side])["seconds"] / counts[side]
        report = ask("report")

    our_s, their_s = map(float, np.median(times, 0))
    temp_bytes = compiled.memory_analysis().temp_size_in_bytes
    trace_s, compile_s = (statistics.median(build[i] for build in built) for i in (1, 2))
    their_compile_s = first[0][1]["seconds"] - their_s if peer.compiled else NAN
    comparison = Comparison(
        Measured(our_s, temp_bytes, trace_s, compile_s),
        Measured(their_s, report["temp_bytes"], NAN, their_compile_s),
        step_time_ratio=float(np.median(times[:, 0] / times[:, 1])),
        temp_memory_ratio=temp_bytes / report["temp_bytes"],
        trace_ratio=NAN,
        compile_ratio=(trace_s + compile_s) / their_compile_s,
    )
    return Result(comparison, (peak_bytes(compiled), report["peak_bytes"]), report["version"])


class _Built(NamedTuple):
    compiled: Callable
    trace_s: float
    compile_s: float


def _build(program: Program) -> _Built:
    jax.clear_caches()
    gc.collect()
    start = time.perf_counter()
    traced = jax.jit(lambda *args: program.function(*args), donate_argnums=0).trace(*program.args)
    middle = time.perf_counter()
    return _Built(traced.lower().compile(), middle - start, time.perf_counter() - middle)


def _stepper(program: Program, compiled) -> Callable[[int], dict]:
    """What steps as often as it is asked to, and answers as torch's process does."""
    training, *batch = program.args
    training = jax.tree.map(lambda leaf: leaf.copy(), training)

    def steps(n):
        nonlocal training
        start = time.perf_counter()
        for _ in range(n):
            training, cost = compiled(training, *batch)
        jax.block_until_ready(training)
        return {"seconds": time.perf_counter() - start, "cost": float(cost)}

    return steps


@contextmanager
def _started(peer: TorchTraining, python: str, threads: int) -> Iterator[Callable[[object], dict]]:
    """A function that asks torch's process; which ends with the block, and with this process."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        start, errors = Path(folder, "start.npz"), Path(folder, "errors")
        np.savez(start, **peer.start)
        command = [python, str(SERVER), str(start), "compile" if peer.compiled else "eager", str(threads)]
        env = WAITING | os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(Path(folder, "compiled"))}  # nothing compiled yet
        pipe = subprocess.PIPE
        with (
            open(errors, "w") as file,
            subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=file, text=True, env=env) as process,
        ):

            def ask(request):
                try:
                    os.write(process.stdin.fileno(), f"{request}\n".encode())
                    return json.loads(process.stdout.readline())
                except (BrokenPipeError, json.JSONDecodeError):
                    raise TorchError(_last_line(errors.read_text())) from None

            try:
                yield ask
            except BaseException:
                process.kill()
                raise


def _last_line(text: str) -> str:
    return (text.strip() or "without a word").splitlines()[-1]
