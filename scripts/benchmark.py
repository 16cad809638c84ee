"""Our backward passes against autodiff's and PyTorch's: `python3 scripts/run.py benchmark [mlp] [gpt] … [--help]`.

Both sides do the same work, checked by equal results, and run in turns. Prints ratios ours / peer.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import manual_backprop as mb
from benchmarks import BENCHMARKS
from benchmarks.pytorch import TorchError, compare_with_torch, find_torch
from benchmarks.row import Result, Row, TorchTraining, peak_bytes
from manual_backprop.errors import choose, want_count
from manual_backprop.testing.timing import Comparison, Program, compare
from manual_backprop.training.devices import matmul_rate

RATIOS = ("step_time_ratio", "temp_memory_ratio", "trace_ratio", "compile_ratio")
ROUNDS = {"gpt": 21, "schedules": 21, "images": 11, "sequence": 21, "ops": 41}  # where a step takes long
SECONDS_QUICK = 45  # within which a quick look ends, unless a row takes much longer than the one before


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise mb.InputError(f"benchmark: {message}")


def main() -> None:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("benchmark", nargs="*", help=f"{', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--json", metavar="FILE", help="write the rows there too, as they come")
    parser.add_argument("--quick", action="store_true", help="few rounds and rows, in a minute: a look, not a result")
    parser.add_argument("--threads", metavar="N", type=int, help="confine both sides to N cores; default: all")
    parser.add_argument("--torch", metavar="PYTHON", help="a Python that has PyTorch; default: this one, if it has")
    options = parser.parse_args()

    begin = time.monotonic()
    chosen = {name: choose("benchmark", name, BENCHMARKS) for name in options.benchmark or BENCHMARKS}
    cores = confined_to(options.threads)
    python = find_torch(options.torch)
    save = saver(options.json)
    machine = f"{jax.devices()[0].device_kind}, {processor()}, {cores} {'core' if cores == 1 else 'cores'}"
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    print(f"jax {jax.__version__}, Python {platform.python_version()}, {machine}, load {load}; medians, ours / peer")
    print(f"{'':88} {'step':>6} {'memory':>6} {'trace':>6} {'compile':>7} {'step ms':>9} {'temp MB':>8} {'limit':>6}")
    for number, (name, rows_of) in enumerate(chosen.items(), 1):
        until = begin + SECONDS_QUICK * number / len(chosen) if options.quick else math.inf
        told, took = set(), 0.0
        for row in rows_of():
            if time.monotonic() + took > until:
                print(f"{name}: the minute is over; the rest without --quick")
                break
            start = time.monotonic()
            try:
                result = measured(name, row, python, cores, options.quick)
            except TorchError as error:
                if str(error) not in told:  # once, not for every row
                    print(f"{name}: left out: {error}")
                told.add(str(error))
                continue
            limit = None
            if row.flops is not None:
                limit = row.flops / result.comparison.ours.step_s / matmul_rate(jax.devices()[0])
            print(line(row.title, result.comparison, limit), flush=True)
            save(as_json(name, row, result, limit) | {"machine": machine, "load": load})
            took = time.monotonic() - start


def confined_to(threads: int | None) -> int:
    """The number of cores, after confining this process to so many: the backend then starts a thread for each."""
    if not hasattr(os, "sched_setaffinity"):
        if threads is None:
            return os.cpu_count()
        raise mb.InputError("--threads: this platform cannot confine a process to cores; leave it out")
    cores = sorted(os.sched_getaffinity(0))
    if threads is None:
        return len(cores)
    if want_count("--threads", threads) > len(cores):
        raise mb.InputError(f"--threads is {threads}, but there are {len(cores)} cores")
    os.sched_setaffinity(0, cores[:threads])
    return threads


def saver(path: str | None) -> Callable[[dict], None]:
    """What writes row after row, the file whole at any time. Refuses before anything is measured, not after."""
    if path is None:
        return lambda row: None
    rows, whole, part = [], Path(path), Path(f"{path}.part")
    try:
        with open(whole, "x") as file:
            file.write("[]")
    except OSError as error:
        raise mb.InputError(f"--json {path}: {error.strerror}; name a new file, in a folder that exists") from None

    def save(row):
        rows.append(row)
        part.write_text(json.dumps(rows, indent=1, allow_nan=False))
        part.replace(whole)

    return save


def processor() -> str:
    with suppress(OSError):
        if names := re.findall(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return names[0]
    return platform.processor() or platform.machine()


def measured(benchmark: str, row: Row, python: str | None, cores: int, quick: bool) -> Result:
    rounds, tracing = (5, 1) if quick else (ROUNDS.get(benchmark, 101), 5)
    if not isinstance(row.peer, TorchTraining):
        peaks = same_result(row.ours, row.peer)
        return Result(compare(row.ours, row.peer, rounds=rounds, tracing_rounds=tracing), peaks)
    if python is None:
        raise TorchError("PyTorch, which is not installed here; --torch PYTHON names a Python that has it")
    if jax.default_backend() != "cpu":
        raise TorchError("PyTorch, which is measured on a CPU alone")
    if quick and row.peer.compiled:
        raise TorchError("torch.compile, which takes its time; without --quick")
    return compare_with_torch(row.ours, row.peer, python, cores, rounds, tracing)


def same_result(ours: Program, peer: Program) -> tuple[int, int]:
    """Both sides' peak bytes. Stops when they do not compute the same: a ratio of different work says nothing.

    Their trees differ in structure, so what is compared is the cost and every other result's norm, sorted; or, where
    one side holds parameters in stacks, the norm of all. Counts of steps are not compared: one side has more of them.
    """
    results, peaks = zip(*(called(program) for program in (ours, peer)), strict=True)
    numbers = [
        [leaf for leaf in jax.tree.leaves(result) if jnp.issubdtype(leaf.dtype, jnp.inexact)] for result in results
    ]
    norms = [sorted(float(jnp.linalg.norm(leaf.ravel())) for leaf in side) for side in numbers]
    if len(norms[0]) != len(norms[1]):
        norms = [[float(np.linalg.norm(side))] for side in norms]
    np.testing.assert_allclose(*norms, rtol=1e-3)
    costs = [leaf for leaf in (jax.tree.leaves(result)[-1] for result in results) if leaf.ndim == 0]
    np.testing.assert_allclose(costs[:1], costs[1:], rtol=1e-4)
    return peaks


def called(program: Program) -> tuple[tuple, int]:
    """(The results of one call, its peak bytes.)"""
    jitted = jax.jit(program.function, donate_argnums=(0,) if program.donate else ())
    compiled = jitted.lower(*program.args).compile()
    return compiled(*jax.tree.map(jnp.copy, program.args)), peak_bytes(compiled)


def line(title: str, result: Comparison, limit: float | None) -> str:
    told = lambda value, width: " " * width if math.isnan(value) else f"{value:{width}.2f}"
    ratios = " ".join(told(getattr(result, name), width) for name, width in zip(RATIOS, (6, 6, 6, 7), strict=True))
    share = f"{limit:6.2f}" if limit is not None else ""
    return f"{title:88} {ratios} {result.ours.step_s * 1e3:9.3f} {result.ours.temp_bytes / 1e6:8.2f} {share}".rstrip()


def as_json(benchmark: str, row: Row, result: Result, limit: float | None) -> dict:
    """What is not known, or infinite, is null."""
    finite = lambda **values: {name: value if math.isfinite(value) else None for name, value in values.items()}
    comparison, (peak, peer_peak) = result.comparison, result.peak_bytes
    packages = {name: version(name) for name in ("jax", "jaxlib", "numpy", "optax", "flax")}
    return {
        "benchmark": benchmark,
        "case": row.title,
        "ours": finite(**comparison.ours._asdict(), peak_bytes=peak),
        "peer": {"name": row.peer_name, **finite(**comparison.peer._asdict(), peak_bytes=peer_peak)},
        **finite(**{ratio: getattr(comparison, ratio) for ratio in RATIOS}),
        "share_of_matmul_rate": limit,
        "versions": {
            "python": platform.python_version(),
            **packages,
            **({"torch": result.torch} if result.torch else {}),
        },
    }


if __name__ == "__main__":
    try:
        main()
    except mb.InputError as error:
        sys.exit(print(f"error: {error}", file=sys.stderr) or 2)
    except KeyboardInterrupt:
        sys.exit(130)
