"""A candidate beside its reference on arguments of one structure: what runs, and what is expected of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from manual_backprop.testing.compiled import quickly
from manual_backprop.testing.leaves import as_cotangent, is_float64, is_inexact, to_float64, to_precision, ulp
from manual_backprop.testing.pair import Pair
from manual_backprop.testing.rounding import scatter
from manual_backprop.testing.truth import Leaves, autodiff, expected_in_float64, expected_in_own


class Subject(NamedTuple):
    """wanted: for each leaf of the arguments, whether its cotangent is judged; names: what that is called.

    is_slope: whether the wanted gradient is the slope of the reference's values, as it is unless it is a surrogate.
    """

    pair: Pair
    reference: Callable
    argument_names: tuple[str, ...]
    names: tuple[str, ...]
    wanted: tuple[bool, ...]
    run: Callable  # (args, dy) -> (y, dargs), eager
    jitted: Callable  # the same, compiled
    vjp: Callable[..., Leaves]  # the same of the reference, by autodiff, compiled
    is_slope: bool = True


def subject(pair: Pair, reference: Callable, args: tuple, argnums: tuple[int, ...] | None) -> Subject:
    argument_names = pair.names(len(args), reference)
    names, wanted = [], []
    for i, (name, arg) in enumerate(zip(argument_names, args, strict=True)):
        chosen = i not in pair.constants if argnums is None else i in argnums
        for path, leaf in jax.tree_util.tree_flatten_with_path(arg)[0]:
            names.append(f"d{name}{jax.tree_util.keystr(path)}")
            wanted.append(chosen and is_inexact(leaf))

    return made(pair, reference, argument_names, tuple(names), tuple(wanted))


def made(pair: Pair, reference: Callable, argument_names, names, wanted) -> Subject:
    def run(args, dy):
        y, residuals = pair.forward(*args)
        return y, pair.backward(residuals, fitting(y, dy))

    well, quick = jax.jit(run), quickly(run)

    def jitted(args, dy):
        return (quick if is_float64(args) else well)(args, dy)

    return Subject(pair, reference, argument_names, names, wanted, run, jitted, autodiff(reference, wanted))


def fitting(y, dy):
    """dy as the candidate's own y is; as it came where they differ, which is found later."""
    alike = len(jax.tree.leaves(dy, is_leaf=lambda leaf: leaf is None)) == len(jax.tree.leaves(y))
    return as_cotangent(y, dy) if alike else dy


class Precision(NamedTuple):
    """What the arguments are cast to before they are judged; None leaves them as they came in."""

    name: str
    dtype: str | None

    def __call__(self, tree):
        return tree if self.dtype is None else jax.tree.map(lambda leaf: to_precision(leaf, self.dtype), tree)

    def context(self):
        return jax.enable_x64(self.dtype == "float64" or bool(jax.config.jax_enable_x64))


FLOAT64 = Precision("float64", "float64")


def own_precision(args, wanted) -> Precision:
    """The precision of the arguments themselves: by name, "float32", or "their own dtypes" where these differ."""
    dtypes = {str(leaf.dtype) for leaf, want in zip(jax.tree.leaves(args), wanted, strict=True) if want}
    name = dtypes.pop() if len(dtypes) == 1 else "their own dtypes"
    return FLOAT64._replace(name=name) if is_float64(args) else Precision(name, None)


def rougher_than_float32(args, wanted) -> bool:
    return any(
        want and ulp(leaf.dtype) > ulp("float32") for leaf, want in zip(jax.tree.leaves(args), wanted, strict=True)
    )


def expected(on: Subject, args, dy, precision: Precision, seed: int, in_64: Leaves | None = None) -> Leaves:
    """What is expected at these arguments, cast to a precision; the same each time for the same seed.

    in_64: what is expected in float64, where that is known already.
    """
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        args_64, dy_64 = jax.tree.map(to_float64, (args, dy))
        in_64 = expected_in_float64(on.vjp, rng, args_64, dy_64) if in_64 is None else in_64
    if precision.dtype == "float64":
        return in_64
    args, dy = precision((args, dy))
    y = jax.eval_shape(on.reference, *args)
    dtypes = Leaves(*([leaf.dtype for leaf in jax.tree.leaves(tree)] for tree in (y, args)))
    return expected_in_own(on.vjp, rng, args, dy, args_64, dy_64, in_64, dtypes)


def softened(on: Subject, args, dy, precision: Precision, expect: Leaves) -> Leaves:
    """What is expected, where the rounding of what cancels on the way is allowed as well."""
    with precision.context():
        apart = scatter(on.reference, on.wanted, *precision((args, dy)))

    def more(e, deviation):
        return e if e is None or deviation is None else e._replace(allowed=e.allowed + 16 * deviation)

    return Leaves(*([*map(more, side, other)] for side, other in zip(expect, apart, strict=True)))


def answer(on: Subject, run: Callable, args, dy, precision: Precision) -> tuple[Any, Any]:
    """(y, dargs) of the candidate in a precision. Raises what the candidate raises."""
    with precision.context():
        args, dy = precision((args, dy))
        return jax.block_until_ready(run(args, dy))
