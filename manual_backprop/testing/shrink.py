"""The smallest arguments that still fail: shorter axes first, then plainer numbers."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from manual_backprop.testing.leaves import is_inexact, text
from manual_backprop.testing.trials import Trial

SHOWN = 40  # numbers that are written out


def shrunk(trial: Trial, reference: Callable, fails: Callable[[Trial], bool], seconds: float) -> Trial:
    """A trial no larger than this one that fails as well."""
    deadline = time.monotonic() + seconds

    def attempt(smaller: Trial | None) -> bool:
        nonlocal trial
        if smaller is None or time.monotonic() > deadline:
            return False
        try:
            failing = fails(smaller)
        except Exception:
            return False
        if failing:
            trial = smaller
        return failing

    sizes = sorted({n for leaf in jax.tree.leaves(trial.args) for n in leaf.shape if n > 1}, reverse=True)
    for n in sizes:
        for m in dict.fromkeys((1, 2, 3, n // 2)):
            if 0 < m < n and attempt(_cut(trial, reference, n, m)):
                break
    for plainer in (_rounded, _tenths):
        attempt(trial._replace(args=jax.tree.map(plainer, trial.args)))
        attempt(trial._replace(dy=jax.tree.map(plainer, trial.dy)))
    return trial


def _cut(trial: Trial, reference: Callable, n: int, m: int) -> Trial | None:
    """Every axis of size n cut to m, where the reference takes that."""

    def cut(leaf):
        return leaf[tuple(slice(m) if size == n else slice(None) for size in leaf.shape)]

    args = jax.tree.map(cut, trial.args)
    try:
        y = jax.eval_shape(reference, *args)
    except Exception:
        return None
    shapes = [leaf.shape for leaf in jax.tree.leaves(y) if is_inexact(leaf)]
    dy = jax.tree.leaves(trial.dy)
    if any(
        len(d.shape) != len(shape) or any(a > b for a, b in zip(shape, d.shape, strict=True))
        for d, shape in zip(dy, shapes, strict=True)
    ):
        return None
    cut_dy = [d[tuple(slice(size) for size in shape)] for d, shape in zip(dy, shapes, strict=True)]
    return trial._replace(args=args, dy=jax.tree.unflatten(jax.tree.structure(trial.dy), cut_dy))


def _rounded(leaf):
    return jnp.round(leaf) if is_inexact(leaf) else leaf


def _tenths(leaf):
    return jnp.round(leaf * 10) / jnp.asarray(10, leaf.dtype) if is_inexact(leaf) else leaf


def said(trial: Trial, names: tuple[str, ...]) -> str:
    """`x = float32[1, 2] [[1, 0]], dy = …`."""
    parts = []
    for name, arg in zip((*names, "dy"), (*trial.args, trial.dy), strict=True):
        leaves = jax.tree_util.tree_flatten_with_path(arg)[0]
        parts += [f"{name}{jax.tree_util.keystr(path)} = {text(leaf)}{_numbers(leaf)}" for path, leaf in leaves]
    return ", ".join(parts)


def _numbers(leaf) -> str:
    if leaf.size > SHOWN or leaf.size == 0 or jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        return ""
    values = np.asarray(leaf)
    values = values.astype(np.float64) if is_inexact(leaf) and not np.iscomplexobj(values) else values
    return " " + np.array2string(values, separator=", ", precision=4, threshold=SHOWN + 1, floatmode="maxprec").replace(
        "\n", ""
    )


def call(trial: Trial, candidate: str, reference: str, seed: int, more: str) -> str | None:
    """The line that runs it again, with its numbers; None where they are too many."""
    leaves = jax.tree.leaves(trial.args)
    if sum(leaf.size for leaf in leaves) > SHOWN or any(
        jnp.issubdtype(leaf.dtype, jax.dtypes.extended) for leaf in leaves
    ):
        return None

    def literal(leaf):
        values = np.asarray(leaf)
        values = values.astype(np.float64) if is_inexact(leaf) and not np.iscomplexobj(values) else values
        dtype = f", jnp.{leaf.dtype}"
        return f"jnp.array({values.tolist()!r}{dtype})"

    try:
        args = [_written(arg, literal) for arg in trial.args]
    except TypeError:
        return None
    return f"check_vjp({candidate}, {reference}, {', '.join(args)}{more}, seed={seed})"


def _written(tree, literal: Callable) -> str:
    """A tree of plain containers as Python source. Raises TypeError for others."""
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{key!r}: {_written(value, literal)}" for key, value in tree.items()) + "}"
    if type(tree) in (tuple, list):
        inner = ", ".join(_written(value, literal) for value in tree)
        return f"[{inner}]" if isinstance(tree, list) else f"({inner}{',' * (len(tree) == 1)})"
    if tree is None:
        return "None"
    if hasattr(tree, "dtype"):
        return literal(tree)
    raise TypeError(type(tree))
