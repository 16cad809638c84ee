"""What is wrong, in words: from the numbers, from the reference's equations, from the candidate's own.

An explanation is a claim that the wrong gradient equals another formula. Each is held against a second cotangent; one
that fits both is said to be sure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import jax
import numpy as np

from manual_backprop.testing import judge, laws
from manual_backprop.testing.diagnosis.omissions import omissions
from manual_backprop.testing.diagnosis.paths import paths
from manual_backprop.testing.diagnosis.patterns import patterns
from manual_backprop.testing.diagnosis.places import is_place
from manual_backprop.testing.diagnosis.repairs import repairs
from manual_backprop.testing.diagnosis.scene import Scene, scene
from manual_backprop.testing.diagnosis.words import words
from manual_backprop.testing.examination import Options, tried
from manual_backprop.testing.jaxprs import narrowest
from manual_backprop.testing.leaves import draw, to_numpy
from manual_backprop.testing.report import Errors, Explanation, Finding
from manual_backprop.testing.shrink import call, said, shrunk
from manual_backprop.testing.subject import FLOAT64, Precision, Subject, answer, expected, own_precision
from manual_backprop.testing.trials import Trial

MOST = 6  # explanations that are told
SECONDS_TO_SHRINK = {"quick": 1.0, "normal": 3.0, "thorough": 20.0}


def explained(
    on: Subject, wrong: list[tuple[Trial, Finding]], options: Options, name: str, reference: str
) -> Explanation:
    """The diagnosis of what was found, the smallest failing arguments, and the errors entry by entry."""
    if any(finding.leaf == "reference" and finding.property == "runs" for _, finding in wrong):
        return Explanation()  # nothing was judged
    texts = [text for _, finding in wrong for text in words(finding)]
    again = options.line(name, reference)
    judged = [(t, f) for t, f in wrong if f.leaf in on.names and f.property.startswith(("gradient", "zero", "shape"))]
    if not judged:
        return Explanation(tuple(dict.fromkeys(texts)), "", again)
    trial = judged[0][0]
    mine = [finding for t, finding in judged if t is trial]
    shapes = any(finding.property.startswith("shape") for finding in mine)
    sharp = any("float64" in finding.property for finding in mine) and not shapes
    precision = FLOAT64 if sharp else own_precision(options.args, on.wanted)
    with jax.default_matmul_precision("highest"), np.errstate(all="ignore"):
        found = (*formulas(on, trial, precision, options.seed), *_rounded(on, trial, precision))
        where = "" if trial.where == "as given" else f"right as given, wrong on arguments {trial.where}: "
        texts = [*(f"{where}{text}" for text in found), *texts]
        if shapes:
            return Explanation(tuple(dict.fromkeys(texts)), "", again)
        leaves = {finding.leaf for finding in mine}

        def fails(smaller: Trial) -> bool:
            findings, _ = tried(on, smaller, precision, None, options.seed)
            return any(not f.ok and f.leaf in leaves and f.property.startswith("gradient") for f in findings)

        small = shrunk(trial, on.reference, fails, SECONDS_TO_SHRINK[options.effort])
        errors = tuple(_errors(on, trial, precision, options.seed))
    again = call(small, name, reference, options.seed, options.more()) or again
    return Explanation(tuple(dict.fromkeys(texts)), said(small, on.argument_names), again, errors)


def _errors(on: Subject, trial: Trial, precision: Precision, seed) -> Iterator[Errors]:
    try:
        expect = expected(on, trial.args, trial.dy, precision, seed)
        _, dargs = answer(on, on.jitted, trial.args, trial.dy, precision)
    except Exception:
        return
    for name, got, e in zip(on.names, laws.flat(on, dargs, trial.args), expect.dargs, strict=True):
        if e is not None and got is not None and not judge.compared("", name, got, e).ok:
            allowed = np.broadcast_to(e.allowed, e.truth.shape)
            yield Errors(name, trial.where, to_numpy(got), e.truth, allowed)


def _rounded(on: Subject, trial: Trial, precision: Precision) -> Iterator[str]:
    """Where the candidate loses digits that its arguments have."""
    try:
        with precision.context():
            found = narrowest(jax.make_jaxpr(on.run)(*precision((trial.args, trial.dy))))
    except Exception:
        return
    if found is not None:
        yield f"precision: the candidate rounds inside, to {found} (a fact; it may be the cause)"


def formulas(on: Subject, trial, precision: Precision, seed: int) -> tuple[str, ...]:
    """The formulas that wrong values equal on a trial's arguments, the plainest first."""
    first = scene(on, trial.args, trial.dy, precision, seed)
    if first is None or not first.wrong:
        return ()
    rng = np.random.default_rng(seed + 1)
    other = jax.tree.map(lambda d: draw(rng, d), trial.dy)
    second = scene(on, trial.args, other, precision, seed)
    told = list(_told(first, second if second is not None and second.wrong else None))
    lines = [f"{text} (sure: it fits every number, for two cotangents)" for text, sure in told if sure]
    lines += [f"{text} (likely: it fits these numbers)" for text, sure in told if not sure]
    if not lines:
        return ("no simple explanation: the wrong gradient equals none of the formulas tried",)
    return tuple(lines[:MOST])


def _told(first: Scene, second: Scene | None) -> Iterator[tuple[str, bool]]:
    """(sentence, whether a second cotangent agrees): formulas first, then where the wrong entries are."""
    again = set(_whole(patterns, second)) if second is not None else set()
    by_numbers = [(text, text in again) for text in _whole(patterns, first)]
    formulas = [(text, sure) for text, sure in by_numbers if not is_place(text)]
    yield from formulas
    by_path = sorted([*_whole(paths, first, second), *_whole(omissions, first, second)])[:3]
    yield from ((text, sure) for _, text, sure in by_path)
    if not formulas or not by_path:
        yield from ((text, sure) for _, text, sure in sorted(_whole(repairs, first, second))[:2])
    yield from ((text, sure) for text, sure in by_numbers if is_place(text))


def _whole(source: Callable, *scenes: Scene | None) -> list:
    """What a source of explanations says; nothing more where it cannot cope: a verdict stands without one."""
    found = []
    with suppress(Exception):
        for one in source(*scenes):
            found.append(one)  # one by one: what came before an exception counts
    return found
