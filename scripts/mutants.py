"""How good our own tests are: `python3 scripts/run.py mutants [--ops NAME…] [--write]`.

Of every op, the first case of its table is the test: the op against its reference by `check_vjp`, effort "quick". Its
backward pass is mutated in every way that `mutation_score` knows; a line says how many mutants the test catches, and
names the survivors, each with its source line.  --write: into tests/mutants.md.
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
    lines = ["| op | caught | of | no mistake | survivors |", "|---|---|---|---|---|"]
    found = {}
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(score, name, options.most): name for name in names}
        for one in as_completed(running):
            *counts, survivors = found[running[one]] = one.result()
            print(line(running[one], counts, survivors), flush=True)
    lines += [line(name, found[name][:3], found[name][3]) for name in names]
    caught, total, equivalent = (sum(counts) for counts in list(zip(*found.values(), strict=True))[:3])
    lines.append(
        f"| **all {len(names)}** | **{caught}** | **{total}** | **{equivalent}** | {caught / max(total, 1):.4f} |"
    )
    more = "".join(f" --{name} {value}" for name, value in (("most", options.most),) if value)
    text = "\n".join(lines)
    made = f"`python3 scripts/run.py mutants{more}`: jax {jax.__version__}, Python {platform.python_version()}."
    print(f"{lines[-1]}\n{made}")
    if options.write:
        FILE.write_text(f"# Mutants of every backward pass, and what the tests catch\n\n{made}\n\n{text}\n")


if __name__ == "__main__":
    main()
