"""Our backward passes against autodiff's: `python3 scripts/run.py benchmark [mlp] [gpt] … [--json FILE] [--quick]`.

Both sides do the same work, checked by equal results, and run in turns in one process. Prints ratios ours / peer.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import manual_backprop as mb
from benchmarks import BENCHMARKS
from benchmarks.row import Row
from manual_backprop.errors import choose
from manual_backprop.testing.timing import Comparison, Program, compare

RATIOS = ("step_time_ratio", "temp_memory_ratio", "trace_ratio", "compile_ratio")
SECONDS_QUICK = 40  # after which a quick look starts no further row


def same_result(ours: Program, peer: Program) -> None:
    """Stops when the two sides do not compute the same: a ratio of different work says nothing.

    Their trees differ in structure, so what is compared is the cost and every other result's norm, sorted; or, where
    one side holds parameters in stacks, the norm of all.
    """
    results = [jax.jit(program.function)(*program.args) for program in (ours, peer)]
    norms = [sorted(float(jnp.linalg.norm(leaf.ravel())) for leaf in jax.tree.leaves(result)) for result in results]
    if len(norms[0]) != len(norms[1]):
        norms = [[float(np.linalg.norm(side))] for side in norms]
    np.testing.assert_allclose(*norms, rtol=1e-3)
    costs = [leaf for leaf in (jax.tree.leaves(result)[-1] for result in results) if leaf.ndim == 0]
    np.testing.assert_allclose(costs[:1], costs[1:], rtol=1e-4)


def matmul_rate(n: int = 3072) -> float:
    """Operations a second of a large matrix product: the limit that a training step is held against."""
    a = jnp.ones((n, n))
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("benchmark", nargs="*", help=f"{', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--json", metavar="FILE", help="write the rows there too")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, within a minute: a look, not a result")
    options = parser.parse_args()

    chosen = {name: choose("benchmark", name, BENCHMARKS) for name in options.benchmark or BENCHMARKS}
    device = jax.devices()[0]
    machine = f"{device.device_kind}, {os.cpu_count()} cores, {platform.machine()}"
    print(f"jax {jax.__version__}, Python {platform.python_version()}, {machine}; ratios are ours / peer, medians")
    print(f"{'':88} {'step':>6} {'memory':>6} {'trace':>6} {'compile':>7} {'step ms':>9} {'temp MB':>8} {'limit':>6}")
    rows, begin = [], time.monotonic()
    for name, rows_of in chosen.items():
        for row in rows_of():
            if options.quick and time.monotonic() - begin > SECONDS_QUICK:
                print(f"{name}: the minute is over; the rest without --quick")
                break
            same_result(row.ours, row.peer)
            rounds, tracing = (5, 1) if options.quick else (ROUNDS.get(name, 101), 5)
            result = compare(row.ours, row.peer, rounds=rounds, tracing_rounds=tracing)
            limit = None if row.flops is None else row.flops / result.ours.step_s / matmul_rate()
            print(line(row.title, result, limit), flush=True)
            rows.append(as_json(name, row, result, limit, machine))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


ROUNDS = {"gpt": 21, "schedules": 21, "ops": 41}  # where a step takes long


def line(title: str, result: Comparison, limit: float | None) -> str:
    ratios = " ".join(f"{getattr(result, name):{width}.2f}" for name, width in zip(RATIOS, (6, 6, 6, 7), strict=True))
    share = f"{limit:6.2f}" if limit is not None else ""
    return f"{title:88} {ratios} {result.ours.step_s * 1e3:9.3f} {result.ours.temp_bytes / 1e6:8.2f} {share}".rstrip()


def as_json(benchmark: str, row: Row, result: Comparison, limit: float | None, machine: str) -> dict:
    return {
        "benchmark": benchmark,
        "case": row.title,
        "ours": result.ours._asdict(),
        "peer": {"name": row.peer_name, **result.peer._asdict()},
        **{ratio: getattr(result, ratio) for ratio in RATIOS},
        "share_of_matmul_rate": limit,
        "versions": {"jax": jax.__version__, "python": platform.python_version(), "optax": optax.__version__},
        "machine": machine,
    }


if __name__ == "__main__":
    try:
        main()
    except mb.InputError as error:
        sys.exit(print(f"error: {error}", file=sys.stderr) or 2)
