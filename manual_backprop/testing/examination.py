"""The examination of one candidate: as given, then on other cotangents and arguments, then by the laws."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from manual_backprop.errors import InputError
from manual_backprop.testing import judge, laws
from manual_backprop.testing.derivatives import derivative
from manual_backprop.testing.exponents import largest_exponent
from manual_backprop.testing.laws import Known, raised, refused
from manual_backprop.testing.leaves import draw, is_inexact, largest, to_float64, to_numpy, ulp
from manual_backprop.testing.report import Finding
from manual_backprop.testing.sight import seen, sharper
from manual_backprop.testing.slopes import slopes
from manual_backprop.testing.subject import (
    FLOAT64,
    Precision,
    Subject,
    answer,
    expected,
    own_precision,
    softened,
)
from manual_backprop.testing.trials import LAST_INDEX, Trial, cotangents, drawn, in_bounds, of_one, regimes
from manual_backprop.testing.truth import Leaves


class Effort(NamedTuple):
    """How much is tried: draws of `sample`, trials at most, whether the transforms and higher derivatives are."""

    draws: int
    trials: int
    all_laws: bool


EFFORTS = {"quick": Effort(2, 16, False), "normal": Effort(5, 60, True), "thorough": Effort(20, 200, True)}
LARGE = 100_000  # entries in all from which a few trials must do


class Options(NamedTuple):
    """What the caller asked for."""

    args: tuple
    argnums: tuple[int, ...] | None
    order: int
    sample: Any
    surrogate: bool
    nonlinear: bool
    effort: str
    seed: int

    def line(self, candidate: str, reference: str) -> str:
        """The line that runs it again."""
        return f"check_vjp({candidate}, {reference}, *args{self.more()}, seed={self.seed})"

    def more(self) -> str:
        """The options that are not the default."""
        shown = {
            "argnums": (self.argnums, None),
            "order": (self.order, 2),
            "surrogate": (self.surrogate, False),
            "nonlinear_cotangent": (self.nonlinear, False),
            "effort": (self.effort, "normal"),
        }
        more = "".join(f", {name}={value!r}" for name, (value, default) in shown.items() if value != default)
        return more + ", sample=…" * (self.sample is not None)


Examined = Iterator[tuple[Trial | None, Finding]]


def examined(on: Subject, options: Options, effort: Effort) -> Examined:
    """Every finding, with the trial it was made on."""
    args, rng = options.args, np.random.default_rng(options.seed)
    try:
        y = jax.eval_shape(on.reference, *args)
    except jax.errors.JAXTypeError:  # it looks at values
        y = on.reference(*args)
    except Exception as error:
        yield None, raised("reference", error, "on these arguments")
        return
    if not any(map(is_inexact, jax.tree.leaves(y))):
        dtypes = ", ".join(str(leaf.dtype) for leaf in jax.tree.leaves(y)) or "nothing"
        raise InputError(f"check_vjp: the reference returns {dtypes}; wants floating point outputs")
    given = Trial("as given", args, jax.tree.map(lambda leaf: draw(rng, leaf), y))
    try:
        in_64 = expected(on, given.args, given.dy, FLOAT64, options.seed)
    except Exception as error:
        yield None, raised("reference", error, "when it is differentiated")
        return
    own = own_precision(args, on.wanted)
    in_own = in_64 if own.dtype else expected(on, given.args, given.dy, own, options.seed)
    try:
        eager = answer(on, on.run, given.args, given.dy, own)
    except Exception as error:
        yield given, raised(on.pair.name, error, f"in {own.name}")
        return
    first = list(_first(on, given, y, eager, in_own, own))
    yield from ((given, finding) for finding in first)
    if any(finding.detail and not finding.ok for finding in first):
        return
    decisive, sight, found = own, None, []
    if own.dtype is None:
        decisive, sight, found = sharper(on, given, own, in_64, in_own, options.seed)
        yield from ((given, finding) for finding in found)
    precisions = [own] if decisive is own else [own, decisive]
    wrong = {finding.leaf for finding in [*first, *found] if not finding.ok}
    yield from _others(on, given, precisions, sight, options, effort, rng, bool(wrong))
    yield from ((given, finding) for finding in laws.steady(on, given, own, eager[1]) if not finding.ok)


def _first(on: Subject, given: Trial, y, eager: tuple, in_own, own: Precision) -> Iterator[Finding]:
    """As given, in its own precision: structure, values, and jit against eager."""
    if problem := judge.misfit(eager[0], y):
        yield Finding("primal", "y", False, detail=problem)
        return
    problems = list(judge.structure(on.names, on.wanted, given.args, eager[1], on.argument_names))
    yield from problems
    if any(problem.property in ("arity", "structure") for problem in problems):
        return
    try:
        jitted = answer(on, on.jitted, given.args, given.dy, own)
    except Exception as error:
        yield raised(on.pair.name, error, f"in {own.name} under jit")
        return
    (y_eager, eager), (y_jit, jitted) = (
        (jax.tree.leaves(y), laws.flat(on, dargs, given.args)) for y, dargs in (eager, jitted)
    )
    bad = {problem.leaf for problem in problems}
    fit = [None if name in bad else got for name, got in zip(on.names, eager, strict=True)]
    found = list(judge.values(on.names, y_eager, fit, in_own, own.name))
    if judge.is_slight(found, in_own, own.name):
        in_own = softened(on, given.args, given.dy, own, in_own)
        found = list(judge.values(on.names, y_eager, fit, in_own, own.name))
    yield from found
    for name, got, other, expect in zip(on.names, fit, jitted, in_own.dargs, strict=True):
        if expect is not None and got is not None and other is not None:
            yield judge.compared("jit = eager", name, other, judge.around(expect, got))
    for name, got, other, expect in zip(judge.y_names(len(y_eager)), y_eager, y_jit, in_own.y, strict=True):
        yield judge.compared("jit = eager", name, other, judge.around(expect, got))


def _others(on: Subject, given: Trial, precisions, sight, options: Options, effort: Effort, rng, wrong) -> Examined:
    """Other cotangents, other arguments, and the laws; of what is wrong as given, other cotangents tell enough."""
    own, decisive = precisions[0], precisions[-1]
    samples = drawn(options.sample, effort.draws, options.seed)
    as_given = seen(expected(on, given.args, given.dy, decisive, options.seed), sight, decisive)
    known, failed, count = [Known(given, as_given)], {}, 0
    trials = _trials(on, given, as_given, samples, options, effort, rng)
    for trial in trials[:8] if wrong else trials:
        count += 1
        alike = _same_shapes(trial.args, given.args)
        try:
            in_64 = expected(on, trial.args, trial.dy, FLOAT64, options.seed)
        except Exception as error:
            if not trial.derived:
                failed.setdefault(("runs", "reference"), []).append((trial, raised("reference", error, trial.where)))
            continue
        right, expect = True, None
        for precision in precisions if alike else precisions[-1:]:
            seeing = sight if precision is decisive else None
            found, expect = tried(on, trial, precision, seeing, options.seed, in_64)
            if samples and trial.derived and any(not f.ok and f.property.startswith("primal") for f in found):
                right = False
                continue  # the caller draws valid arguments; these are none, if not even the values are the reference's
            right = right and all(finding.ok for finding in found)
            for finding in found:
                if not finding.ok:
                    what = "zero cotangent" if trial.where == "dy of zeros" else finding.property
                    failed.setdefault((what.split(" in ")[0], finding.leaf), []).append((trial, finding))
        if (
            right
            and expect is not None
            and alike
            and trial.derived
            and len(known) < 2
            and trial.where in FOR_TRANSFORMS
        ):
            known.append(Known(trial, expect))
    for found in failed.values():
        trial, finding = found[0]
        more = f" and {len(found) - 1} others" if len(found) > 1 else ""
        yield trial, dataclasses.replace(finding, arguments=f"{trial.where}{more}")
    if not failed:
        detail = f"right on {count} other arguments and cotangents"
        yield given, Finding("other arguments", "cotangents", True, detail=detail)
    yield from _lawful(on, given, known, own, decisive, sight, options, effort, rng, wrong)


FOR_TRANSFORMS = ("permuted", "drawn anew", "with signs flipped")  # arguments as good as the given ones


def _trials(on: Subject, given: Trial, as_given, samples, options: Options, effort: Effort, rng) -> list[Trial]:
    """What is tried besides the arguments as given."""
    size = largest(jax.tree.leaves(given.dy)) or 1.0
    gains = tuple(0.0 if e is None else largest([e.truth]) / size for e in as_given.dargs)
    trials = [Trial(where, given.args, dy, gains=gains) for where, dy in cotangents(rng, given.dy, options.nonlinear)]
    for where, other in regimes(rng, given.args, samples, [name[1:] for name in on.names], options.effort):
        if where != LAST_INDEX or in_bounds(on.reference, other):
            trials.append(Trial(where, other, jax.tree.map(lambda d: draw(rng, d), given.dy), derived=True))
    if sum(leaf.size for leaf in jax.tree.leaves(given.args)) >= LARGE:
        trials = [*trials[:2], *trials[-4:]]
    return [*trials[: effort.trials], *_sampled(on, samples, options, rng), *_one(on, given, rng)]


def _same_shapes(a, b) -> bool:
    shapes = lambda tree: [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]
    return jax.tree.structure(a) == jax.tree.structure(b) and shapes(a) == shapes(b)


def tried(on: Subject, trial: Trial, precision: Precision, sight, seed, in_64: Leaves | None = None):
    """The findings of one trial in one precision, and what was expected: nothing outside the reference's domain.

    Raises what the reference raises.
    """
    expect = expected(on, trial.args, trial.dy, precision, seed, in_64)
    if trial.derived and not all(np.isfinite(e.truth).all() for e in expect.y):
        return [], None
    expect = seen(_with_gains(judge.asked(expect, trial.derived), trial, precision), sight, precision)
    try:
        y, dargs = answer(on, on.jitted, trial.args, trial.dy, precision)
        flat, y = laws.flat(on, dargs, trial.args), jax.tree.leaves(y)
        with precision.context():
            cast = precision(trial.args)
        problems = list(judge.structure(on.names, on.wanted, cast, dargs, on.argument_names))
        if problems and (precision.dtype is None or any(map(judge.is_misshapen, problems))):
            return [dataclasses.replace(problem, arguments=trial.where) for problem in problems], None
        found = list(judge.values(on.names, y, flat, expect, precision.name, trial.where))
        if judge.is_slight(found, expect, precision.name):
            expect = softened(on, trial.args, trial.dy, precision, expect)
            found = list(judge.values(on.names, y, flat, expect, precision.name, trial.where))
        found = [finding for finding in found if sight is None or not sight.blurs(finding)]
        found = [finding for finding in found if finding.ok or not _is_slope(on, trial, finding, flat, expect)]
        if trial.derived and not all(finding.ok for finding in found):
            expect = _by_exponents(on, trial, precision, expect)
            wrong = {(finding.property, finding.leaf) for finding in found if not finding.ok}
            again = judge.values(on.names, y, flat, expect, precision.name, trial.where)
            found = [finding for finding in again if finding.ok or (finding.property, finding.leaf) in wrong]
    except Exception as error:
        scalar = all(leaf.ndim == 0 for leaf in jax.tree.leaves(trial.dy))
        if trial.derived and (refused(error) or scalar):
            return [], None
        return [dataclasses.replace(raised(on.pair.name, error, f"in {precision.name}"), arguments=trial.where)], None
    return found, expect


def _by_exponents(on: Subject, trial: Trial, precision: Precision, expect: Leaves) -> Leaves:
    """Allows what an exponential makes of the last digit of its argument. Sums are taken to be in at least float32."""
    try:
        with jax.enable_x64(True):
            s = largest_exponent(on.reference, jax.tree.map(to_float64, trial.args))
    except Exception:  # the reference cannot be carried out by its equations: nothing more is allowed
        return expect
    eps = 4 * s * ulp("float64" if precision.dtype == "float64" else "float32")
    blind = 1e300 if eps > 0.5 else 0.0  # no digit of an exponential is known: any finite number will do
    more = lambda e: e if e is None else e._replace(allowed=e.allowed + eps * largest([e.truth]) + blind)
    return expect._replace(dargs=[more(e) for e in expect.dargs])


def _is_slope(on: Subject, trial: Trial, finding: Finding, dargs: list, expect: Leaves) -> bool:
    """Whether what autodiff of the reference calls wrong is the slope of its values after all.

    Autodiff errs at points where a smooth function is put together of parts that are not, as at the ties of a maximum.
    """
    if not on.is_slope or finding.leaf not in on.names or finding.detail or finding.wrong > FEW:
        return False
    i = on.names.index(finding.leaf)
    e, got = expect.dargs[i], to_numpy(dargs[i])
    if np.iscomplexobj(got) or np.iscomplexobj(e.truth):
        return False
    allowed = np.broadcast_to(e.allowed, got.shape)
    entries = [tuple(map(int, entry)) for entry in np.argwhere(judge.errors(got, e) > allowed)]
    with jax.enable_x64(True):
        found = slopes(on.vjp, *jax.tree.map(to_float64, (trial.args, trial.dy)), i, entries)
    return bool(entries) and all(
        slope.high - slope.low <= slope.allowed and abs(got[entry] - slope.low) <= slope.allowed + allowed[entry]
        for entry, slope in zip(entries, found, strict=True)
    )


FEW = 64  # wrong entries of a leaf that may be the reference's own fault


def _with_gains(expect: Leaves, trial: Trial, precision: Precision) -> Leaves:
    """Allows the rounding that a cotangent of this size brings, in every entry of a leaf.

    Of one ten thousand times larger or smaller, a thousandth: a right backward pass may compute with dy among other
    numbers, as in a matrix exponential of a block that holds it. In float64 that is not allowed.
    """
    if not trial.gains:
        return expect
    size = largest(jax.tree.leaves(trial.dy))
    floats = (leaf.dtype for leaf in jax.tree.leaves(trial.args) if is_inexact(leaf))
    eps = ulp("float64") if precision.dtype == "float64" else max(map(ulp, floats))
    share = 1e-3 if trial.where.startswith("dy ×") and precision.dtype != "float64" else 0.0
    more = lambda e, gain: (
        e if e is None else e._replace(allowed=e.allowed + 4 * eps * gain * size + share * largest([e.truth]))
    )
    return expect._replace(dargs=[*map(more, expect.dargs, trial.gains)])


def _sampled(on: Subject, samples, options: Options, rng) -> Iterator[Trial]:
    for n, args in enumerate(samples):
        try:
            y = jax.eval_shape(on.reference, *args)
        except Exception as error:
            raise InputError(
                f"check_vjp: draw {n} of sample does not fit the reference: {laws.first_line(error)}"
            ) from None
        yield Trial(f"drawn by sample, number {n}", args, jax.tree.map(lambda leaf: draw(rng, leaf), y))


def _one(on: Subject, given: Trial, rng) -> Iterator[Trial]:
    """A batch of one."""
    args = of_one(given.args, given.dy)
    if args is None:
        return
    try:
        y = jax.eval_shape(on.reference, *args)
    except Exception:
        return
    wanted = [(1, *leaf.shape[1:]) if leaf.ndim else () for leaf in jax.tree.leaves(given.dy)]
    if [leaf.shape for leaf in jax.tree.leaves(y) if is_inexact(leaf)] != wanted:
        return
    yield Trial("a batch of one", args, jax.tree.map(lambda leaf: draw(rng, leaf), y), derived=True)


def _lawful(on: Subject, given: Trial, known, own, decisive, sight, options, effort, rng, wrong) -> Examined:
    found: list[Finding] = []
    others = [trial for trial, _ in known]
    if not options.nonlinear:
        found += laws.linear(on, known[0], decisive, 0.0 if sight is None else sight.eps, rng)
    found += laws.repeats(on, given, decisive)
    if effort.all_laws and not wrong:
        if not (options.surrogate or options.nonlinear):
            found += laws.adjoint(on, known[0], decisive, rng)
        found += laws.pure(on, others, own)
        found += laws.transformed(on, known, decisive)
        found += laws.leaks(on, given)
    yield from ((given, finding) for finding in gathered(found))
    if effort.all_laws and not wrong:
        for n in range(2, options.order + 1):
            yield from ((given, finding) for finding in derivative(on, given, n, decisive, options.seed))


def gathered(found: list[Finding]) -> Iterator[Finding]:
    """Of each law and leaf the first failure; of a law that holds, one line."""
    for what in dict.fromkeys(finding.property for finding in found):
        mine = [finding for finding in found if finding.property == what]
        wrong = [finding for finding in mine if not finding.ok]
        if wrong:
            yield from {finding.leaf: finding for finding in reversed(wrong)}.values()
        else:
            noted = next((finding.detail for finding in mine if finding.detail), "")
            yield Finding(what, "cotangents", True, detail=noted or f"holds for {len({f.leaf for f in mine})} leaves")
