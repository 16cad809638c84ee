"""Explanations along axes: transposed, reversed, shifted, summed too little or too much, rows that count otherwise."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import jax
import numpy as np

from manual_backprop.testing.diagnosis.scene import Scene
from manual_backprop.testing.leaves import is_inexact, largest

MOST = 64  # indices along an axis that are tried one by one


def moved(scene: Scene, i: int, got, truth) -> Iterator[str]:
    """The right leaf, transposed, backwards, or some steps away."""
    name = scene.name(i)
    for order in itertools.permutations(range(truth.ndim)) if truth.ndim <= 4 else ():
        if order != tuple(range(truth.ndim)) and scene.matches(i, truth.transpose(order)):
            yield f"transposed: {name} is the right one with its axes in the order {list(order)}"
    for over in (over for n in (1, 2) for over in itertools.combinations(range(truth.ndim), n)):
        if scene.matches(i, np.flip(truth, over)):
            yield f"reversed: {name} is the right one backwards along axis {' and '.join(map(str, over))}"
    for axis, n in enumerate(truth.shape):
        for step in sorted({*range(1, min(n, MOST)), -1, -2} if n > 1 else (), key=abs):
            if any(scene.matches(i, other) for other in _shifted(truth, step, axis)):
                off = "off by one" if abs(step) == 1 else "by the wrong number"
                yield f"shifted ({off}): {name} is the right one moved by {step} along axis {axis}"
                break
    if truth.ndim >= 2 and truth.shape[-1] == truth.shape[-2] > 1:
        turned = np.swapaxes(got, -1, -2)
        if any(scene.matches(i, (got + turned) * c, truth) for c in (0.5, 1)):
            yield f"not symmetrised: {name} and its transpose together are right"


def _shifted(x, step: int, axis: int) -> Iterator[np.ndarray]:
    """x some steps away along an axis: what leaves at one end comes in at the other, or zeros do."""
    rolled = np.roll(x, step, axis)
    yield rolled
    edge = [slice(None)] * x.ndim
    edge[axis] = slice(0, step) if step > 0 else slice(step, None)
    cut = rolled.copy()
    cut[tuple(edge)] = 0
    yield cut


def moved_cotangent(scene: Scene, i: int, got, truth) -> Iterator[str]:
    """The gradient for dy transposed, backwards, or one step away."""
    for k, d in enumerate(scene.dy):

        def fits(other, k=k) -> bool:
            return scene.matches(i, scene.truth((*scene.dy[:k], other, *scene.dy[k + 1 :]))[i])

        if d.ndim == 2 and d.shape[0] == d.shape[1] and fits(d.T):
            yield f"transposed: dy is taken transposed in {scene.name(i)}"
        for axis in range(d.ndim):
            if d.shape[axis] < 2:
                continue
            back = np.flip(d, axis)
            if fits(back):
                yield f"reversed: dy is taken backwards along axis {axis} in {scene.name(i)}"
            forth = scene.truth((*scene.dy[:k], back, *scene.dy[k + 1 :]))[i]
            if forth.ndim == d.ndim and scene.matches(i, np.flip(forth, axis)):
                yield f"not reversed: {scene.name(i)} runs along axis {axis} in the order of forward, not backwards"
            if any(fits(other) for step in (1, -1) for other in _shifted(d, step, axis)):
                yield f"shifted (off by one): dy is taken one step away along axis {axis} in {scene.name(i)}"


def repeated(scene: Scene, i: int, got, truth) -> Iterator[str]:
    """Set where it ought to add: of repeated indices the last, or the first, counts alone."""
    for leaf in jax.tree.leaves(scene.args):
        if is_inexact(leaf) or not np.issubdtype(getattr(leaf, "dtype", object), np.integer) or leaf.ndim == 0:
            continue
        ids = np.asarray(leaf)
        for which, order in (("last", slice(None, None, -1)), ("first", slice(None))):
            _, at = np.unique(ids.ravel()[order], return_index=True)
            keep = np.zeros(ids.size, bool)
            keep[ids.size - 1 - at if which == "last" else at] = True
            if keep.all():
                continue
            for k, d in enumerate(scene.dy):
                if d.shape[: ids.ndim] != ids.shape:
                    continue
                kept = d * keep.reshape(ids.shape + (1,) * (d.ndim - ids.ndim))
                if scene.matches(i, scene.truth((*scene.dy[:k], kept, *scene.dy[k + 1 :]))[i]):
                    yield (
                        f"not accumulated: {scene.name(i)} is set, not added to, where an index repeats: the {which} "
                        "one alone counts"
                    )


def counted(scene: Scene, i: int, got, truth) -> Iterator[str]:
    """How often each index along an axis of dy counts: solved for, from the gradients of each alone."""
    for k, d in enumerate(scene.dy):
        for axis, n in enumerate(d.shape):
            if not 2 <= n <= MOST or n * d.size > 10**7:
                continue
            parts = np.stack([_of_index(scene, i, k, axis, index) for index in range(n)], -1)
            flat = parts.reshape(-1, n)
            if got.size > n and np.linalg.matrix_rank(flat) == n:
                counts, *_ = np.linalg.lstsq(flat, got.ravel(), rcond=None)
                if np.ptp(counts.real) > 1e-6 and scene.matches(i, parts @ counts):
                    yield _counts(scene.name(i), counts.real, axis)
            else:
                yield from itertools.islice(_simple_counts(scene, i, truth, parts, axis), 1)


def _of_index(scene: Scene, i: int, k: int, axis: int, index: int) -> np.ndarray:
    """The gradient for what dy is at one index of an axis, zero elsewhere."""
    only = [np.zeros_like(d) for d in scene.dy]
    at = (slice(None),) * axis + (index,)
    only[k][at] = scene.dy[k][at]
    return scene.truth(tuple(only))[i]


def _simple_counts(scene: Scene, i: int, truth, parts, axis: int) -> Iterator[str]:
    """Where counts cannot be solved for: one index left out, one twice, one alone."""
    n = parts.shape[-1]
    for index in range(n):
        part = parts[..., index]
        for count in (0, 2):
            if part.any() and scene.matches(i, truth + (count - 1) * part):
                yield _counts(scene.name(i), np.where(np.arange(n) == index, count, 1), axis)
        if scene.matches(i, part):
            yield _counts(scene.name(i), np.eye(n)[index], axis)


def _counts(name: str, counts, axis: int) -> str:
    counts = np.round(counts, 6) + 0.0
    zero, one = np.flatnonzero(counts == 0), np.flatnonzero(counts == 1)
    if len(zero) and len(zero) + len(one) == len(counts):
        if len(one) == 1:
            return f"sum missing over axis {axis} of dy: in {name} index {one[0]} alone counts"
        return f"sum missing some of axis {axis} of dy: in {name} one row, index {few(zero)}, is left out"
    odd = np.flatnonzero(counts != np.median(counts))
    return (
        f"{name} counts index {few(odd)} of axis {axis} of dy (a row, token or class) {few(counts[odd])} times, the "
        f"others {np.median(counts):g} times: a factor or a mask along that axis"
    )


def few(values) -> str:
    """The first of some numbers, in words."""
    shown = ", ".join(f"{value:g}" for value in values[:6])
    return shown + (", …" if len(values) > 6 else "")


def averaged(scene: Scene, i: int, got, truth) -> Iterator[str]:
    """Off by a mean or a sum over an axis."""
    name = scene.name(i)
    for axis in range(truth.ndim):
        n = truth.shape[axis]
        if n < 2:
            continue
        mean = truth.mean(axis, keepdims=True)
        for said, value in (("mean", mean), ("sum", mean * n)):
            if scene.matches(i, np.broadcast_to(value, truth.shape)):
                yield f"summed too much: {name} is the {said} of the right one over axis {axis}, at every index"
            if largest([value]) > 1e-9 * largest([truth]) and scene.matches(i, truth - value):
                yield f"a term too much: {name} is the right one less its {said} over axis {axis}"
        off = (got - truth).mean(axis, keepdims=True)
        if off.any() and scene.matches(i, truth + off):
            yield (
                f"a term is dropped or wrong that is constant along axis {axis}: {name} is off by the same amount at "
                f"each index of it, as where a mean or sum over axis {axis} is left out"
            )


def unsummed(scene: Scene, i: int, got, truth) -> Iterator[str]:
    """Of another shape: right once summed over axes, transposed or reshaped."""
    name = scene.name(i)
    for k in range(1, got.ndim + 1):
        for over in itertools.combinations(range(got.ndim), k):
            for keep in (False, True):
                total = got.sum(over, keepdims=keep)
                if total.shape == truth.shape and scene.matches(i, total, truth):
                    yield f"sum missing over axis {', '.join(map(str, over))}: {name}, summed over it, is right"
                    return
    for order in itertools.permutations(range(got.ndim)) if got.ndim <= 4 else ():
        turned = got.transpose(order)
        if turned.shape == truth.shape and scene.matches(i, turned, truth):
            yield f"transposed: {name} is right with its axes in the order {list(order)}"
            return
    if got.size == truth.size and scene.matches(i, got.reshape(truth.shape), truth):
        yield f"shape: {name} is right once reshaped to {list(truth.shape)}"
