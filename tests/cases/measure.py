"""How wrong a row is, in numbers: what the properties assert, and what the table of ops prints."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cases.case import Case, compiled, random_like

DRAWS = 64  # rounding errors are random: two medians over many draws can be compared, two draws cannot


def autodiff(case: Case) -> Case:
    """The same row with `jax.vjp` of the reference as its unit."""
    return case._replace(unit=case.reference)


def float64_error(case: Case, seed: int = 0) -> float:
    """The largest over the cotangents of max |ours - autodiff's| / max |autodiff's|, in float64."""
    with jax.enable_x64(True):
        args = case.args(seed, "float64")
        dy = random_like(jax.eval_shape(case.reference, *args), seed=seed + 2)
        pairs = zip(compiled(case)(args, dy), compiled(autodiff(case))(args, dy), strict=True)
        errors = [(np.abs(ours - theirs).max(), np.abs(theirs).max()) for ours, theirs in pairs if ours is not None]
    return float(max(error / largest if error else 0.0 for error, largest in errors))


def rounding_errors(case: Case, dtype: str) -> list[tuple[float, float]]:
    """For each cotangent (ours, autodiff's): the relative error of a typical draw in dtype, against float64."""
    ours, theirs = (jax.jit(jax.vmap(compiled(c))) for c in (case, autodiff(case)))
    draws = [case.args(seed, dtype) for seed in range(DRAWS)]
    args = jax.tree.map(lambda *leaves: jnp.stack(leaves), *draws)
    dy = random_like(jax.eval_shape(jax.vmap(case.reference), *args), seed=3)
    with jax.default_matmul_precision("highest"):
        mine, auto = ours(args, dy), theirs(args, dy)
        with jax.enable_x64(True):
            truth = theirs(*to_float64((args, dy)))
    return [
        (_relative(a, true), _relative(b, true)) for a, b, true in zip(mine, auto, truth, strict=True) if a is not None
    ]


def _relative(got, truth) -> float:
    """Of each draw the root mean square error over that of the truth; their median."""
    truth = np.float64(truth).reshape(DRAWS, -1)
    error = np.float64(got).reshape(DRAWS, -1) - truth
    size = np.linalg.norm(truth, axis=1)
    return float(np.median(np.linalg.norm(error, axis=1) / np.where(size == 0, 1, size)))


def to_float64(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


# ── programs to time ─────────────────────────────────────────────────────────────────────────────────────────────────

STEPS = 8


def alone(case: Case, args, dy) -> tuple[Callable, Callable]:
    """(ours, autodiff's): y and the cotangents of one forward and backward pass, as functions of (args, dy)."""
    moving = _moving(args)

    def ours(args, dy):
        y, residuals = case.unit.forward(*args)
        return y, [d for d in case.unit.backward(residuals, dy) if d is not None]

    def theirs(args, dy):
        y, pull = jax.vjp(lambda *floats: case.reference(*_put(args, moving, floats)), *(args[i] for i in moving))
        return y, list(pull(dy))

    return ours, theirs


def scanned(case: Case, args, dy) -> tuple[Callable, Callable, tuple, object]:
    """The op eight times in a `lax.scan`: (ours, autodiff's, args, dy).

    Where y is shaped as the first argument, each step takes half of the last one's y; else each takes arguments of its
    own. The other arguments are scanned over, as `Repeat` does with parameters, and so are no residuals.
    """
    y = jax.eval_shape(case.reference, *args)
    like_first = isinstance(y, jax.ShapeDtypeStruct) and (y.shape, y.dtype) == (args[0].shape, args[0].dtype)
    return (_chained if like_first else _side_by_side)(case, args, dy)


def _chained(case, args, dy):
    x, *rest = args
    rest, names, moving = _stacked(tuple(rest)), case.unit.arguments[1:], _moving(rest)

    def ours(args, dy):
        def step(x, rest):
            y, residuals = case.unit.forward(x, *rest)
            return 0.5 * y, _without(residuals, names)

        def back(dy, saved):
            rest, residuals = saved
            dx, *drest = case.unit.backward(_with(residuals, names, rest), 0.5 * dy)
            return dx, [drest[i] for i in moving]

        y, residuals = jax.lax.scan(step, args[0], args[1], length=STEPS)
        return y, jax.lax.scan(back, dy, (args[1], residuals), length=STEPS, reverse=True)

    def theirs(args, dy):
        def run(x, *floats):
            step = lambda x, rest: (0.5 * case.reference(x, *rest), None)
            return jax.lax.scan(step, x, _put(args[1], moving, floats), length=STEPS)[0]

        y, pull = jax.vjp(run, args[0], *(args[1][i] for i in moving))
        dx, *drest = pull(dy)
        return y, (dx, drest)

    return ours, theirs, (x, rest), dy


def _side_by_side(case, args, dy):
    names, moving = case.unit.arguments, _moving(args)

    def ours(args, dy):
        def step(_, args):
            y, residuals = case.unit.forward(*args)
            return None, (y, _without(residuals, names))

        def back(_, saved):
            args, residuals, dy = saved
            cotangents = case.unit.backward(_with(residuals, names, args), dy)
            return None, [cotangents[i] for i in moving]

        _, (y, residuals) = jax.lax.scan(step, None, args)
        return y, jax.lax.scan(back, None, (args, residuals, dy), reverse=True)[1]

    def theirs(args, dy):
        def run(*floats):
            step = lambda _, args: (None, case.reference(*args))
            return jax.lax.scan(step, None, _put(args, moving, floats))[1]

        y, pull = jax.vjp(run, *(args[i] for i in moving))
        return y, list(pull(dy))

    return ours, theirs, _stacked(args), _stacked(dy)


def _moving(args) -> list[int]:
    """The places of the arguments that have a gradient."""
    return [i for i, arg in enumerate(args) if jnp.issubdtype(arg.dtype, jnp.inexact)]


def _put(args, places, values) -> tuple:
    args = list(args)
    for i, value in zip(places, values, strict=True):
        args[i] = value
    return tuple(args)


def _stacked(tree):
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * STEPS), tree)


def _without(residuals, names):
    """The residuals but the arguments of these names, as a layer keeps them."""
    held = set(names) & set(getattr(residuals, "_fields", ()))
    return residuals._replace(**dict.fromkeys(held)) if held else residuals


def _with(residuals, names, args):
    held = {name: arg for name, arg in zip(names, args, strict=False) if name in getattr(residuals, "_fields", ())}
    return residuals._replace(**held) if held else residuals
