"""The table of ops, measured: `python3 scripts/run.py table [--ops NAME…] [--quick] [--write]`.

One line per op: how many variants are tested; the largest relative error in float64 over all of them; the ratio of our
rounding error to autodiff's in float32 and bfloat16, the worst of all; and of one forward and backward pass at a real
size the ratio of time and of temporary memory to `jax.vjp` of the reference, alone and in a `lax.scan` of eight.
Both sides run in turns in one process.  --write: into tests/ops.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share one GPU, where there is one
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import manual_backprop as mb
from cases import FAMILIES, Case, random_like
from cases.measure import alone, float64_error, rounding_errors, scanned
from manual_backprop.errors import choose
from manual_backprop.testing.timing import Program, compare

FILE = ROOT / "tests" / "ops.md"
COLUMNS = ("op", "variants", "float64", "float32", "bfloat16", "time", "memory", "time × 8", "memory × 8")


class Row(NamedTuple):
    op: str
    variants: int
    float64: float
    float32: float
    bfloat16: float
    time: float
    memory: float
    time_scanned: float
    memory_scanned: float

    @classmethod
    def of(cls, line: str) -> Row:
        """The row that a line of the table says."""
        op, variants, *numbers = (cell.strip() for cell in line.strip("|").split("|"))
        return cls(op, int(variants), *map(float, numbers))

    def line(self) -> str:
        numbers = (f"{self.float64:.0e}", *(f"{value:.2f}" for value in self[3:]))
        return f"| {self.op} | {self.variants} | {' | '.join(numbers)} |"


def cases_of() -> dict[str, list[Case]]:
    """The rows of each op."""
    rows: dict[str, list[Case]] = {}
    for case in (case for family in FAMILIES for case in family.OPS):
        rows.setdefault(case.unit.name, []).append(case)
    return rows


def errors(name: str) -> tuple[float, float, float]:
    """Of all rows of an op: the relative error in float64, and the ratios to autodiff's in float32 and bfloat16."""
    cases = cases_of()[name]
    ratios = (max(precision_ratio(case, dtype) for case in cases) for dtype in ("float32", "bfloat16"))
    found = max(map(float64_error, cases)), *ratios
    jax.clear_caches()
    return found


def precision_ratio(case: Case, dtype: str) -> float:
    """Ours over autodiff's, the worst leaf; an error below one ulp counts as one ulp."""
    ulp = float(jnp.finfo(dtype).eps)
    return max(max(ours, ulp) / max(theirs, ulp) for ours, theirs in rounding_errors(case, dtype))


def timed(case: Case, rounds: int) -> tuple[float, float, float, float]:
    args = case._replace(draw=case.large).args()
    dy = random_like(jax.eval_shape(case.reference, *args), seed=1)
    ratios = []
    ours, theirs = alone(case, args, dy)
    for mine, auto, inputs in ((ours, theirs, (args, dy)), scanned_program(case, args, dy)):
        same_result(mine, auto, inputs)
        result = compare(Program(mine, inputs), Program(auto, inputs), rounds=rounds)
        ratios += [result.step_time_ratio, result.temp_memory_ratio]
    return tuple(ratios)


def scanned_program(case: Case, args, dy):
    mine, auto, args, dy = scanned(case, args, dy)
    return mine, auto, (args, dy)


def same_result(ours, theirs, inputs) -> None:
    """Stops when the two sides do not compute the same: a ratio of different work says nothing."""
    for a, b in zip(jax.tree.leaves(jax.jit(ours)(*inputs)), jax.tree.leaves(jax.jit(theirs)(*inputs)), strict=True):
        a, b = np.float64(a), np.float64(b)
        if a.size:
            np.testing.assert_allclose(np.linalg.norm(a - b), 0, atol=1e-3 * np.linalg.norm(b) + 1e-30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ops", nargs="+", metavar="NAME", help="these alone; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a look, not a result")
    parser.add_argument("--write", action="store_true", help=f"into {FILE.relative_to(ROOT)}, the lines of these ops")
    options = parser.parse_args()

    rows_of = cases_of()
    chosen = {name: choose("op", name, rows_of) for name in options.ops or rows_of}
    device = jax.devices()[0]
    head = [
        "# Every op, measured",
        "",
        *(line for line in __doc__.split("\n")[2:-1] if "--write" not in line),
        "An error below one ulp counts as one ulp. Written by `python3 scripts/run.py table --write`, never by hand:",
        f"jax {jax.__version__}, Python {platform.python_version()}, "
        f"{device.device_kind}, {os.cpu_count()} cores, {platform.machine()}.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'|'.join(['---'] + ['---:'] * (len(COLUMNS) - 1))}|",
    ]
    if options.write and options.ops:
        written(head)  # that it can be written is told before it is measured
    print("\n".join(head), flush=True)
    # Errors on all cores at once; times after that, with nothing beside them.
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        errors_of = dict(zip(chosen, pool.map(errors, chosen), strict=True))
    rows = []
    for name, cases in chosen.items():
        large = next(case for case in cases if case.large)
        rows.append(Row(name, len(cases), *errors_of[name], *timed(large, 7 if options.quick else 41)))
        print(rows[-1].line(), flush=True)
        jax.clear_caches()
    if options.write and options.ops:
        known = {row.op: row for row in (*written(head), *rows)}  # an op that is new comes where the cases have it
        rows = [known[name] for name in rows_of if name in known]
    medians = [statistics.median(values) for values in zip(*(row[5:] for row in rows), strict=True)]
    foot = f"| median | | | | | {' | '.join(f'{value:.2f}' for value in medians)} |"
    print(foot)
    if options.write:
        FILE.write_text("\n".join([*head, *(row.line() for row in rows), foot]) + "\n")


def written(head: list[str]) -> list[Row]:
    """The rows in the file. Raises InputError for a file of another machine: one table is of one machine."""
    lines = FILE.read_text().splitlines()
    if lines[: len(head)] != head:
        raise mb.InputError(f"table: {FILE.name} is of another machine or version; leave out --ops to measure all anew")
    return [Row.of(line) for line in lines[len(head) : -1]]


if __name__ == "__main__":
    try:
        main()
    except mb.InputError as error:
        sys.exit(print(f"error: {error}", file=sys.stderr) or 2)
