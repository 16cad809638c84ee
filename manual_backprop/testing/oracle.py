"""The judge: a backward pass against `jax.vjp` of an independent reference, on many arguments and cotangents.

A random cotangent is a must: summed outputs (a cotangent of ones) hide most mistakes of a normalisation or a softmax.
What is allowed is derived, in `truth.py`; what is tried is made in `trials.py`; the laws are in `laws.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from manual_backprop.contract import Layer, Op
from manual_backprop.errors import InputError, choose
from manual_backprop.testing.diagnosis import explained
from manual_backprop.testing.examination import EFFORTS, Effort, Options, examined
from manual_backprop.testing.jaxprs import primal
from manual_backprop.testing.leaves import array
from manual_backprop.testing.pair import Pair, as_pair
from manual_backprop.testing.report import Report
from manual_backprop.testing.subject import subject


def check_vjp(
    candidate: Any,
    reference: Callable | None,
    *args: Any,
    argnums: int | tuple[int, ...] | None = None,
    order: int = 2,
    sample: Any = None,
    surrogate: bool = False,
    nonlinear_cotangent: bool = False,
    effort: str = "normal",
    seed: int = 0,
) -> Report:
    """Judges a backward pass; never raises for a wrong one.

    candidate: an `Op`, a `Layer` (args: params, state, x), a pair `(forward, backward)`, or a function, such as a
    `jax.custom_vjp`.
    reference: a JAX function of the same args, written independently; of an Op the primal; None: the candidate's own
    primal, seen through its custom rules.
    args: pytrees of arrays; integers and keys have no cotangent.
    argnums: the arguments to judge; None: every one that is floating or complex.
    order: the highest derivative claimed; 1 for a backward pass that is not meant to be differentiated.
    sample: `seed -> args`, other valid arguments, of other sizes if you like; or a Hypothesis strategy for args.
    surrogate: the wanted gradient is on purpose not the slope of the values (straight-through, gradient reversal).
    nonlinear_cotangent: backward is on purpose not linear in dy (gradient clipping).
    effort: "quick", "normal" or "thorough".  seed: of what is drawn, at least 0.

    Global configuration stays as it was.
    Raises InputError for what cannot be judged: no candidate, no floating-point argument, arguments that are no arrays,
    options of another kind.
    """
    __tracebackhide__ = True
    effort_ = _wanted_options(effort, order, seed)
    pair, args = as_pair(candidate), jax.tree.map(array, args)
    function, name = _reference(reference, pair)
    options = Options(args, _argnums(argnums, len(args)), order, sample, surrogate, nonlinear_cotangent, effort, seed)
    with jax.default_matmul_precision("highest"), np.errstate(all="ignore"):
        on = subject(pair, function, args, options.argnums)._replace(is_slope=not surrogate)
        if not any(on.wanted):
            raise InputError("check_vjp: no argument is of a floating dtype; there is no gradient to judge")
        found = list(examined(on, options, effort_))
    wrong = [(trial, finding) for trial, finding in found if not finding.ok]
    explain = lambda: explained(on, wrong, options, pair.name, name)
    return Report(pair.name, name, seed, tuple(finding for _, finding in found), explain)


def assert_vjp_matches(candidate: Any, reference: Callable | None, *args: Any, **options: Any) -> None:
    """Raises AssertionError with the report when `check_vjp` finds anything wrong; it takes the same options."""
    __tracebackhide__ = True
    report = check_vjp(candidate, reference, *args, **options)
    if not report:
        raise AssertionError(f"\n{report}")


def _wanted_options(effort, order, seed) -> Effort:
    for name, value, least in (("seed", seed, 0), ("order", order, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"check_vjp: {name} is {value!r}; wants a whole number, at least {least}")
    if not isinstance(effort, str):
        raise InputError(f"check_vjp: effort is {effort!r}; wants one of {', '.join(EFFORTS)}")
    return choose("check_vjp: effort", effort, EFFORTS)


def _argnums(argnums, count: int) -> tuple[int, ...] | None:
    if argnums is None:
        return None
    chosen = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    for n in chosen:
        if isinstance(n, bool) or not isinstance(n, int) or not -count <= n < count:
            raise InputError(f"check_vjp: argnums has {n!r}; wants places of the {count} arguments, from 0")
    return tuple(n % count for n in chosen)


def _reference(reference, pair: Pair) -> tuple[Callable, str]:
    """The function that autodiff is to see through, and its name. A candidate's own rules would judge themselves."""
    if reference is None:
        return primal(pair.primal), "its own primal"
    if getattr(reference, "makes_op", False):
        reference = reference()
    if isinstance(reference, Op):
        return lambda *args: reference.forward(*args)[0], f"the primal of {reference!r}"
    if isinstance(reference, Layer) or not callable(reference):
        raise InputError(f"check_vjp: the reference is {reference!r}; wants a function of the arguments, or None")
    return reference, getattr(reference, "__name__", repr(reference))
