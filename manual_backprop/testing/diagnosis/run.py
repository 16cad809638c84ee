"""The candidate's equations, carried out on a scene's arguments, with a say on every value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from manual_backprop.testing.diagnosis.scene import Scene
from manual_backprop.testing.jaxprs import CALLS, LOOPS, Place, equations, evaluate, is_float, said
from manual_backprop.testing.leaves import flat_cotangents, is_inexact, largest, to_numpy

OPAQUE = (*LOOPS, "pure_callback", "pallas_call")


class Operand(NamedTuple):
    """A floating operand of an equation. key: the value that stands there, wherever it is used."""

    place: Place
    equation: Any
    key: tuple
    literal: bool
    array: Any
    maker: Any  # the equation that made the value; None for an argument

    @property
    def dtype(self):
        return self.array.dtype

    def fits(self, shape, dtype) -> bool:
        return not self.literal and self.array.shape == shape and self.array.dtype == dtype


class Run(NamedTuple):
    """operands: those that floating point equations have, in order.  reference: (source line, value) of its own way."""

    scene: Scene
    closed: Any
    flat: list
    operands: list[Operand]
    reference: list[tuple[str, Any]]

    def results(self, flat, edit: Callable | None = None) -> list:
        return evaluate(self.closed, flat, edit)

    @property
    def leaves(self) -> list[int]:
        """Those that have a gradient."""
        return [i for i, e in enumerate(self.scene.expect) if e is not None and self.scene.got[i] is not None]

    def right(self, edit: Callable) -> bool:
        """Whether the edit makes every leaf the truth."""
        pairs = zip(self.leaves, map(to_numpy, self.results(self.flat, edit)), strict=True)
        return all(self.scene.matches(i, self.scene.expect[i].truth, result) for i, result in pairs)

    def wanted(self) -> tuple[list, list]:
        """The truth of each leaf, and what an entry may be off by."""
        truths = [jnp.asarray(self.scene.expect[i].truth) for i in self.leaves]
        allowed = []
        for i, truth in zip(self.leaves, truths, strict=True):
            most = np.nan_to_num(self.scene.expect[i].allowed, posinf=0.0)
            allowed.append(jnp.asarray(4 * most + self.scene.slack * largest([to_numpy(truth)])))
        return truths, allowed

    def said(self, equation) -> str:
        return said(equation, self.closed)


def program(scene: Scene):
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
    too_many = len(names) > 300 or sum(leaf.size for leaf in flat) > 50_000
    return None if too_many or set(OPAQUE) & set(names) else closed


def run_of(scene: Scene, closed) -> Run:
    flat, operands, makers = _leaves(scene), [], {}
    for equation in equations(closed):
        makers.update((id(out), equation) for out in equation.outvars)

    def note(place, equation, value):
        atom = equation.invars[place.operand]
        if is_float(atom) and equation.primitive.name not in CALLS:
            literal = isinstance(atom, core.Literal)
            key = (place.path[:-1], place.operand if literal else id(atom))
            operands.append(Operand(place, equation, key, literal, jnp.asarray(value), makers.get(id(atom))))
        return value

    evaluate(closed, flat, note)
    return Run(scene, closed, flat, operands, _of_reference(scene))


def _leaves(scene: Scene) -> list:
    floats = iter(scene.dy)
    y = jax.eval_shape(scene.on.reference, *scene.args)
    dy = jax.tree.map(lambda leaf: jnp.asarray(next(floats)) if is_inexact(leaf) else None, y)
    return [jnp.asarray(leaf) for leaf in jax.tree.leaves((scene.args, dy))]


def _of_reference(scene: Scene) -> list[tuple[str, Any]]:
    flat, tree = jax.tree.flatten(scene.args)
    found = []
    try:
        closed = jax.make_jaxpr(lambda *leaves: scene.on.reference(*tree.unflatten(leaves)))(*flat)

        def note(path, equation, operands, results):
            if is_float(equation.outvars[0]) and not isinstance(results[0], jax.core.Tracer):
                found.append((said(equation, closed), results[0]))
            return results

        evaluate(closed, flat, redo=note)
    except Exception:  # the reference cannot be carried out by its equations
        pass
    return found
