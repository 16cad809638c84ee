"""Judges of gradients side by side: how many wrong ones each finds, how many right ones it refuses, how long it takes.

    python3 scripts/run.py judges [--every N] [--write]

The two sets are those of tests/verdicts, written without knowing the oracle. Every judge gets the same candidates:

    ours          check_vjp, effort "normal", with the options of the row
    ours, quick   the same, effort "quick"
    check_grads   jax.test_util.check_grads(candidate, args, order, modes=["rev"]), its own tolerances
    ... tuned     the same with atol = rtol = 1e-3, which float32 needs
    chex          chex.assert_numerical_grads(candidate, args, order)
    allclose      np.testing.assert_allclose of jax.grad of the summed output against the reference's, to 1e-3
    differences   the gradient along one random line against central differences, in float32, to 1e-2
    gradcheck     torch.autograd.gradcheck of a torch function that calls the candidate in float64, if installed

A judge that raises anything refuses the candidate. --write puts the table into README.md.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from manual_backprop.testing import as_pair, check_vjp
from verdicts.right import RIGHT
from verdicts.wrong import WRONG

BEGIN, END = "<!-- judges -->", "<!-- /judges -->"


def function_of(candidate) -> Callable:
    """The candidate as what JAX differentiates: most judges take nothing else."""
    if not isinstance(candidate, tuple):
        return candidate
    forward, backward = candidate
    function = jax.custom_vjp(lambda *args: forward(*args)[0])
    function.defvjp(forward, lambda residuals, dy: tuple(backward(residuals, dy)))
    return function


def floats(args) -> list[int]:
    """The places of the arguments that are floating all through."""
    inexact = lambda leaf: jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.inexact)
    return [i for i, arg in enumerate(args) if jax.tree.leaves(arg) and all(map(inexact, jax.tree.leaves(arg)))]


def on_floats(function: Callable, args) -> tuple[Callable, tuple]:
    """The function of its floating arguments alone: check_grads raises for integers."""
    places = floats(args)

    def of_floats(*moving):
        whole = list(args)
        for i, arg in zip(places, moving, strict=True):
            whole[i] = arg
        return function(*whole)

    return of_floats, tuple(args[i] for i in places)


def ours(row, args, effort: str = "normal") -> bool:
    return bool(check_vjp(row.candidate, row.reference, *args, **{"effort": effort, **row.options}))


def check_grads(row, args, **tolerance) -> bool:
    function, moving = on_floats(function_of(row.candidate), args)
    jax.test_util.check_grads(function, moving, row.options.get("order", 2), modes=["rev"], **tolerance)
    return True


def chex_numerical(row, args) -> bool:
    import chex

    function, moving = on_floats(function_of(row.candidate), args)
    chex.assert_numerical_grads(function, moving, row.options.get("order", 1))
    return True


def allclose(row, args) -> bool:
    candidate, moving = on_floats(function_of(row.candidate), args)
    reference, _ = on_floats(row.reference or as_pair(row.candidate).primal, args)
    total = lambda function: lambda *args: sum(jnp.sum(leaf).real for leaf in jax.tree.leaves(function(*args)))
    places = tuple(range(len(moving)))
    for a, b in zip(
        jax.tree.leaves(jax.grad(total(candidate), places)(*moving)),
        jax.tree.leaves(jax.grad(total(reference), places)(*moving)),
        strict=True,
    ):
        np.testing.assert_allclose(np.asarray(a, np.complex128), np.asarray(b, np.complex128), rtol=1e-3, atol=1e-3)
    return True


def differences(row, args) -> bool:
    function, moving = on_floats(function_of(row.candidate), args)
    rng = np.random.default_rng(0)
    v = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), moving)
    total = lambda *args: sum(jnp.sum(leaf).real for leaf in jax.tree.leaves(function(*args)))
    slope = sum(
        float(jnp.sum(g * w).real)
        for g, w in zip(
            jax.tree.leaves(jax.grad(total, tuple(range(len(moving))))(*moving)), jax.tree.leaves(v), strict=True
        )
    )
    at = lambda h: float(total(*jax.tree.map(lambda x, w: (x + h * w).astype(x.dtype), moving, v)))
    np.testing.assert_allclose(slope, (at(1e-3) - at(-1e-3)) / 2e-3, rtol=1e-2, atol=1e-2)
    return True


def gradcheck(row, args) -> bool:
    import torch

    function, moving = on_floats(function_of(row.candidate), args)
    leaves, tree = jax.tree.flatten(moving)

    class Candidate(torch.autograd.Function):
        @staticmethod
        def forward(context, *tensors):
            with jax.enable_x64(True):
                moving = tree.unflatten([jnp.asarray(t.detach().numpy()) for t in tensors])
                y, context.vjp = jax.vjp(function, *moving)
                context.shape = jax.tree.structure(y)
                return tuple(torch.from_numpy(np.array(leaf)) for leaf in jax.tree.leaves(y))

        @staticmethod
        def backward(context, *dy):
            with jax.enable_x64(True):
                dy = context.shape.unflatten([jnp.asarray(d.numpy()) for d in dy])
                return tuple(torch.from_numpy(np.array(leaf)) for leaf in jax.tree.leaves(context.vjp(dy)))

    wide = [torch.from_numpy(np.asarray(leaf, np.float64)).requires_grad_() for leaf in leaves]
    return torch.autograd.gradcheck(Candidate.apply, wide)


class Judge(NamedTuple):
    name: str
    accepts: Callable
    needs: str = ""


JUDGES = [
    Judge("`check_vjp`", ours),
    Judge('`check_vjp`, `effort="quick"`', lambda row, args: ours(row, args, "quick")),
    Judge("`jax.test_util.check_grads`", check_grads),
    Judge("the same, tolerance 1e-3", lambda row, args: check_grads(row, args, atol=1e-3, rtol=1e-3)),
    Judge("`chex.assert_numerical_grads`", chex_numerical, "chex"),
    Judge("`assert_allclose` against `jax.grad`, sums", allclose),
    Judge("central differences, one line", differences),
    Judge("`torch.autograd.gradcheck`", gradcheck, "torch"),
]


def accepted(judge: Judge, row) -> tuple[bool, float]:
    args = row.args()
    start = time.perf_counter()
    try:
        verdict = bool(judge.accepts(row, args))
    except Exception:
        verdict = False
    return verdict, time.perf_counter() - start


def is_installed(package: str) -> bool:
    from importlib.util import find_spec

    return not package or find_spec(package) is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take one row in N (default: all)")
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    options = parser.parse_args()
    if options.every < 1:
        parser.error(f"--every {options.every} is out of range; wants at least 1")
    warnings.simplefilter("ignore")
    wrong, right = WRONG[:: options.every], RIGHT[:: options.every]
    lines = [
        f"| judge | wrong found, of {len(wrong)} | right refused, of {len(right)} | seconds a check, median |",
        "|---|---|---|---|",
    ]
    for judge in (judge for judge in JUDGES if is_installed(judge.needs)):
        found, times = 0, []
        for row in wrong:
            verdict, seconds = accepted(judge, row)
            found, times = found + (not verdict), [*times, seconds]
        refused = 0
        for n, row in enumerate(right):
            verdict, seconds = accepted(judge, row)
            refused, times = refused + (not verdict), [*times, seconds]
            if n % 40 == 0:
                jax.clear_caches()
        lines.append(f"| {judge.name} | {found} | {refused} | {statistics.median(times):.2g} |")
        print(lines[-1], flush=True)
    lines.append("")
    lines.append(
        f"`python3 scripts/run.py judges{f' --every {options.every}' * (options.every > 1)}`, "
        f"jax {jax.__version__}, Python {platform.python_version()}, {jax.devices()[0].platform.upper()}; "
        "compilation included."
    )
    table = "\n".join(lines)
    print(f"\n{table}")
    if options.write:
        readme = ROOT / "README.md"
        text = readme.read_text()
        head, _, rest = text.partition(BEGIN)
        readme.write_text(f"{head}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
