"""The judge: every cotangent against `jax.vjp` of an independent reference, in float64, for a random cotangent.

The allowance of a leaf is derived, not handed over. Let E be the truth: the gradient of the reference in float64.

    in float64            allowed = 1e-10 max|E| + 16 rounding
    in the args' dtype    allowed = 2 autodiff + 2 rounding + 2 ulp max|E|

rounding: how far E moves when each argument moves by one ulp of that precision (the condition of the problem);
autodiff: how far `jax.vjp` of the reference, run in that precision, is from E;
and one ulp of the largest leaf more, for leaves whose truth is a cancellation to zero.
A random cotangent is a must: summed outputs (a cotangent of ones) hide most mistakes of a normalisation or a softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from manual_backprop.contract import InputError
from manual_backprop.testing.pair import Pair, as_pair
from manual_backprop.testing.report import Finding, Report


def check_vjp(candidate: Any, reference: Callable | None, *args: Any, seed: int = 0) -> Report:
    """Judges a backward pass; never raises for a wrong one.

    candidate: an `Op`, a `Layer` (args: params, state, x), a pair `(forward, backward)`, or a function, such as a
    `jax.custom_vjp`.
    reference: a JAX function of the same args, written independently; None: the candidate's own primal.
    args: pytrees of arrays; integers have no cotangent.  seed: of the cotangent.

    Checked: the primal; arity, structure, shape and dtype of the cotangents; each leaf's values in the args' own
    precision and, if the candidate computes in it, in float64; jit against eager. Global configuration stays as it was.
    """
    pair = as_pair(candidate)
    names = (
        pair.arguments[: len(args)] if len(pair.arguments) >= len(args) else tuple(f"arg{i}" for i in range(len(args)))
    )
    function = reference or (lambda *a: pair.forward(*a)[0])
    reference_name = getattr(reference, "__name__", repr(reference)) if reference else "its own primal"
    with jax.default_matmul_precision("highest"):
        findings = tuple(_findings(pair, function, names, jax.tree.map(jnp.asarray, args), seed))
    return Report(pair.name, reference_name, seed, findings)


def assert_vjp_matches(candidate: Any, reference: Callable | None, *args: Any, seed: int = 0) -> None:
    """Raises AssertionError with the report when `check_vjp` finds anything wrong."""
    __tracebackhide__ = True
    report = check_vjp(candidate, reference, *args, seed=seed)
    if not report:
        raise AssertionError(f"\n{report}")


class Truth(NamedTuple):
    """What is expected, in float64, with the error that a right answer may have in the precision at hand."""

    y: list  # leaves of y
    dargs: list  # leaves of the cotangents, None for integers
    y_allowed: list
    dargs_allowed: list


def _findings(pair: Pair, reference: Callable, names: tuple[str, ...], args: tuple, seed: int) -> Iterator[Finding]:
    rng = np.random.default_rng(seed)
    own = _precision(args)
    try:
        y = jax.tree.map(jnp.asarray, reference(*args))
    except Exception as error:
        yield _raised("reference", error)
        return
    dy = jax.tree.map(lambda leaf: _draw(rng, leaf), y)
    vjp = _vjp(reference)

    with jax.enable_x64(True):
        args_64, dy_64 = jax.tree.map(_to_float64, (args, dy))
        y_64, dargs_64 = _leaves(*vjp(args_64, dy_64), args)
        rounding = {
            p: _rounding(rng, vjp, args_64, dy_64, args, p, (y_64, dargs_64)) for p in dict.fromkeys((own, "float64"))
        }
    truth_64 = Truth(y_64, dargs_64, *_allowed(y_64, dargs_64, rounding["float64"], None, "float64"))

    def run(args, dy):
        y, residuals = pair.forward(*args)
        return y, pair.backward(residuals, dy)

    jitted = jax.jit(run)
    if own == "float64":
        with jax.enable_x64(True):
            yield from _judge(pair.name, (run, jitted), names, args, dy, truth_64, own)
        return
    autodiff = _leaves(*vjp(args, dy), args)
    truth = Truth(y_64, dargs_64, *_allowed(y_64, dargs_64, rounding[own], autodiff, own))
    in_own = list(_judge(pair.name, (run, jitted), names, args, dy, truth, own))
    yield from in_own
    if any(finding.detail for finding in in_own):
        return
    with jax.enable_x64(True):
        in_64 = list(_judge(pair.name, (jitted,), names, args_64, dy_64, truth_64, "float64"))
    if all(finding.ok for finding in in_64 if finding.leaf == "y"):
        yield from in_64
    else:  # a kernel, say, that computes in its own precision whatever it is given
        yield Finding("float64", "y", True, detail=f"not judged: the candidate does not compute in it; judged in {own}")


def _judge(who: str, runs: tuple, names, args, dy, truth: Truth, precision: str) -> Iterator[Finding]:
    """Primal, arity, structure, shape, dtype and values of the first run; the second, if any, against the first."""
    run, *again = runs
    try:
        y, dargs = run(args, dy)
    except Exception as error:
        yield _raised(who, error, f"in {precision}")
        return
    got_y = jax.tree.leaves(y)
    if [np.shape(leaf) for leaf in got_y] != [leaf.shape for leaf in truth.y]:
        shapes = [np.shape(leaf) for leaf in got_y], [leaf.shape for leaf in truth.y]
        yield Finding("primal", "y", False, detail=f"got shapes {shapes[0]}, expected {shapes[1]}")
        return
    for got, expected, allowed in zip(got_y, truth.y, truth.y_allowed, strict=True):
        yield _compared(f"primal in {precision}", "y", got, expected, allowed)

    if not isinstance(dargs, tuple) or len(dargs) != len(args):
        count = f"a tuple of {len(dargs)}" if isinstance(dargs, tuple) else _text(dargs)
        expected = f"a tuple of {len(args)}, one per argument"
        yield Finding("arity", "cotangents", False, detail=f"got {count}, expected {expected}")
        return
    leaves = []
    for name, arg, darg in zip(names, args, dargs, strict=True):
        problem, matched = _matched(arg, darg)
        if problem:
            yield Finding("structure", f"d{name}", False, detail=problem)
            return
        leaves += [(f"d{name}{path}", leaf, d) for path, leaf, d in matched]
    fits = []
    for (leaf, arg, got), expected, allowed in zip(leaves, truth.dargs, truth.dargs_allowed, strict=True):
        wanted, shown = "None" if expected is None else _text(arg), _text(got)
        fits.append(wanted == shown and expected is not None)
        if wanted != shown:
            detail = f"got {shown}, expected {wanted}, as its argument"
            yield Finding("shape and dtype", leaf, False, detail=detail)
        elif expected is not None:
            yield _compared(f"gradient in {precision}", leaf, got, expected, allowed)
    for jitted in again:
        try:
            _, dargs = jitted(args, dy)
        except Exception as error:
            yield _raised(who, error, f"in {precision} under jit")
            return
        rows = zip(leaves, _cotangents(dargs, args), truth.dargs_allowed, fits, strict=True)
        for (leaf, _, eager), got, allowed, fit in rows:
            if fit:
                yield _compared(f"jit = eager, {precision}", leaf, got, np.asarray(eager), allowed)


def _matched(arg, darg):
    """Pairs each leaf of an argument with its cotangent: (problem, [(path, leaf, cotangent)])."""
    flat, tree = jax.tree_util.tree_flatten_with_path(arg)
    if darg is None:
        return None, [(jax.tree_util.keystr(path), leaf, None) for path, leaf in flat]
    try:
        cotangents = tree.flatten_up_to(darg)
    except ValueError:
        got = jax.tree.structure(darg)
        return f"got the structure {got}, expected {tree}, as its argument", []
    return None, [(jax.tree_util.keystr(path), leaf, d) for (path, leaf), d in zip(flat, cotangents, strict=True)]


def _cotangents(dargs, args) -> list:
    """The cotangents, one a leaf of args; None stands for a whole argument without."""
    leaves = []
    for arg, darg in zip(args, dargs, strict=True):
        tree = jax.tree.structure(arg)
        leaves += [None] * tree.num_leaves if darg is None else tree.flatten_up_to(darg)
    return leaves


def _vjp(function: Callable) -> Callable:
    """(args, dy) -> y and the cotangents by autodiff; compiled, unless the function looks at values."""

    def run(args, dy):
        y, vjp = jax.vjp(function, *args)
        return y, jax.tree.map(_no_float0, vjp(jax.tree.map(lambda d, leaf: d.astype(leaf.dtype), dy, y)))

    jitted = jax.jit(run)

    def compiled_if_possible(args, dy):
        try:
            return jitted(args, dy)
        except jax.errors.JAXTypeError:
            return run(args, dy)

    return compiled_if_possible


def _no_float0(cotangent):
    """JAX's cotangent of an integer, as None."""
    return None if jnp.result_type(cotangent) == jax.dtypes.float0 else cotangent


def _leaves(y, dargs, args) -> tuple[list, list]:
    """y and the cotangents as lists of wide numpy leaves; None where the argument is not of a floating dtype."""
    wide = [_numpy(leaf) for leaf in jax.tree.leaves(y)]
    return wide, [
        _numpy(d) if _inexact(a) else None for d, a in zip(_cotangents(dargs, args), jax.tree.leaves(args), strict=True)
    ]


def _rounding(rng, vjp, args_64, dy_64, args, precision: str, truth) -> tuple[list, list]:
    """How far the truth moves when every argument moves by up to one ulp of the precision, either way."""
    ulp = float(jnp.finfo(precision).eps)

    def moved(leaf):
        return leaf * (1 + ulp * rng.uniform(-1, 1, leaf.shape)) if _inexact(leaf) else leaf

    largest = [[np.zeros(()) for _ in side] for side in truth]
    for _ in range(2):
        near = _leaves(*vjp(jax.tree.map(moved, args_64), dy_64), args)
        for side, (now, then) in enumerate(zip(near, truth, strict=True)):
            for i, (a, b) in enumerate(zip(now, then, strict=True)):
                if b is not None:
                    largest[side][i] = np.maximum(largest[side][i], _max_finite(np.abs(a - b)))
    return tuple(largest)


def _allowed(y, dargs, rounding, autodiff, precision: str) -> tuple[list, list]:
    ulp = float(jnp.finfo(precision).eps)

    def of(leaves, moved, own):
        sizes = [0.0 if leaf is None else _max_finite(np.abs(leaf)) for leaf in leaves]
        floor = float(jnp.finfo("float64").eps if autodiff is None else ulp) * max(sizes, default=0.0)
        allowed = []
        for i, (leaf, size) in enumerate(zip(leaves, sizes, strict=True)):
            if leaf is None:
                allowed.append(None)
            elif own is None:
                allowed.append(np.full(leaf.shape, 1e-10 * size + 16 * moved[i] + floor))
            else:
                error = _max_finite(np.abs(own[i] - leaf))
                allowed.append(np.full(leaf.shape, 2 * error + 2 * moved[i] + 2 * ulp * size + floor))
        return allowed

    own = autodiff or (None, None)
    return of(y, rounding[0], own[0]), of(dargs, rounding[1], own[1])


def _compared(name: str, leaf: str, got, expected, allowed) -> Finding:
    dtype = str(jnp.result_type(got))
    got, expected = _numpy(got), _numpy(expected)
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, np.abs(got - expected))
    error = np.where(np.isnan(error), np.inf, error)
    if error.size == 0:
        return Finding(name, leaf, True, dtype, error.shape)
    worst = tuple(int(i) for i in np.unravel_index(np.argmax(error), error.shape))
    wrong = int(np.sum(error > allowed))
    return Finding(
        name, leaf, wrong == 0, dtype, error.shape, float(error.max()), float(np.max(allowed)), wrong, worst,
        got[worst], expected[worst],
    )  # fmt: skip


def _text(value) -> str:
    """float32[7, 5], or whatever else it is."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype}{list(value.shape)}"
    return repr(value) if value is None else f"{type(value).__name__} {value!r}"[:80]


def _raised(who: str, error: Exception, where: str = "") -> Finding:
    line = str(error).strip().split("\n")[0]
    return Finding("runs", who, False, detail=f"raised {type(error).__name__} {where}: {line}")


def _draw(rng, leaf):
    """A random cotangent for a leaf of y."""
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        raise InputError(f"check_vjp: the reference returns {leaf.dtype}; wants floating point outputs")
    value = rng.standard_normal(leaf.shape)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        value = value + 1j * rng.standard_normal(leaf.shape)
    return jnp.asarray(value, leaf.dtype)


def _inexact(leaf) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def _to_float64(leaf):
    if not _inexact(leaf):
        return leaf
    return leaf.astype(jnp.complex128 if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else jnp.float64)


def _numpy(leaf) -> np.ndarray:
    """A numpy array wide enough to subtract in."""
    leaf = jnp.asarray(leaf) if not isinstance(leaf, np.ndarray) else leaf
    wide = np.complex128 if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else np.float64
    return np.asarray(leaf).astype(wide)


def _precision(args) -> str:
    """The coarsest floating dtype among the arguments: what the answer can be expected to hold."""
    dtypes = [jnp.finfo(leaf.dtype) for leaf in jax.tree.leaves(args) if _inexact(leaf)]
    if not dtypes:
        raise InputError("check_vjp: no argument is of a floating dtype; there is no gradient to judge")
    return str(max(dtypes, key=lambda info: info.eps).dtype)


def _max_finite(x: np.ndarray) -> float:
    finite = x[np.isfinite(x)]
    return float(finite.max()) if finite.size else 0.0
