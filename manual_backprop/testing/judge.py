"""Holds what a candidate answers against what is expected: first its structure, then its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manual_backprop.testing.leaves import flat_cotangents, is_inexact, largest, text, to_numpy
from manual_backprop.testing.report import Finding
from manual_backprop.testing.truth import Expected, Leaves


def misfit(y, wanted) -> str | None:
    """What is wrong with the structure, shapes or dtypes of y. A wider dtype than the reference's is no mistake."""
    if jax.tree.structure(_tuples(y)) != jax.tree.structure(_tuples(wanted)):
        return f"got {text(y)}, expected {text(wanted)}"
    for got, expected in zip(jax.tree.leaves(y), jax.tree.leaves(wanted), strict=True):
        if not hasattr(got, "dtype") and not isinstance(got, bool | int | float | complex):
            return f"got {text(got)}, expected {text(expected)}"
        got = jax.eval_shape(jnp.asarray, got)
        if got.shape != expected.shape or not _holds(got.dtype, expected.dtype):
            return f"got {text(got)}, expected {text(expected)}"
    return None


def _tuples(tree):
    """Lists as tuples: which of the two a function returns is no matter of gradients."""
    if type(tree) in (list, tuple):
        return tuple(map(_tuples, tree))
    return {key: _tuples(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


def _holds(wide, narrow) -> bool:
    return wide == narrow or (is_number(wide) and is_number(narrow) and jnp.promote_types(wide, narrow) == wide)


def is_number(dtype) -> bool:
    return not jnp.issubdtype(dtype, jax.dtypes.extended)


def structure(names, wanted, args: tuple, dargs: Any, argument_names) -> Iterator[Finding]:
    """Arity, structure, and each leaf's shape and dtype. names, wanted: for each leaf of the arguments."""
    if not isinstance(dargs, tuple) or len(dargs) != len(args):
        count = f"a tuple of {len(dargs)}" if isinstance(dargs, tuple) else text(dargs)
        detail = f"got {count}, expected a tuple of {len(args)}, one per argument"
        yield Finding("arity", "cotangents", False, detail=detail)
        return
    start = 0
    for name, arg, darg in zip(argument_names, args, dargs, strict=True):
        count = len(jax.tree.leaves(arg))
        if any(wanted[start : start + count]):
            try:
                flat_cotangents((darg,), (arg,))
            except ValueError:
                detail = f"got {text(darg)}, expected the structure {jax.tree.structure(arg)}, as its argument"
                yield Finding("structure", f"d{name}", False, detail=detail)
                return
        start += count
    flat = flat_or_none(dargs, args)
    for name, want, arg, got in zip(names, wanted, jax.tree.leaves(args), flat, strict=True):
        expected, shown = text(arg) if want else "None", text(got)
        if expected != shown and (want or _was_integer(arg, got)):
            detail = f"got {shown}, expected {expected}, as its argument"
            yield Finding("shape and dtype", name, False, detail=detail)


def is_misshapen(finding: Finding) -> bool:
    """Whether it is more than a matter of dtype."""
    if finding.property != "shape and dtype":
        return True
    got, _, expected = finding.detail.partition(", expected ")
    return got.partition("[")[2] != expected.partition("[")[2].removesuffix(", as its argument")


def _was_integer(arg, got) -> bool:
    """A cotangent for an integer argument ought to be None; zeros of any floating dtype do no harm."""
    return not is_inexact(arg) and got is not None and not (hasattr(got, "dtype") and is_inexact(got))


def flat_or_none(dargs, args) -> list:
    """The cotangents, one a leaf; None for a whole argument whose cotangent has another structure."""
    leaves = []
    for arg, darg in zip(args, dargs, strict=True):
        try:
            leaves += flat_cotangents((darg,), (arg,))
        except ValueError:
            leaves += [None] * len(jax.tree.leaves(arg))
    return leaves


def y_names(count: int) -> list[str]:
    """What the leaves of y are called."""
    return ["y"] if count == 1 else [f"y[{i}]" for i in range(count)]


def values(names, y: list, dargs: list, expected: Leaves, precision: str, where: str = "as given") -> Iterator[Finding]:
    """Each leaf of y, and of the cotangents where there is a truth; those whose structure is wrong are left out."""
    for name, got, expect in zip(y_names(len(y)), y, expected.y, strict=True):
        yield compared(f"primal in {precision}", name, got, expect, where)
    for name, got, expect in zip(names, dargs, expected.dargs, strict=True):
        if expect is not None and got is not None and np.shape(got) == expect.truth.shape:
            yield compared(f"gradient in {precision}", name, got, expect, where)
    for i, j in _tied(expected.dargs):
        yield from _together(names, dargs, expected.dargs, i, j, precision, where)


SLIGHT = {"float64": 1e-6, "float32": 1e-3}


def is_slight(findings: list[Finding], expected: Leaves, precision: str) -> bool:
    """Whether some are wrong by so little that it may be rounding; never below float32, where that says nothing."""
    size = max((largest([e.truth]) for side in expected for e in side if e is not None), default=0.0)
    wrong = [finding for finding in findings if not finding.ok and not finding.detail]
    return any(finding.error <= SLIGHT.get(precision, 0) * (1 + size) for finding in wrong)


def compared(what: str, leaf: str, got, expect: Expected, where: str = "as given") -> Finding:
    dtype, got = str(jnp.result_type(got)), to_numpy(got)
    E = expect.truth
    if got.shape != E.shape:
        return Finding(
            what, leaf, False, detail=f"got shape {list(got.shape)}, expected {list(E.shape)}", arguments=where
        )
    error, allowed = errors(got, expect), np.broadcast_to(expect.allowed, E.shape)
    if error.size == 0:
        return Finding(what, leaf, True, dtype, error.shape, arguments=where)
    bad = error > allowed
    wrong = int(bad.sum())
    with np.errstate(invalid="ignore"):
        excess = np.where(bad, np.nan_to_num(error - allowed, nan=np.inf), -np.inf)
    worst = tuple(map(int, np.unravel_index(np.argmax(excess if wrong else error), error.shape)))
    found = Finding(
        what, leaf, wrong == 0, dtype, error.shape, float(error[worst]), float(allowed[worst]), wrong, worst,
        got[worst], E[worst], int(expect.kinks.sum()), arguments=where,
    )  # fmt: skip
    return found if wrong else _sums_of(found, got, expect)


def errors(got: np.ndarray, expect: Expected) -> np.ndarray:
    """How far each entry is from where it ought to be; infinite for NaN where a number is due, or the reverse."""
    E = expect.truth
    with np.errstate(invalid="ignore", over="ignore"):
        same = (got == E) | (~np.isfinite(got) & (np.isnan(E) | expect.failed))
        outside = np.abs(got - E)
        if not np.iscomplexobj(got) and not np.iscomplexobj(E):
            outside = np.maximum(np.maximum(expect.low - got, got - expect.high), 0)
        return np.where(same, 0.0, np.where(np.isnan(outside) | np.isnan(got), np.inf, outside))


def _sums_of(found: Finding, got: np.ndarray, expect: Expected) -> Finding:
    """The finding, unless entries at kinks do not add up."""
    for axes, S, allowed in expect.sums:
        with np.errstate(invalid="ignore"):
            error = np.nan_to_num(np.abs(got.sum(axes) - S))  # NaN: entries of which nothing is asked
        if (bad := error > allowed).any():
            worst = np.unravel_index(np.argmax(np.where(bad, error, -1)), error.shape) if error.ndim else ()
            detail = (
                f"at a kink the entries, summed over axes {list(axes)}, are {got.sum(axes)[worst]:.6g}; "
                f"every subgradient there sums to {S[worst]:.6g}"
            )
            return Finding(found.property, found.leaf, False, found.dtype, found.shape, detail=detail,
                           wrong=int(bad.sum()), arguments=found.arguments)  # fmt: skip
    return found


def _tied(expected: list) -> Iterator[tuple[int, int]]:
    """Pairs of leaves of the same shape that have kinks at the same entries, as the two sides of a maximum."""
    some = [(i, e) for i, e in enumerate(expected) if e is not None and e.kinks.any()]
    for n, (i, a) in enumerate(some):
        for j, b in some[n + 1 :]:
            if a.kinks.shape == b.kinks.shape and (a.kinks == b.kinks).all():
                yield i, j


def _together(names, dargs, expected, i, j, precision, where) -> Iterator[Finding]:
    """Where two leaves have a kink at once, and what one gains the other loses: ours must add up as well."""
    a, b = expected[i], expected[j]
    if dargs[i] is None or dargs[j] is None:
        return
    with np.errstate(invalid="ignore"):
        total = a.truth + b.truth
        held = a.kinks & (np.abs(a.low + b.high - total) <= 1e-9 * (abs(a.low) + abs(b.high)))
        held &= np.abs(a.high + b.low - total) <= 1e-9 * (abs(a.high) + abs(b.low))
        error = np.abs(to_numpy(dargs[i]) + to_numpy(dargs[j]) - total)
        bad = held & (error > a.allowed + b.allowed)
    if bad.any():
        worst = tuple(int(k) for k in np.unravel_index(np.argmax(np.where(bad, error, -1)), error.shape))
        detail = (
            f"at a kink {names[i]} + {names[j]} is off by {error[worst]:.3g} at {list(worst)}; every subgradient there "
            f"sums to {total[worst]:.6g}"
        )
        yield Finding(f"gradient in {precision}", names[i], False, detail=detail, wrong=int(bad.sum()), arguments=where)


def around(expect: Expected, value) -> Expected:
    """The same allowance around another value."""
    value = to_numpy(value)
    return expect._replace(truth=value, low=value, high=value, sums=())


def asked(expected: Leaves, derived: bool) -> Leaves:
    """For arguments that the oracle made: nothing is asked where the truth is not finite, and less at kinks."""
    if not derived:
        return expected

    def one(expect):
        if expect is None:
            return None
        with np.errstate(invalid="ignore"):
            finite = np.isfinite(expect.truth)
            margin = np.where(expect.kinks, 0.25 * np.abs(expect.high - expect.low), 0)  # of sides that were not met
        return expect._replace(allowed=np.where(finite, expect.allowed + margin, np.inf))

    return Leaves(*([one(e) for e in side] for side in expected))


def is_narrow(value) -> bool:
    """Whether it is an array of a floating dtype below float64."""
    return getattr(value, "dtype", None) is not None and is_inexact(value) and jnp.finfo(value.dtype).bits < 64


def is_rounded(value) -> bool:
    """Whether every number of it is one of float32: a sign of arithmetic in float32, or less."""
    value = to_numpy(value)
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = value.astype(np.complex64 if np.iscomplexobj(value) else np.float32)
    return bool(np.all((narrow == value) | np.isnan(value)))
