"""Explanations that the numbers alone give: a wrong leaf is another formula of what is known.

Each pattern is a function (scene, leaf, got, truth) -> sentences. `axes.py` has those along axes; `places.py` says
where it is wrong.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import jax
import numpy as np

from manual_backprop.testing.diagnosis.axes import averaged, counted, moved, moved_cotangent, repeated, unsummed
from manual_backprop.testing.diagnosis.factors import named, number
from manual_backprop.testing.diagnosis.places import not_finite, one_row, where
from manual_backprop.testing.diagnosis.scene import Scene
from manual_backprop.testing.leaves import is_inexact, largest, to_numpy


def patterns(scene: Scene) -> Iterator[str]:
    """Every explanation that fits a wrong leaf, the simplest first; one sentence each."""
    for i in scene.wrong:
        got, truth = scene.got[i], scene.expect[i].truth
        if got.shape != truth.shape:
            yield from unsummed(scene, i, got, truth)
        elif got.size and not np.isfinite(got).all():
            yield from not_finite(scene, i, got, truth)
        elif got.size and np.isfinite(truth).all():
            yield from _of_values(scene, i, got, truth)


def _of_values(scene: Scene, i: int, got, truth) -> Iterator[str]:
    for explain in (_zero, _ignored, _not_linear, _factor):
        found = list(explain(scene, i, got, truth))
        yield from found
        if found and explain is not _not_linear:
            return
    for explain in (
        _swapped, _conjugated, _diagonal, moved, moved_cotangent, repeated, counted, _operand, _exchanged, _term,
        averaged, one_row, where,
    ):  # fmt: skip
        yield from explain(scene, i, got, truth)


def _zero(scene: Scene, i: int, got, truth) -> Iterator[str]:
    if not got.any():
        yield (
            f"cotangent is zero: {scene.name(i)} is zero everywhere; the argument is treated as constant (held "
            "constant): every path to it is missing"
        )


def _ignored(scene: Scene, i: int, got, truth) -> Iterator[str]:
    other = tuple(2.5 * d[..., ::-1] - 1 if d.ndim else 2.5 * d - 1 for d in scene.dy)
    if scene.matches(i, scene.candidate(other)[i]):
        ones = scene.truth(tuple(np.ones_like(d) for d in scene.dy))[i]
        more = ": it is the gradient for a cotangent of ones" if scene.matches(i, ones) else ""
        yield f"cotangent ignored: {scene.name(i)} does not depend on dy{more}"


def _not_linear(scene: Scene, i: int, got, truth) -> Iterator[str]:
    double, negative = (scene.candidate(tuple(c * d for d in scene.dy))[i] for c in (2, -1))
    if double is None or (scene.matches(i, double, 2 * got) and scene.matches(i, negative, -got)):
        return
    most = largest([got])
    head = f"not linear in the cotangent: {scene.name(i)}"
    if scene.matches(i, negative, got):
        yield f"{head} is the same for -dy, as of |dy| or dy²"
    elif (np.abs(got) >= most * (1 - 1e-6)).sum() > 1 or largest([double]) <= 1.01 * most:
        yield f"{head} is clipped, its entries end at {most:.6g} however large dy is"
    else:
        yield f"{head} for twice dy is not twice as much"


def _factor(scene: Scene, i: int, got, truth) -> Iterator[str]:
    c = fit(got, truth)
    if c is not None and scene.matches(i, c * truth) and abs(c - 1) > scene.slack:
        one = "" if truth.size > 1 else " (one number: another explanation may fit as well)"
        yield f"constant factor {named(c, scene)}: {scene.name(i)} is {number(c)} × the right one{one}"


def fit(got, value):
    """The number c for which c · value comes closest to got; None where value is zero."""
    size = np.sum(np.abs(value) ** 2)
    return np.sum(got * np.conj(value)) / size if size and np.isfinite(size) else None


def _swapped(scene: Scene, i: int, got, truth) -> Iterator[str]:
    for j, other in enumerate(scene.expect):
        if j != i and other is not None and scene.matches(i, other.truth):
            both = j in scene.wrong and scene.matches(j, truth)
            back = ", and the other way round" if both else ""
            yield f"swapped arguments: {scene.name(i)} is the cotangent of {scene.name(j)[1:]}{back}"


def _conjugated(scene: Scene, i: int, got, truth) -> Iterator[str]:
    if np.iscomplexobj(truth) and scene.matches(i, np.conj(truth)):
        yield f"conjugated: {scene.name(i)} is the conjugate of the right one; its imaginary part has the other sign"


def _diagonal(scene: Scene, i: int, got, truth) -> Iterator[str]:
    """Each entry of y differentiated by the entry of the argument at its own place alone."""
    if len(scene.dy) != 1 or scene.dy[0].shape != truth.shape or not 1 < truth.size <= 400:
        return
    with jax.enable_x64(True):
        leaves, tree = jax.tree.flatten(scene.args)
        of_leaf = lambda leaf: scene.on.reference(*tree.unflatten([*leaves[:i], leaf, *leaves[i + 1 :]]))
        jacobian = to_numpy(jax.jacrev(of_leaf)(leaves[i]))
    if jacobian.size != truth.size**2:
        return
    jacobian = jacobian.reshape(truth.size, truth.size)
    if scene.matches(i, np.diag(jacobian).reshape(truth.shape) * scene.dy[0]):
        yield (
            f"a sum over paths is missing: {scene.name(i)} has the diagonal terms of the Jacobian alone, an entry of "
            "y by the one at its own place; the off-diagonal terms are left out"
        )


def known(scene: Scene) -> Iterator[tuple[str, np.ndarray]]:
    """The floating arguments and the cotangent, by name."""
    for j, leaf in enumerate(jax.tree.leaves(scene.args)):
        if is_inexact(leaf):
            yield f"`{scene.name(j)[1:]}`", to_numpy(leaf)
    if len(scene.dy) == 1:
        yield "`dy`", scene.dy[0]


def _fitting(value, shape):
    """value as this shape, None where it does not broadcast to it."""
    try:
        return np.broadcast_to(value, shape)
    except ValueError:
        return None


def _operand(scene: Scene, i: int, got, truth) -> Iterator[str]:
    """Multiplied by an operand once too often, or not at all; with a constant factor beside it, perhaps."""
    for name, value in known(scene):
        value = _fitting(value, truth.shape)
        if value is None or np.ptp(np.abs(value)) == 0:
            continue
        for said, power in (
            ("is multiplied once more by", 1),
            ("lacks the factor", -1),
            ("has twice more the factor", 2),
        ):
            if power < 0 and not (value != 0).all():
                continue
            predicted = truth * value**power
            c = fit(got, predicted)
            if c is None or not scene.matches(i, c * predicted):
                continue
            more = "" if abs(c - 1) <= 1e-6 else f", with the constant factor {named(c, scene)}"
            yield f"wrong operand: {scene.name(i)} {said} {name}{more}"


def _exchanged(scene: Scene, i: int, got, truth) -> Iterator[str]:
    """One operand in place of another."""
    operands = [(name, _fitting(value, truth.shape)) for name, value in known(scene)]
    for (a, x), (b, y) in itertools.permutations([(n, v) for n, v in operands if v is not None], 2):
        if (y != 0).all() and np.ptp(np.abs(x / y)) and scene.matches(i, truth * x / y):
            yield f"wrong operand, or wrong residual: {scene.name(i)} has {a} in place of {b}"


def _term(scene: Scene, i: int, got, truth) -> Iterator[str]:
    """Off by a multiple of something known."""
    off, values = got - truth, list(known(scene))
    values += [(f"{a} · {b}", x * y) for (a, x), (b, y) in itertools.combinations(values, 2) if x.shape == y.shape]
    values += [(scene.name(j), e.truth) for j, e in enumerate(scene.expect) if e is not None and j != i]
    for name, value in values:
        value = _fitting(value, truth.shape)
        c = None if value is None or truth.size < 2 else fit(off, value)
        if c is None or abs(c) <= scene.slack or not scene.matches(i, truth + c * value):
            continue
        said = "dropped" if abs(c + 1) < 1e-6 else "added" if abs(c - 1) < 1e-6 else "wrong"
        sign = "+" if np.real(c) > 0 else "-"
        yield f"a term is {said}: {scene.name(i)} is the right one {sign} {number(abs(c))} × {name}"
