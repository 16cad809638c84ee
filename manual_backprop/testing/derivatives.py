"""Higher derivatives: the gradient of the gradient's inner product with a direction, by the candidate's own rule.

A gradient is a function of (args, dy); differentiated, it is a candidate like any other, and judged in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import numpy as np

from manual_backprop.testing import judge, laws
from manual_backprop.testing.jaxprs import narrowest
from manual_backprop.testing.leaves import draw, is_inexact, largest
from manual_backprop.testing.pair import as_pair
from manual_backprop.testing.report import Finding
from manual_backprop.testing.subject import Precision, Subject, answer, expected, made, softened
from manual_backprop.testing.trials import Trial
from manual_backprop.testing.truth import Expected, gradient_of


def derivative(on: Subject, given: Trial, order: int, precision: Precision, seed: int) -> Iterator[Finding]:
    """The derivative of this order, for every leaf of (args, dy) and, from the third on, of the directions before."""
    what, rng = f"derivative of order {order}", np.random.default_rng(seed + order)
    candidate, reference = _by_its_own_rule(on), on.reference
    args, dy, wanted, names = given.args, given.dy, on.wanted, on.names
    for _ in range(order - 1):
        candidate, reference = _gradient(candidate, wanted), _gradient(reference, wanted)
        direction = jax.tree.map(lambda leaf: draw(rng, leaf), jax.eval_shape(reference, args, dy))
        floats = tuple(is_inexact(leaf) for leaf in jax.tree.leaves(dy))
        wanted, names = (*wanted, *floats), (*names, *("ddy" for _ in floats))
        args, dy = (args, dy), direction
    higher = made(as_pair(candidate), reference, ("args", "dy"), names, wanted)
    try:
        expect = expected(higher, args, dy, precision, seed)
    except Exception as error:
        yield Finding(
            what, "cotangents", True, detail=f"not judged: the reference has none: {laws.first_line(error)[:100]}"
        )
        return
    try:
        _, dargs = answer(higher, higher.jitted, args, dy, precision)
    except Exception as error:
        yield laws.or_raised(what, error)
        return
    expect = expect._replace(dargs=[None if e is None else _where_finite(e) for e in expect.dargs])
    flat = laws.flat(higher, dargs, args)
    found = list(laws.against(higher, what, flat, expect))
    if judge.is_slight(found, expect, precision.name):
        found = list(laws.against(higher, what, flat, softened(higher, args, dy, precision, expect)))
    bad = [finding for finding in found if not finding.ok]
    if precision.dtype == "float64" and bad:
        with precision.context():
            rounding = narrowest(jax.make_jaxpr(higher.run)(*precision((args, dy))))
        if rounding is not None:
            bad = [f for f in bad if f.error > 64 * rounding.eps * largest([np.asarray(f.expected), np.asarray(f.got)])]
    yield from bad
    if not bad:
        yield Finding(what, "cotangents", True, detail=f"holds for {len(found)} leaves")


def _where_finite(expect: Expected) -> Expected:
    """Where the reference's derivative is not finite, or has a kink, nothing is asked of a higher one."""
    with np.errstate(invalid="ignore"):
        asked = np.isfinite(expect.truth) & (np.abs(expect.truth) < 1e100) & ~expect.kinks
    return expect._replace(allowed=np.where(asked, expect.allowed, np.inf), sums=())


def _by_its_own_rule(on: Subject) -> Callable:
    """The candidate as what JAX differentiates by the candidate's own backward pass."""
    function = jax.custom_vjp(on.pair.primal)
    function.defvjp(on.pair.forward, on.pair.backward)
    return function


def _gradient(function: Callable, wanted: tuple[bool, ...]) -> Callable:
    run = gradient_of(function, wanted)
    return lambda args, dy: run(args, dy)[1]
