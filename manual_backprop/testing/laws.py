"""What holds for every backward pass, whatever its formula: each law is a generator of findings.

Linear in the cotangent; the adjoint of the slope, by differences; the same under jit, vmap, scan and on several
devices; the same from run to run; nothing smuggled from call to call; no tracer left behind.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from manual_backprop.testing import judge
from manual_backprop.testing.compiled import quickly
from manual_backprop.testing.jaxprs import equations
from manual_backprop.testing.leaves import is_complex, is_float64, is_inexact, largest, to_float64, to_numpy
from manual_backprop.testing.report import Finding
from manual_backprop.testing.subject import Precision, Subject, fitting
from manual_backprop.testing.trials import Trial
from manual_backprop.testing.truth import Leaves


class Known(NamedTuple):
    """A trial, and what is expected of it in the precision that decides."""

    trial: Trial
    expected: Leaves


def unsupported(error: Exception) -> bool:
    """Whether JAX has no rule for it, and says so: no wrong number can come of that."""
    return bool(
        re.search(
            r"not support (JVP|reverse|differentiation|vmap|batching)|ifferentiation rule .* not implemented"
            r"|Reverse-mode differentiation does not work|Batching rule .* not implemented|vmap_method"
            r"|can't apply forward-mode differentiation",
            str(error),
        )
    )


def refused(error: Exception) -> bool:
    """Whether the candidate itself says that it does not take such arguments; or divides by a size that is none."""
    if isinstance(error, ZeroDivisionError):
        return True
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    file = traceback.tb_frame.f_code.co_filename.replace("\\", "/") if traceback is not None else ""
    library = any(f"/{name}/" in file for name in ("jax", "jaxlib", "numpy"))
    return isinstance(error, ValueError | NotImplementedError | AssertionError) and not library


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def raised(who: str, error: Exception, where: str) -> Finding:
    return Finding("runs", who, False, detail=f"raised {type(error).__name__} {where}: {first_line(error)}")


def or_raised(what: str, error: Exception) -> Finding:
    """Of a law that the candidate could not be held against."""
    if unsupported(error):
        return Finding(
            what, "cotangents", True, detail=f"not judged: JAX has no rule for it: {first_line(error)[:120]}"
        )
    return Finding(what, "cotangents", False, detail=f"raised {type(error).__name__}: {first_line(error)[:200]}")


def against(on: Subject, what: str, got, expected: Leaves, where: str = "as given") -> Iterator[Finding]:
    """Each cotangent against an expectation; a name is given to what is compared."""
    for name, value, expect in zip(on.names, got, expected.dargs, strict=True):
        if expect is not None and value is not None:
            yield judge.compared(what, name, value, expect, where)


def flat(on: Subject, dargs, args) -> list:
    return judge.flat_or_none(dargs, args)


def linear(on: Subject, known: Known, precision: Precision, eps: float, rng) -> Iterator[Finding]:
    """backward(a - 2 b) = backward(a) - 2 backward(b); factors of two round nothing. eps: to what it rounds inside."""
    args, a = known.trial.args, known.trial.dy
    b = jax.tree.map(lambda d: jnp.asarray(rng.permutation(np.array(d).ravel()).reshape(d.shape)), a)
    with precision.context():
        args, a, b = precision((args, a, b))
        mixed = jax.tree.map(lambda a, b: a - 2 * b, a, b)
        parts = [flat(on, on.jitted(args, dy)[1], args) for dy in (a, b, mixed)]
    for name, of_a, of_b, got, expect in zip(on.names, *parts, known.expected.dargs, strict=True):
        if expect is not None and of_a is not None:
            of_a, of_b, got = map(to_numpy, (of_a, of_b, got))
            with np.errstate(invalid="ignore", over="ignore"):
                whole = of_a - 2 * of_b
                slack = 8 * eps + (
                    1e-11 if precision.dtype == "float64" else 8 * float(jnp.finfo(precision_of(args)).eps)
                )
                allowed = 4 * expect.allowed + slack * np.max(np.abs(of_a) + 2 * np.abs(of_b), initial=0)
                allowed = np.where(np.isfinite(whole), allowed, np.inf)
            yield judge.compared(
                "linear in the cotangent", name, got, judge.around(expect, whole)._replace(allowed=allowed)
            )


def precision_of(args):
    """The narrowest floating dtype among the leaves."""
    return max(
        (leaf.dtype for leaf in jax.tree.leaves(args) if is_inexact(leaf)), key=lambda d: float(jnp.finfo(d).eps)
    )


def adjoint(on: Subject, known: Known, precision: Precision, rng) -> Iterator[Finding]:
    """⟨backward(u), v⟩ = ⟨u, slope of the reference's values along v⟩, by central differences: no autodiff at all.

    Judged leaf by leaf where the differences settle: where those of two steps agree.
    """
    with precision.context():
        got = flat(on, on.jitted(*precision((known.trial.args, known.trial.dy)))[1], known.trial.args)
    with jax.enable_x64(True):
        args, dy = jax.tree.map(to_float64, (known.trial.args, known.trial.dy))
        leaves, tree = jax.tree.flatten(args)
        weights = [to_numpy(d) for d in jax.tree.leaves(dy)]
        floats = [i for i, leaf in enumerate(jax.tree.leaves(jax.eval_shape(on.reference, *args))) if is_inexact(leaf)]
        values = quickly(on.reference)

        def cost(i, step):
            moved = [leaf + step if j == i else leaf for j, leaf in enumerate(leaves)]
            y = jax.tree.leaves(values(*tree.unflatten(moved)))
            return sum(float(np.sum(w * to_numpy(y[j])).real) for w, j in zip(weights, floats, strict=True))

        judged = [i for i, expect in enumerate(known.expected.dargs) if expect is not None and got[i] is not None]
        for i in judged[:12]:
            expect, ours = known.expected.dargs[i], to_numpy(got[i])
            if ours.size == 0 or expect.kinks.any() or not np.isfinite(ours).all():
                continue
            v = rng.choice([-1.0, 1.0], ours.shape) * rng.uniform(0.5, 1, ours.shape)
            v = v * (1j ** rng.integers(0, 4, ours.shape)) if is_complex(leaves[i]) else v
            x = np.abs(to_numpy(leaves[i]))
            scale = np.where(x > 0, x, 1e-3 * (x.max() or 1.0))
            v = v * scale
            try:
                slopes = [
                    (8 * (cost(i, h * v) - cost(i, -h * v)) - (cost(i, 2 * h * v) - cost(i, -2 * h * v))) / (12 * h)
                    for h in (2e-4, 1e-4)
                ]
            except Exception:
                return
            along = float(np.sum(ours * v).real)
            size = float(np.sum(np.abs(ours * v))) + float(np.sum(np.abs(expect.truth * v)))
            allowed = 1e-4 * size + float(np.sum(np.broadcast_to(expect.allowed, v.shape) * np.abs(v)))
            settled = np.isfinite(slopes).all() and abs(slopes[0] - slopes[1]) <= 1e-5 * size
            if not settled:
                continue
            error = abs(along - slopes[1])
            ok = error <= allowed
            detail = "" if ok else (
                f"along a random line the cotangent says {along:.6g}, the slope of the reference's values is "
                f"{slopes[1]:.6g}: the gradient is not their slope; if that is wanted, surrogate=True"
            )  # fmt: skip
            yield Finding("adjoint identity", on.names[i], ok, "float64", (), error, allowed, detail=detail)


def repeats(on: Subject, trial: Trial, precision: Precision) -> Iterator[Finding]:
    """Bit by bit the same from run to run, and when it is traced again; on an accelerator, but for rounding."""
    with precision.context():
        args, dy = precision((trial.args, trial.dy))
        again = (quickly if is_float64(args) else jax.jit)(lambda args, dy: on.run(args, dy))
        runs = [flat(on, run(args, dy)[1], args) for run in (on.jitted, on.jitted, again)]
    for leaf, value, *others in zip(on.names, *runs, strict=True):
        if value is None or not is_inexact(value):
            continue
        on_cpu = all(device.platform == "cpu" for device in getattr(value, "devices", set)())  # or it is numpy's
        alike = (lambda a, b: np.array_equal(a, b, equal_nan=True)) if on_cpu else nearly_equal
        ok = all(alike(to_numpy(value), to_numpy(other)) for other in others)
        apart = max(float(np.max(np.abs(to_numpy(value) - to_numpy(other)), initial=0)) for other in others)
        detail = "" if ok else f"the same call gave two answers, {apart:.3g} apart: there is hidden state or noise"
        yield Finding("deterministic", leaf, ok, str(value.dtype), value.shape, apart, detail=detail)


def steady(on: Subject, trial: Trial, own: Precision, first) -> Iterator[Finding]:
    """After all that was asked in between, the same question has the same answer."""
    with own.context():
        args, dy = own((trial.args, trial.dy))
        before, after = flat(on, first, args), flat(on, on.run(args, dy)[1], args)
    for name, want, a, b in zip(on.names, on.wanted, before, after, strict=True):
        if want and a is not None:
            same = nearly_equal(a, b)
            detail = (
                "" if same else "asked again, it answers otherwise: it counts its calls, or keeps something from them"
            )
            yield Finding(
                "deterministic", name, same, str(a.dtype), a.shape, detail=detail, arguments="as given, again"
            )


def pure(on: Subject, trials: list[Trial], own: Precision) -> Iterator[Finding]:
    """Two forward passes, then their two backward passes, in both orders: residuals alone carry what backward needs."""
    first, *others = trials
    other = others[0] if others else first
    with own.context():
        args, dy = own((first.args, first.dy))
        args_2, dy_2 = own((other.args, other.dy))
        alone = flat(on, on.run(args, dy)[1], args)
        answers = []
        for order in ((0, 1), (1, 0)):
            passes = on.pair.forward(*args), on.pair.forward(*args_2)
            back = {n: on.pair.backward(passes[n][1], fitting(passes[n][0], (dy, dy_2)[n])) for n in order}
            answers.append(flat(on, back[0], args))
        answers.append(flat(on, on.run(args, dy)[1], args))
    for name, want, a, *rest in zip(on.names, on.wanted, alone, *answers, strict=True):
        if not want or a is None:
            continue
        close = all(nearly_equal(a, b) for b in rest)
        detail = "" if close else (
            "forward, forward, backward, backward is not what one after the other is: something beside the "
            "residuals is carried from call to call, or the answer changes from call to call"
        )  # fmt: skip
        yield Finding("pure", name, close, str(a.dtype), a.shape, detail=detail)


def nearly_equal(a, b) -> bool:
    """The same but for the rounding of an accelerator's sums in another order."""
    a, b = to_numpy(a), to_numpy(b)
    size = largest([a])
    return bool(np.all((a == b) | (np.isnan(a) & np.isnan(b)) | (np.abs(a - b) <= 1e-6 * (np.abs(a) + size))))


def transformed(on: Subject, known: list[Known], precision: Precision) -> Iterator[Finding]:
    """vmap and scan over several arguments are what each gives alone."""
    with precision.context():
        rows = [precision((trial.args, trial.dy)) for trial, _ in known]
        try:
            batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
        except (TypeError, ValueError):
            return

        def scanned(batch):
            return jax.lax.scan(lambda carry, row: (carry, on.run(*row)[1]), None, batch)[1]

        def vmapped(batch):
            return jax.vmap(lambda row: on.run(*row)[1])(batch)

        programs = {"vmap": vmapped, "scan": scanned}
        if len(jax.devices()) > 1 and len(rows) == 2 and not _calls_back(on, *rows[0]):
            programs["sharded"] = _on_two_devices(vmapped)
        for what, function in programs.items():
            try:
                dargs = jax.block_until_ready(quickly(function)(batch))
            except Exception as error:
                if what != "sharded":  # JAX has limits of its own there, for callbacks say
                    yield or_raised(what, error)
                continue
            for n, (trial, expected) in enumerate(known):
                mine = jax.tree.map(lambda leaf, n=n: leaf[n], dargs)
                yield from against(on, what, flat(on, mine, rows[n][0]), expected, trial.where)


def _calls_back(on: Subject, args, dy) -> bool:
    """Whether it leaves JAX for Python, which cannot be done from several devices at once."""
    return any("callback" in equation.primitive.name for equation in equations(jax.make_jaxpr(on.run)(args, dy)))


def _on_two_devices(vmapped):
    """Each half of a batch on a device of its own."""
    mesh = jax.make_mesh((2,), ("each",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    split = jax.sharding.PartitionSpec("each")
    return jax.shard_map(vmapped, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)


def leaks(on: Subject, trial: Trial) -> Iterator[Finding]:
    """No tracer outlives the trace that made it."""
    try:
        with jax.checking_leaks():
            jax.make_jaxpr(lambda args, dy: on.run(args, dy))(trial.args, trial.dy)
    except Exception as error:
        if "Leaked" in str(error):
            detail = "a tracer is kept beyond its trace, in a global, a default or a closure: "
            yield Finding("leaked tracer", "cotangents", False, detail=detail + first_line(error)[:120])
            return
    yield Finding("leaked tracer", "cotangents", True, detail="none")
