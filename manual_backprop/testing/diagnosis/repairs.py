"""One edit of the candidate's own backward pass that makes it right: what to change, and in which line.

The candidate's equations are carried out again with one operand changed: flipped, transposed, replaced by one, by zero
or by another value of its shape, or multiplied by the number that fits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from manual_backprop.testing.diagnosis.factors import named
from manual_backprop.testing.diagnosis.scene import Scene
from manual_backprop.testing.jaxprs import CALLS, Place, equations, evaluate, is_float, said
from manual_backprop.testing.leaves import flat_cotangents, is_inexact, to_numpy

SECONDS = 2.5
SCALED = (
    "add",
    "add_any",
    "sub",
    "mul",
    "div",
    "neg",
    "max",
    "min",
    "pow",
    "integer_pow",
    "exp",
    "select_n",
    "dot_general",
)


def repairs(first: Scene, second: Scene | None) -> Iterator[tuple[float, str, bool]]:
    """(how plain, sentence, whether the second cotangent agrees) for every edit that gives the truth, in every leaf."""
    with jax.enable_x64(True):
        closed = _program(first)
        if closed is None:
            return
        scenes = [Run(scene, closed, _leaves(scene)) for scene in (first, second) if scene is not None]
        for rank, text, edit in _edits(scenes[0]):
            yield rank, text, len(scenes) > 1 and scenes[1].right(edit)


class Run(NamedTuple):
    """The candidate's equations on a scene's arguments."""

    scene: Scene
    closed: Any
    flat: list

    def with_edit(self, edit: Callable) -> list:
        return evaluate(self.closed, self.flat, edit)

    @property
    def places(self) -> list[int]:
        """The leaves that have a gradient."""
        return [i for i, e in enumerate(self.scene.expect) if e is not None and self.scene.got[i] is not None]

    def right(self, edit: Callable) -> bool:
        """Whether the edit makes every leaf the truth."""
        pairs = zip(self.places, map(to_numpy, self.with_edit(edit)), strict=True)
        return all(self.scene.matches(i, self.scene.expect[i].truth, result) for i, result in pairs)


def _leaves(scene: Scene) -> list:
    floats = iter(scene.dy)
    y = jax.eval_shape(scene.on.reference, *scene.args)
    dy = jax.tree.map(lambda leaf: jnp.asarray(next(floats)) if is_inexact(leaf) else None, y)
    return jax.tree.leaves((scene.args, dy))


def _program(scene: Scene):
    """The equations from (args, dy) to the cotangents; None where there are too many, or loops among them."""
    y = jax.eval_shape(scene.on.reference, *scene.args)
    tree = jax.tree.structure((scene.args, jax.tree.map(lambda leaf: leaf if is_inexact(leaf) else None, y)))

    def cotangents(*leaves):
        args, dy = tree.unflatten(leaves)
        found = flat_cotangents(scene.on.run(args, dy)[1], args)
        return [d for d, e in zip(found, scene.expect, strict=True) if e is not None and d is not None]

    flat = _leaves(scene)
    try:
        closed = jax.make_jaxpr(cotangents)(*flat)
    except Exception:
        return None
    names = [equation.primitive.name for equation in equations(closed)]
    loops = {"scan", "while", "cond", "pure_callback", "pallas_call"} & set(names)
    too_many = len(names) > 200 or sum(leaf.size for leaf in flat) > 50_000
    return None if loops or too_many else closed


class Value(NamedTuple):
    """A floating value on the way, by what it is called in its equations, and the equation that made it."""

    key: tuple
    array: Any
    maker: Any


def _edits(run: Run) -> Iterator[tuple[float, str, Callable]]:
    """(how plain, sentence, edit) for every edit that makes the run right."""
    operands, makers = [], {}
    for equation in equations(run.closed):
        makers.update((id(out), equation) for out in equation.outvars)

    def note(place, equation, value):
        if is_float(equation.invars[place.operand]) and equation.primitive.name not in CALLS:
            operands.append((place, equation, jnp.asarray(value)))
        return value

    run.with_edit(note)
    values = {}
    for place, equation, value in operands:
        atom = equation.invars[place.operand]
        if not isinstance(atom, core.Literal):
            key = (place.path[:-1], id(atom))
            values.setdefault(key, Value(key, value, makers.get(id(atom))))
    deadline = time.monotonic() + SECONDS
    for place, equation, value in reversed(operands):
        if time.monotonic() > deadline:
            return
        which = f"operand {place.operand + 1} of {equation.primitive.name} in {said(equation, run.closed)}"
        atom = equation.invars[place.operand]
        yield from _changed(run, place, atom, value, which)
        yield from _replaced(run, place, value, values.values(), which)
        if equation.primitive.name in SCALED:
            yield from _scaled(run, place, atom, value, which)


def _putting(place: Place, new: Callable) -> Callable:
    return lambda p, equation, value: new(value) if p == place else value


def _changed(run: Run, place: Place, atom, value, which: str) -> Iterator[tuple[float, str, Callable]]:
    for text, change, rank in _changes(atom, value):
        edit = _putting(place, change)
        if run.right(edit):
            yield rank, f"one edit away, in one term: right with {which} {text}", edit


def _replaced(run: Run, place: Place, value, others, which: str) -> Iterator[tuple[float, str, Callable]]:
    for other in others:
        if np.shape(other.array) != value.shape or other.array.dtype != value.dtype or not value.ndim:
            continue
        edit = _by_value(place, other.key)
        if not np.array_equal(other.array, value) and run.right(edit):
            what = "an argument" if other.maker is None else said(other.maker, run.closed)
            text = f"replaced by {what}{_masked(value, other.array)}"
            yield (
                1.5,
                f"one edit away: a term has a wrong operand, or a wrong residual: right with {which} {text}",
                edit,
            )


def _by_value(place: Place, key: tuple) -> Callable:
    """The edit that puts another value of the same run at a place."""
    seen: dict = {}

    def edit(p, equation, value):
        seen[(p.path[:-1], id(equation.invars[p.operand]))] = value
        return seen.get(key, value) if p == place else value

    return edit


def _scaled(run: Run, place: Place, atom, value, which: str) -> Iterator[tuple[float, str, Callable]]:
    factor = _fitted(run, place)
    if factor is None:
        return
    edit = _putting(place, lambda v: v * factor)
    if isinstance(atom, core.Literal) and value.ndim == 0:
        change = f"the constant {float(value):.10g} changed to {float(value) * factor:.10g}"
        yield 2.0, f"a constant is changed: one edit away, right with {which} {change}", edit
    else:
        change = f"multiplied by the constant factor {named(factor, run.scene)}"
        yield 2.0, f"a term has a wrong factor: one edit away, right with {which} {change}", edit


def _masked(value, other) -> str:
    """Says so where the two differ in entries that a mask makes very small."""
    lowest = min(float(jnp.min(jnp.nan_to_num(jnp.real(v), neginf=-1e300))) for v in (value, other))
    return " (one of the two is masked)" if lowest < -1e4 else ""


def _changes(atom, value) -> Iterator[tuple[str, Callable, float]]:
    yield "negated: a sign is flipped", lambda v: -v, 1.0
    if not isinstance(atom, core.Literal) or value.ndim == 0:
        yield "replaced by one: a factor too much", jnp.ones_like, 1.2
        yield "replaced by zero: a term too much", jnp.zeros_like, 1.2
    yield "replaced by its square: a power is missing", lambda v: v * v, 1.6
    if value.ndim >= 2 and value.shape[-1] == value.shape[-2]:
        yield "transposed", lambda v: jnp.swapaxes(v, -1, -2), 1.4


def _fitted(run: Run, place: Place) -> float | None:
    """The number c for which c · operand makes all right: by a few steps of the secant method."""
    scene = run.scene
    target = np.concatenate([scene.expect[i].truth.ravel() for i in run.places])

    def miss(c):
        results = run.with_edit(_putting(place, lambda v: v * c))
        return np.concatenate([np.ravel(to_numpy(result)) for result in results]) - target

    a, b = 1.0, 1.01
    at_a, at_b = miss(a), miss(b)
    for _ in range(6):
        slope = (at_b - at_a) / (b - a)
        size = np.sum(np.abs(slope) ** 2)
        if not size or not np.isfinite(size):
            return None
        step = float(np.real(np.sum(at_b * np.conj(slope))) / size)
        a, at_a, b = b, at_b, b - step
        at_b = miss(b)
        if not np.sum(np.abs(at_b) ** 2) <= 0.9 * np.sum(np.abs(at_a) ** 2) or b == a:
            break
    return b if abs(b - 1) > 1e-12 and run.right(_putting(place, lambda v: v * b)) else None
