"""How good our own tests are: `python3 scripts/run.py mutants [--ops NAME…] [--write]`.

Of every op, the first case of its table is the test: the op against its reference by `check_vjp`, effort "quick". Its
backward pass is mutated in every way that `mutation_score` knows; a line says how many mutants the test catches, and
names the survivors, each with its source line.  --write: into tests/mutants.md, of which the lines of these ops are
renewed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import jax

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from cases import OPS, Case
from cases.routing import BY_DECREE
from manual_backprop.errors import InputError, choose
from manual_backprop.testing import check_vjp, mutation_score

HEAD = "| op | caught | of | no mistake | survivors |\n|---|---|---|---|---|"
FILE = ROOT / "tests" / "mutants.md"


def cases() -> dict[str, Case]:
    """The first case of each op."""
    return {case.unit.name: case for case in reversed(OPS)}


def score(name: str, most: int | None) -> tuple[int, int, int, tuple[str, ...]]:
    """(caught, all that count, those that change nothing, the survivors) of one op."""
    warnings.simplefilter("ignore")
    case = cases()[name]
    args = case.args()

    def test(op):
        return check_vjp(op, case.reference, *args, surrogate=name in BY_DECREE, effort="quick")

    found = mutation_score(test, case.unit, *args, most=most)
    jax.clear_caches()
    return len(found.caught), found.total, found.equivalent, tuple(map(str, found.survivors))


def line(name: str, counts, survivors) -> str:
    return f"| {name} | {' | '.join(map(str, counts))} | {'; '.join(survivors)} |"


def written() -> dict[str, str]:
    """The lines of the file, by op."""
    rows = [row for row in FILE.read_text().splitlines() if row.startswith("| ")] if FILE.exists() else []
    return {row.split("|")[1].strip(): row for row in rows if not row.startswith(("| op ", "| **"))}


def total(lines: dict[str, str]) -> str:
    counts = [[int(cell) for cell in row.split("|")[2:5]] for row in lines.values()]
    caught, of, equivalent = map(sum, zip(*counts, strict=True))
    return f"| **all {len(lines)}** | **{caught}** | **{of}** | **{equivalent}** | {caught / max(of, 1):.4f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", nargs="*", metavar="NAME", help="these ops alone (default: all)")
    parser.add_argument("--most", type=int, help="at most so many mutants an op, drawn at random")
    parser.add_argument("--write", action="store_true", help="into tests/mutants.md")
    options = parser.parse_args()
    if options.most is not None and options.most < 1:
        parser.error(f"--most {options.most} is out of range; wants at least 1")
    names = options.ops or sorted(cases())
    try:
        for name in names:
            choose("op", name, cases())
    except InputError as error:
        parser.error(str(error))
    found = {}
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(score, name, options.most): name for name in names}
        for one in as_completed(running):
            *counts, survivors = one.result()
            found[running[one]] = line(running[one], counts, survivors)
            print(found[running[one]], flush=True)
    print(total(found))
    if options.write:
        lines = written() | found if options.ops else found
        more = "".join(f" --{name} {value}" for name, value in (("most", options.most),) if value)
        made = f"`python3 scripts/run.py mutants{more}`: jax {jax.__version__}, Python {platform.python_version()}."
        table = "\n".join([HEAD, *(lines[name] for name in sorted(lines)), total(lines)])
        FILE.write_text(f"# Mutants of every backward pass, and what the tests catch\n\n{made}\n\n{table}\n")


if __name__ == "__main__":
    main()
