"""The command `manual-backprop`. Needs jax and numpy alone."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import itertools
import json
import math
import os
import re
import sys
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import manual_backprop as mb
from manual_backprop.errors import InputError, choose
from manual_backprop.testing import EFFORTS, as_pair, check_vjp, mutation_score

DTYPES = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "i32": "int32",
    "i64": "int64",
    "u8": "uint8",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses and runs. Exits 0 when all is well, 1 for a wrong gradient, 2 with one line for a user's mistake."""
    parser = argparse.ArgumentParser(prog="manual-backprop", description="Backward passes by hand, and their oracle.")
    version = f"manual_backprop {mb.__version__}, jax {jax.__version__}, Python {sys.version.split()[0]}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="hold a backward pass against jax.vjp of a reference, in float64")
    check.add_argument("candidate", metavar="MODULE:NAME", help="an op, a jax.custom_vjp, or any function")
    check.add_argument("--reference", metavar="MODULE:NAME", help="a JAX function; default: the candidate's own primal")
    check.add_argument("--shapes", required=True, help="of the arguments, such as 'f32[64,32],f32[32],i32[64]'")
    check.add_argument("--seed", type=int, default=0, help="of the arguments and of the cotangent")
    check.add_argument("--effort", choices=EFFORTS, default="normal", help="how much is tried (default: normal)")
    check.add_argument("--order", type=int, default=2, help="the highest derivative claimed (default: 2)")
    check.add_argument("--argnums", help="the arguments to judge, such as 0,2; default: all floating ones")
    check.add_argument(
        "--surrogate", action="store_true", help="the gradient is on purpose not the slope of the values"
    )
    check.add_argument("--nonlinear-cotangent", action="store_true", help="backward is on purpose not linear in dy")
    check.add_argument("--json", metavar="FILE", help="write the report as JSON too")
    check.add_argument("--picture", metavar="FILE", help="draw where a leaf is wrong, as a PNG")
    mutate = commands.add_parser("mutate", help="plant mistakes in a backward pass; count those that a test sees")
    mutate.add_argument("candidate", metavar="MODULE:NAME", help="an op, a jax.custom_vjp, or any function")
    mutate.add_argument(
        "--test", metavar="MODULE:NAME", help="a function of the candidate, which raises or returns False"
    )
    mutate.add_argument("--reference", metavar="MODULE:NAME", help="without --test: score check_vjp against it")
    mutate.add_argument("--shapes", help="of the arguments, where the test does not call the candidate on arrays")
    mutate.add_argument("--most", type=int, help="at most so many mutants")
    mutate.add_argument("--seed", type=int, default=0, help="of the arguments and of the choice of mutants")
    mutate.set_defaults(run=run_mutate)
    plan = commands.add_parser("plan", help="say, without running it, what a training step of a transformer will take")
    plan.add_argument("size", help="such as gpt2-124m")
    plan.add_argument("--batch", type=int, default=8, help="examples of a step, over all devices (default: 8)")
    plan.add_argument("--length", type=int, help="tokens of an example; default: as many as the size has positions")
    plan.add_argument("--schedule", help="this one alone; default: each")
    plan.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of matrix products")
    mesh = "devices, such as data=4,model=2: data cuts the batch, fsdp the batch and the parameters, model the matrices"
    plan.add_argument("--mesh", default="data=1", help=f"{mesh}; more than there are: simulated (default: data=1)")
    plan.add_argument("--memory", help="of a device, such as 24GB: which schedules fit")
    plan.add_argument("--rate", type=float, help="flops a second of a device, such as 400e12; default: measured here")
    plan.add_argument("--bandwidth", type=float, help="bytes a second of its memory; default: measured here")
    plan.add_argument("--link", type=float, help="bytes a second that it sends to others; default: no limit")
    plan.add_argument("--json", metavar="FILE", help="write the plan as JSON too, into a new file")
    plan.set_defaults(run=run_plan)
    runs = commands.add_parser("runs", help="list the runs in a folder")
    runs.add_argument("root", nargs="?", default="runs", help="the folder (default: runs)")
    runs.add_argument("--json", action="store_true", help="as JSON")
    runs.set_defaults(run=run_runs)
    compare = commands.add_parser("compare", help="plot the curves of two runs, and say how they differ")
    compare.add_argument("a", help="a run's folder")
    compare.add_argument("b", help="another's")
    compare.add_argument("--picture", metavar="FILE", default="compare.png", help="a new PNG (default: compare.png)")
    compare.set_defaults(run=run_compare)
    report = commands.add_parser("report", help="write report.html of a run anew")
    report.add_argument("folder", help="the run's folder")
    report.add_argument("--open", action="store_true", help="show it in a browser")
    report.set_defaults(run=run_report)
    ops = commands.add_parser("ops", help="list the ops, with their options; or print the derivation of some")
    ops.add_argument("name", nargs="*", help="an op, such as layer_norm")
    ops.set_defaults(run=lambda options: derivations(options.name) if options.name else list_ops())
    check.set_defaults(run=run_check)
    options = parser.parse_args(arguments)
    try:
        code = options.run(options)
        sys.stdout.flush()
        sys.exit(code)
    except BrokenPipeError:  # whoever read has seen enough, as in `manual-backprop ops | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def run_check(options) -> int:
    if options.seed < 0:
        raise InputError(f"--seed {options.seed} is out of range; wants at least 0")
    reference = named(options.reference) if options.reference else None
    args = random_arguments(options.shapes, options.seed)
    report = check_vjp(
        named(options.candidate),
        reference,
        *args,
        argnums=places(options.argnums),
        order=options.order,
        surrogate=options.surrogate,
        nonlinear_cotangent=options.nonlinear_cotangent,
        effort=options.effort,
        seed=options.seed,
    )
    for finding in report.failures:
        if finding.leaf == "reference" and finding.property == "runs":
            raise InputError(f"the reference {report.reference} {finding.detail}")
    print(report)
    if options.json:
        write(options.json, report.to_json())
    if options.picture and report.errors:
        report.heat_map(options.picture)
    return 0 if report else 1


def places(argnums: str | None) -> tuple[int, ...] | None:
    """(0, 2) for '0,2'."""
    if argnums is None:
        return None
    if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", argnums):
        raise InputError(f"--argnums {argnums!r} is not understood; wants, say, 0,2")
    return tuple(int(n) for n in argnums.split(","))


def write(file: str, text: str) -> None:
    try:
        Path(file).write_text(text + "\n")
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error.strerror}") from None


def run_mutate(options) -> int:
    """Exits 0 when every mutant is caught, 1 when some survive."""
    if options.seed < 0:
        raise InputError(f"--seed {options.seed} is out of range; wants at least 0")
    if options.most is not None and options.most < 1:
        raise InputError(f"--most {options.most} is out of range; wants at least 1")
    candidate = named(options.candidate)
    args = random_arguments(options.shapes, options.seed) if options.shapes else ()
    if options.test:
        test = named(options.test)
    elif args:
        reference = named(options.reference) if options.reference else as_pair(candidate).primal
        test = lambda mutant: check_vjp(mutant, reference, *args, effort="quick", seed=options.seed)
    else:
        raise InputError("mutate: got neither --test nor --shapes; wants a test, or shapes for check_vjp")
    score = mutation_score(test, candidate, *args, most=options.most, seed=options.seed)
    print(score)
    return 1 if score.survivors else 0


def run_plan(options) -> int:
    plan, sharding = of_training("plan", "plan", "sharding")
    size = choose("plan: size", options.size, mb.models.gpt.SIZES)
    length = size.length if options.length is None else options.length
    if options.batch < 1:
        raise InputError(f"plan: batch is {options.batch}; wants 1 or more")
    if not 1 <= length <= size.length:
        raise InputError(f"plan: length is {length}; wants 1 to {size.length}")
    for name in ("rate", "bandwidth", "link"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"plan: {name} is {value:g}; wants a number above 0, such as 1e12")
    memory = math.inf if options.memory is None else plan.bytes_of(options.memory)
    if options.schedule is not None:
        choose("plan: schedule", options.schedule, plan.SCHEDULES)
    if options.json:
        want_new(options.json)
    axes = sharding.axes(options.mesh)
    if (n := math.prod(axes.values())) > 1:
        with suppress(RuntimeError):  # there are devices already: `mesh_of` says if they are too few
            jax.config.update("jax_num_cpu_devices", n)
    if "stage" in axes:
        raise InputError(f"plan: mesh {options.mesh} has stages, which are not planned; wants data, fsdp and model")
    mesh = sharding.mesh_of(axes)
    size = dataclasses.replace(size, length=length)
    plan.want_divided(size, options.batch, mesh)
    measured = plan.limits() if options.rate is None or options.bandwidth is None else (0.0, 0.0)
    machine = plan.Machine(
        options.rate or measured[0], options.bandwidth or measured[1], options.link or math.inf, memory
    )
    compute = None if options.precision == "float32" else options.precision
    chosen = [options.schedule] if options.schedule else list(plan.SCHEDULES)
    plans = [plan.plan(size, options.batch, name, compute, mesh) for name in chosen]
    print(plan.in_words(plans, machine))
    if options.json:
        want_new(options.json)
        write(options.json, json.dumps(plan.as_json(size, options.batch, compute, plans, machine), indent=1))
    return 0 if plan.best_of(plans, machine) else 1


def run_runs(options) -> int:
    (runs,) = of_training("runs", "runs")
    found = runs.find(options.root)
    print(runs.as_json(found) if options.json else runs.table(found))
    return 0


def run_compare(options) -> int:
    (runs,) = of_training("compare", "runs")
    print(runs.compare(options.a, options.b, options.picture))
    print(f"wrote {options.picture}")
    return 0


def run_report(options) -> int:
    (report,) = of_training("report", "report")
    page = report.write_report(options.folder)
    print(f"wrote {page}")
    if options.open:
        webbrowser.open(page.absolute().as_uri())
    return 0


def of_training(command: str, *modules: str) -> list:
    """Modules of `manual_backprop.training`. Raises InputError where a package is missing that they want."""
    try:
        return [importlib.import_module(f"manual_backprop.training.{module}") for module in modules]
    except ImportError as error:
        raise InputError(f"{command} wants {error.name}: pip install 'manual_backprop[train]'") from None


def want_new(file: str) -> None:
    """Raises InputError for a file that exists, or whose folder does not."""
    if Path(file).exists():
        raise InputError(f"{file} exists; nothing is overwritten: name another")
    if not Path(file).parent.is_dir():
        raise InputError(f"{file} cannot be written: there is no folder {Path(file).parent}")


def constructors() -> dict:
    """The ops by name."""
    return {name: getattr(mb.ops, name) for name in mb.ops.__all__ if name.islower()}


def derivations(names: list[str]) -> int:
    for constructor in [choose("op", name, constructors()) for name in names]:
        file = inspect.getmodule(constructor)
        print(f"{file.__name__.replace('.', '/')}.py: {signature(constructor)}\n")
        print(f"{inspect.getdoc(file)}\n\n{inspect.getdoc(constructor)}\n")
    return 0


def list_ops() -> int:
    """The families, and of each op its options and the first line of its docstring."""
    for family, ops in itertools.groupby(constructors().values(), lambda op: op.__module__.rpartition(".")[0]):
        print(f"{inspect.getdoc(sys.modules[family])}\n")
        for op in ops:
            print(f"  {signature(op)}\n      {inspect.getdoc(op).splitlines()[0]}")
        print()
    return 0


def signature(constructor) -> str:
    """`layer_norm(eps=1e-05)`: an op's options with their defaults."""
    options = inspect.signature(constructor).parameters.values()
    bound = (name.name if name.default is name.empty else f"{name.name}={name.default!r}" for name in options)
    return f"{constructor.__name__}({', '.join(bound)})"


def named(place: str):
    """The object that `package.module:name` names."""
    module, _, name = place.partition(":")
    if not (module and name):
        raise InputError(f"{place!r} names nothing; wants package.module:name")
    if "" not in sys.path:
        sys.path.insert(0, "")  # a module in the current folder, as `python -m` would find it
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever the user's module does when it is imported
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{place!r} cannot be had: {type(error).__name__}: {reason}") from None
    return found


def random_arguments(shapes: str, seed: int) -> tuple:
    """Arrays for 'f32[64,32],i32[]': normal numbers; zeros and ones where the dtype is an integer."""
    one = r"\w+\[\s*(?:\d+\s*(?:,\s*\d+\s*)*)?\]"
    parts = re.findall(r"(\w+)\[([^\]]*)\]", shapes)
    if not re.fullmatch(rf"\s*{one}\s*(?:,\s*{one}\s*)*", shapes):
        raise InputError(f"--shapes {shapes!r} is not understood; wants, say, 'f32[64,32],f32[32]'")
    rng, arrays = np.random.default_rng(seed), []
    for name, sizes in parts:
        dtype = choose("--shapes: dtype", name, DTYPES)
        shape = tuple(int(size) for size in sizes.split(",") if size.strip())
        values = rng.integers(0, 2, shape) if name[0] in "iu" else rng.standard_normal(shape)
        if name in ("f64", "i64"):
            jax.config.update("jax_enable_x64", True)
        arrays.append(jnp.asarray(values, dtype))
    return tuple(arrays)


if __name__ == "__main__":
    main()
