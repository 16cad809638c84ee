"""Where the wrong entries are: rows, masks, conditions on the arguments."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from manual_backprop.testing.diagnosis.axes import few
from manual_backprop.testing.diagnosis.scene import Scene
from manual_backprop.testing.leaves import is_inexact, largest

KINDS = "(row, column, class or token)"


def is_place(text: str) -> bool:
    """Whether a sentence says where a leaf is wrong, not how."""
    return " is wrong only " in text or text.startswith("one row")


def one_row(scene: Scene, i: int, got, truth) -> Iterator[str]:
    """Every index of an axis has a factor of its own."""
    ratio = np.where(truth != 0, got / np.where(truth == 0, 1, truth), np.nan)
    for axis in range(truth.ndim):
        others = tuple(a for a in range(truth.ndim) if a != axis)
        if truth.size == truth.shape[axis] or np.isnan(ratio).all(others).any():
            continue
        factors = np.nanmean(ratio, others, keepdims=True)
        if np.ptp(np.abs(factors)) <= 1e-6 or not scene.matches(i, truth * factors):
            continue
        factors = factors.ravel()
        usual = np.median(factors.real)
        odd = np.flatnonzero(np.abs(factors - usual) > 1e-6 * (1 + abs(usual)))
        if len(odd) <= max(1, len(factors) // 3):
            what = f"is {few(factors[odd].real)} × the right one" if factors[odd].any() else "is zero"
            at = f"index {few(odd)} of axis {axis} of {scene.name(i)}"
            yield f"one row: {at} {what} {KINDS}; the others {usual:.6g} ×"
        else:
            yield (
                f"each row has its own factor: along axis {axis}, {scene.name(i)} is {few(factors.real)} × the right "
                "one: a norm, a count or a mask of that axis is missing or doubled"
            )


def where(scene: Scene, i: int, got, truth) -> Iterator[str]:
    """Where the wrong entries are, if that can be said."""
    name, allowed = scene.name(i), np.broadcast_to(scene.expect[i].allowed, truth.shape)
    bad = np.abs(got - truth) > 4 * allowed + 1e-3 * scene.slack * largest([truth])
    if not bad.any():
        return
    if not (bad & (truth != 0)).any():
        yield (
            f"masked part not masked: {name} is wrong only where it ought to be zero, at {int(bad.sum())} of "
            f"{bad.size} entries"
        )
    if truth.any() and not truth.all() and ((got != 0) == (truth == 0)).all():
        yield f"mask inverted: {name} is zero where it ought not to be, and the other way round"
    if bad.all():
        return
    gone = "" if got[bad].any() else " and is zero there"
    for axis, n in enumerate(bad.shape):
        hit = np.flatnonzero(bad.any(tuple(a for a in range(bad.ndim) if a != axis)))
        if n > 1 and len(hit) <= max(1, n // 3):
            yield f"one row: {name} is wrong at index {few(hit)} of axis {axis} alone {KINDS}, of {n}{gone}"
    yield from (f"{name} is wrong only in the entries where {said}{gone}" for said in conditions(scene, bad))


def not_finite(scene: Scene, i: int, got, truth) -> Iterator[str]:
    bad = ~np.isfinite(got) & np.isfinite(truth)
    if bad.any():
        what = "nan" if np.isnan(got[bad]).any() else "infinite"
        places = "; ".join(conditions(scene, bad))
        at = f"{scene.name(i)}, at {int(bad.sum())} of {bad.size} entries" + (f", where {places}" if places else "")
        yield f"{what} where the truth is finite: {at}"


def conditions(scene: Scene, bad) -> Iterator[str]:
    """Conditions on single arguments that hold exactly where an array of booleans does."""
    for j, leaf in enumerate(jax.tree.leaves(scene.args)):
        if not jnp.issubdtype(leaf.dtype, jnp.number) and leaf.dtype != bool:
            continue
        x, name = np.asarray(leaf), scene.name(j)[1:]
        over = tuple(range(x.ndim, bad.ndim))
        if np.iscomplexobj(x) or not x.ndim or bad.shape[: x.ndim] != x.shape:
            continue
        mine = bad.any(over)
        if mine.all() or not (bad == np.expand_dims(mine, over)).all():
            continue
        said = _condition(name, x[mine], x[~mine], is_inexact(leaf))
        if said:
            yield said


def _condition(name: str, inside, outside, is_number: bool) -> str | None:
    """What holds of the numbers inside and of none outside."""
    if not is_number:
        classes = few(np.unique(inside).astype(float))
        return None if np.isin(outside, inside).any() else f"{name} is {classes}, a mask or class of its own"
    if not inside.any() and outside.all():
        return f"{name} = 0"
    if inside.max() < outside.min():
        zero = inside.max() < 0 <= outside.min()
        return f"{name} < 0" if zero else f"{name} ≤ {inside.max():.6g} (from {outside.min():.6g} on it is right)"
    if inside.min() > outside.max():
        zero = inside.min() > 0 >= outside.max()
        return f"{name} > 0" if zero else f"{name} ≥ {inside.min():.6g} (up to {outside.max():.6g} it is right)"
    if np.abs(inside).min() > np.abs(outside).max():
        return f"|{name}| ≥ {np.abs(inside).min():.6g}"
    if np.abs(inside).max() < np.abs(outside).min():
        return f"|{name}| ≤ {np.abs(inside).max():.6g}"
    return None
