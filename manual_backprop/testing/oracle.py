"""The judge: every cotangent against `jax.vjp` of an independent reference, for a random cotangent of y.

A random cotangent is a must: summed outputs (a cotangent of ones) hide most mistakes of a normalisation or a softmax.
What is allowed is derived, in `truth.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manual_backprop.contract import Layer, Op
from manual_backprop.errors import InputError
from manual_backprop.testing.pair import Pair, as_pair
from manual_backprop.testing.report import Finding, Report
from manual_backprop.testing.truth import (
    Expected,
    Leaves,
    autodiff,
    expected_in_float64,
    expected_in_own,
    is_inexact,
    to_float64,
    to_numpy,
)


def check_vjp(candidate: Any, reference: Callable | None, *args: Any, seed: int = 0) -> Report:
    """Judges a backward pass; never raises for a wrong one.

    candidate: an `Op`, a `Layer` (args: params, state, x), a pair `(forward, backward)`, or a function, such as a
    `jax.custom_vjp`.
    reference: a JAX function of the same args, written independently; of an Op the primal; None: the candidate's own.
    args: pytrees of arrays; integers have no cotangent.  seed: of the cotangent, at least 0.

    Checked: the primal; arity, structure, shape and dtype of the cotangents; each leaf's values in the args' own
    precision and, if the candidate computes in it, in float64; jit against eager. Global configuration stays as it was.
    Raises InputError for what cannot be judged: no candidate, no floating-point argument, arguments that are no arrays.
    """
    if not (isinstance(seed, int) and seed >= 0):
        raise InputError(f"check_vjp: seed is {seed!r}; wants a whole number, at least 0")
    pair, args = as_pair(candidate), jax.tree.map(_array, args)
    function, name = _reference(reference, pair)
    with jax.default_matmul_precision("highest"):
        findings = tuple(_findings(pair, function, args, seed))
    return Report(pair.name, name, seed, findings)


def assert_vjp_matches(candidate: Any, reference: Callable | None, *args: Any, seed: int = 0) -> None:
    """Raises AssertionError with the report when `check_vjp` finds anything wrong."""
    __tracebackhide__ = True
    report = check_vjp(candidate, reference, *args, seed=seed)
    if not report:
        raise AssertionError(f"\n{report}")


def _reference(reference, pair: Pair) -> tuple[Callable, str]:
    """The function that autodiff is to see through, and its name. An Op's own backward would judge itself."""
    if reference is None:
        return lambda *args: pair.forward(*args)[0], "its own primal"
    if getattr(reference, "makes_op", False):
        reference = reference()
    if isinstance(reference, Op):
        return lambda *args: reference.forward(*args)[0], f"the primal of {reference!r}"
    if isinstance(reference, Layer) or not callable(reference):
        raise InputError(f"check_vjp: the reference is {reference!r}; wants a function of the arguments, or None")
    return reference, getattr(reference, "__name__", repr(reference))


def _findings(pair: Pair, reference: Callable, args: tuple, seed: int) -> Iterator[Finding]:
    wanted = [
        is_inexact(leaf) and i not in pair.constants for i, arg in enumerate(args) for leaf in jax.tree.leaves(arg)
    ]
    if not any(wanted):
        raise InputError("check_vjp: no argument is of a floating dtype; there is no gradient to judge")
    rng = np.random.default_rng(seed)
    try:
        y = jax.tree.map(jnp.asarray, reference(*args))
    except Exception as error:
        yield _raised("reference", error, "on these arguments")
        return
    dy = jax.tree.map(lambda leaf: _draw(rng, leaf), y)
    vjp = autodiff(reference, wanted)
    with jax.enable_x64(True):
        args_64, dy_64 = jax.tree.map(to_float64, (args, dy))
        in_64 = expected_in_float64(vjp, rng, args_64, dy_64)

    def run(args, dy):
        y, residuals = pair.forward(*args)
        return y, pair.backward(residuals, _as_dtypes_of(y, dy))

    jitted = jax.jit(run)
    if all(leaf.dtype in (jnp.float64, jnp.complex128) for leaf in jax.tree.leaves(args) if is_inexact(leaf)):
        with jax.enable_x64(True):
            yield from _judge(pair, (run, jitted), args, y, dy, in_64, "float64")
        return
    dtypes = {str(leaf.dtype) for leaf, want in zip(jax.tree.leaves(args), wanted, strict=True) if want}
    own = dtypes.pop() if len(dtypes) == 1 else "their own dtypes"
    in_own = expected_in_own(vjp, rng, args, dy, args_64, dy_64, in_64)
    found = list(_judge(pair, (run, jitted), args, y, dy, in_own, own))
    yield from found
    if any(finding.detail for finding in found):
        return
    with jax.enable_x64(True):
        yield from _judge(pair, (jitted,), args_64, y, dy_64, in_64, "float64")


def _judge(pair: Pair, runs: tuple, args, wanted_y, dy, expected: Leaves, precision: str) -> Iterator[Finding]:
    """Primal, arity, structure, shape, dtype and values of the first run; the second, if any, against the first.

    One run alone is of a candidate in float64, judged in its own precision before: what it rounds is not judged again.
    """
    run, *again = runs
    try:
        y, dargs = run(args, dy)
    except Exception as error:
        yield _raised(pair.name, error, f"in {precision}")
        return
    if problem := _misfit(y, wanted_y):
        yield Finding("primal", "y", False, detail=problem)
        return
    for got, expect in zip(jax.tree.leaves(y), expected.y, strict=True):
        finding = _compared(f"primal in {precision}", "y", got, expect)
        if not again and not finding.ok and _is_rounded(got):  # a kernel that computes in its own precision
            yield _not_judged("y", "its values are rounded to a lower precision")
            return
        yield finding

    if not isinstance(dargs, tuple) or len(dargs) != len(args):
        count = f"a tuple of {len(dargs)}" if isinstance(dargs, tuple) else _text(dargs)
        detail = f"got {count}, expected a tuple of {len(args)}, one per argument"
        yield Finding("arity", "cotangents", False, detail=detail)
        return
    leaves = []
    for name, arg, darg in zip(pair.names(len(args)), args, dargs, strict=True):
        problem, matched = _matched(arg, darg)
        if problem:
            yield Finding("structure", f"d{name}", False, detail=problem)
            return
        leaves += [(f"d{name}{path}", leaf, d) for path, leaf, d in matched]
    fits = []
    for (leaf, arg, got), expect in zip(leaves, expected.dargs, strict=True):
        wanted, shown = "None" if expect is None else _text(arg), _text(got)
        fits.append(wanted == shown and expect is not None)
        if not again and _is_narrow(got):
            yield _not_judged(leaf, f"it answers in {got.dtype}")
        elif wanted != shown:
            detail = f"got {shown}, expected {wanted}, as its argument"
            yield Finding("shape and dtype", leaf, False, detail=detail)
        elif expect is not None:
            finding = _compared(f"gradient in {precision}", leaf, got, expect)
            rounded = not again and not finding.ok and _is_rounded(got)
            yield _not_judged(leaf, "its values are rounded to a lower precision") if rounded else finding
    for jitted in again:
        try:
            _, dargs = jitted(args, dy)
        except Exception as error:
            yield _raised(pair.name, error, f"in {precision} under jit")
            return
        for (leaf, _, eager), got, expect, fit in zip(leaves, _flat(dargs, args), expected.dargs, fits, strict=True):
            if fit:
                yield _compared(f"jit = eager, {precision}", leaf, got, _at(expect, eager))


def _is_narrow(value) -> bool:
    """Whether it is an array of a floating dtype below float64."""
    return getattr(value, "dtype", None) is not None and is_inexact(value) and jnp.finfo(value.dtype).bits < 64


def _is_rounded(value) -> bool:
    """Whether every number of it is one of float32: a sign of arithmetic in float32, or less."""
    value = to_numpy(value)
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = value.astype(np.complex64 if np.iscomplexobj(value) else np.float32)
    return bool(np.all((narrow == value) | np.isnan(value)))


def _not_judged(leaf: str, why: str) -> Finding:
    return Finding("float64", leaf, True, detail=f"not judged in float64, but in its own precision alone: {why}")


def _misfit(y, wanted) -> str | None:
    """What is wrong with the structure, shapes or dtypes of y. A wider dtype than the reference's is no mistake."""
    if jax.tree.structure(y) != jax.tree.structure(wanted):
        return f"got {_text(y)}, expected {_text(wanted)}"
    for got, expected in zip(jax.tree.leaves(y), jax.tree.leaves(wanted), strict=True):
        got = jnp.asarray(got)
        if got.shape != expected.shape or jnp.promote_types(got.dtype, expected.dtype) != got.dtype:  # narrower
            return f"got {_text(got)}, expected {_text(expected)}"
    return None


def _matched(arg, darg):
    """Pairs each leaf of an argument with its cotangent: (problem, [(path, leaf, cotangent)])."""
    flat, tree = jax.tree_util.tree_flatten_with_path(arg)
    try:
        cotangents = _flat((darg,), (arg,))
    except ValueError:
        return f"got {_text(darg)}, expected the structure {tree}, as its argument", []
    return None, [(jax.tree_util.keystr(path), leaf, d) for (path, leaf), d in zip(flat, cotangents, strict=True)]


def _flat(dargs, args) -> list:
    """The cotangents, one a leaf of args. None stands for a whole argument without; so does JAX's float0."""
    leaves = []
    for arg, darg in zip(args, dargs, strict=True):
        tree = jax.tree.structure(arg)
        leaves += [None] * tree.num_leaves if darg is None else tree.flatten_up_to(darg)
    return [None if getattr(leaf, "dtype", None) == jax.dtypes.float0 else leaf for leaf in leaves]


def _compared(what: str, leaf: str, got, expect: Expected) -> Finding:
    dtype, got = str(jnp.result_type(got)), to_numpy(got)
    E = expect.truth
    with np.errstate(invalid="ignore"):
        same = (got == E) | (np.isnan(got) & np.isnan(E))
        outside = np.abs(got - E)
        if not np.iscomplexobj(got):
            outside = np.maximum(np.maximum(expect.low - got, got - expect.high), 0)
        error = np.where(same, 0.0, np.where(np.isnan(outside) | np.isnan(got), np.inf, outside))
        excess = error - expect.allowed
    if error.size == 0:
        return Finding(what, leaf, True, dtype, error.shape)
    wrong = int(np.sum(error > expect.allowed))
    worst = tuple(int(i) for i in np.unravel_index(np.argmax(excess if wrong else error), error.shape))
    return Finding(
        what, leaf, wrong == 0, dtype, error.shape, float(error[worst]), float(expect.allowed[worst]), wrong, worst,
        got[worst], E[worst], int(expect.kinks.sum()),
    )  # fmt: skip


def _at(expect: Expected, value) -> Expected:
    """The same allowance around another value."""
    value = to_numpy(value)
    return expect._replace(truth=value, low=value, high=value)


def _text(value) -> str:
    """float32[7, 5], or whatever else it is."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_text(leaf)}" for key, leaf in value.items()) + "}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of " + (", ".join(map(_text, value)) or "nothing")
    return repr(value) if value is None else f"{type(value).__name__} {value!r}"[:80]


def _raised(who: str, error: Exception, where: str) -> Finding:
    line = str(error).strip().split("\n")[0]
    return Finding("runs", who, False, detail=f"raised {type(error).__name__} {where}: {line}")


def _draw(rng, leaf):
    """A random cotangent for a leaf of y, on a grid that every dtype holds: both sides get the same numbers."""
    if not is_inexact(leaf):
        raise InputError(f"check_vjp: the reference returns {leaf.dtype}; wants floating point outputs")

    def normal():
        return np.round(np.clip(rng.standard_normal(leaf.shape), -3.9, 3.9) * 32) / 32

    is_complex = jnp.issubdtype(leaf.dtype, jnp.complexfloating)
    return jnp.asarray(normal() + 1j * normal() if is_complex else normal(), leaf.dtype)


def _as_dtypes_of(y, dy):
    """dy in the dtypes of the candidate's own y; as it is where the structures differ, which is found later."""
    if jax.tree.structure(y) != jax.tree.structure(dy):
        return dy
    return jax.tree.map(lambda d, leaf: d.astype(jnp.result_type(leaf)), dy, y)


def _array(leaf):
    try:
        return jnp.asarray(leaf)
    except TypeError:
        raise InputError(f"check_vjp: an argument is {leaf!r}; wants arrays, or pytrees of them") from None
