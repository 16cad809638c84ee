"""Which path through the reference is missing, flipped or scaled: *treated as constant*, named with its source line.

Every operand of every equation of the reference gets a gate: its value stays, its cotangent is multiplied by g. A path
enters each product once, so the gradient is affine in each gate: G(g) = G(1) - (1 - g) D, with D = G(1) - G(0) what
flows through that operand. Where got - G(1) = (g - 1) D for some number g, the wrong gradient is explained: g = 0 is a
value held constant, or a term dropped; g = -1 a wrong sign; any other number a wrong factor on that path alone.
Two values held constant together, as both statistics of a norm, are tried for the first that have names.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from manual_backprop.testing.compiled import quickly
from manual_backprop.testing.diagnosis.factors import named
from manual_backprop.testing.diagnosis.scene import Scene
from manual_backprop.testing.jaxprs import evaluate, is_float, said, scaled
from manual_backprop.testing.leaves import as_cotangent, is_inexact, to_numpy

MOST = 20_000_000  # numbers that the gradients of all gates may have together
IN_PAIRS = 12  # values that are held constant two at a time


class Gate(NamedTuple):
    """An operand, or every use of one value, of the reference's equations."""

    places: tuple[int, ...]
    text: str  # the value, as the source says it
    whole: bool  # every use
    order: int
    assigned: bool  # the source line gives it a name
    pair: bool = False  # two values


def paths(first: Scene, second: Scene | None) -> Iterator[tuple[float, str, bool]]:
    """(how plain, sentence, whether a second cotangent agrees) for each gate that explains all leaves at once."""
    with jax.enable_x64(True):
        program = _program(first)
        if program is None:
            return
        gates, contributions = program
        try:
            told = [_fitting(scene, gates, contributions) for scene in (first, second) if scene is not None]
        except Exception:  # the reference cannot be carried out by its equations
            return
    for gate, g in told[0].items():
        again = len(told) > 1 and gate in told[1] and abs(told[1][gate] - g) <= 1e-4 * (1 + abs(g))
        yield _plainness(g, gate), _sentence(g, gate, first), again


def _fitting(scene: Scene, gates: list[Gate], contributions: Callable) -> dict[Gate, float]:
    """The gates that explain a scene, and what each has to be."""
    wanted = [i for i, e in enumerate(scene.expect) if e is not None and scene.got[i] is not None]
    got = [scene.got[i] for i in wanted]
    stacked = contributions(scene.dy)
    truth = [leaf[0] for leaf in stacked]
    if any(g.shape != t.shape for g, t in zip(got, truth, strict=True)):
        return {}
    # Custom rules are left behind in the reference's equations: without them the gradient must be the same.
    if not all(scene.matches(i, t, scene.expect[i].truth) for i, t in zip(wanted, truth, strict=True)):
        return {}
    off = np.concatenate([(g - t).ravel() for g, t in zip(got, truth, strict=True)])
    if not np.isfinite(off).all():
        return {}
    found = {}
    for n, gate in enumerate(gates):
        parts = [leaf[0] - leaf[n + 1] for leaf in stacked]
        D = np.concatenate([part.ravel() for part in parts])
        size = np.sum(np.abs(D) ** 2)
        if not size or not np.isfinite(size):
            continue
        if all(
            np.abs(d - t).max(initial=0) <= 1e-12 * np.abs(t).max(initial=0) for d, t in zip(parts, truth, strict=True)
        ):
            continue  # everything flows through it: a factor of the whole, said elsewhere
        if gate.pair:
            if all(scene.matches(i, t - part) for i, t, part in zip(wanted, truth, parts, strict=True)):
                found[gate] = 0.0
            continue
        g = 1 + np.sum(off * np.conj(D)) / size
        if all(scene.matches(i, t + (g - 1) * part) for i, t, part in zip(wanted, truth, parts, strict=True)):
            found[gate] = float(np.real(g))
    return found


def _plainness(g, gate: Gate) -> float:
    return (
        (0 if abs(g) < 1e-6 else 1 if abs(g + 1) < 1e-6 else 2)
        + 0.3 * (not gate.assigned)
        + 0.1 * (not gate.whole)
        + 0.5 * gate.pair
        + 1e-4 * gate.order
    )


def _sentence(g, gate: Gate, scene: Scene) -> str:
    if abs(g) < max(1e-6, scene.slack):
        if gate.whole:
            return f"treated as constant: equals the gradient with {gate.text} held constant"
        return f"a term is dropped: equals the gradient with {gate.text} held constant where it enters there"
    if abs(g + 1) < max(1e-6, scene.slack):
        return f"the sign of one term is flipped: the path through {gate.text} counts with factor -1"
    return (
        f"one term has a constant factor: the path through {gate.text} counts {named(g, scene)} times, a constant is "
        "changed there"
    )


def _program(scene: Scene) -> tuple[list[Gate], Callable] | None:
    """(gates, dy -> for each leaf the gradients with every gate open, then with each shut); compiled once."""
    flat, tree = jax.tree.flatten(scene.args)
    reference = scene.on.reference
    try:
        closed, shape = jax.make_jaxpr(lambda *leaves: reference(*tree.unflatten(leaves)), return_shape=True)(*flat)
    except Exception:
        return None
    operands: list = []

    def note(place, equation, value):
        atom = equation.invars[place.operand]
        if not hasattr(atom, "val") and is_float(atom) and isinstance(value, jax.Array):
            operands.append((place, equation, atom))
        return value

    jax.eval_shape(lambda *leaves: evaluate(closed, list(leaves), note), *flat)
    index: dict = {}
    for place, _, _ in operands:
        index.setdefault(place, len(index))
    gates = _gates(closed, operands, index)
    if not gates or len(gates) * sum(leaf.size for leaf in flat) > MOST or len(gates) > 600:
        return None
    wanted = [i for i, e in enumerate(scene.expect) if e is not None and scene.got[i] is not None]

    def gradient(gate_values, dy):
        def edit(place, equation, value):
            return scaled(value, gate_values[index[place]].astype(value.dtype)) if place in index else value

        def of_wanted(*moving):
            leaves = list(flat)
            for i, leaf in zip(wanted, moving, strict=True):
                leaves[i] = leaf
            return jax.tree.unflatten(jax.tree.structure(shape), evaluate(closed, leaves, edit))

        y, vjp = jax.vjp(of_wanted, *(flat[i] for i in wanted))
        floats = iter(dy)
        return vjp(as_cotangent(y, jax.tree.map(lambda leaf: next(floats) if is_inexact(leaf) else None, y)))

    rows = np.ones((len(gates) + 1, len(index)))
    for n, gate in enumerate(gates):
        rows[n + 1, list(gate.places)] = 0
    run = quickly(lambda rows, dy: jax.lax.map(lambda row: gradient(row, dy), rows))
    return gates, lambda dy: [to_numpy(leaf) for leaf in run(jnp.asarray(rows), [jnp.asarray(d) for d in dy])]


def _gates(closed, operands, index) -> list[Gate]:
    """One gate an operand, and one for all the uses of a value that has several."""
    uses: dict = {}
    made: dict = {}
    for place, equation, atom in operands:
        uses.setdefault((place.path[:-1], id(atom)), []).append((place, equation))
        for out in equation.outvars:
            made[(place.path[:-1], id(out))] = equation
    gates = []
    for order, (key, places) in enumerate(uses.items()):
        maker = made.get(key)
        numbers = tuple(dict.fromkeys(index[place] for place, _ in places))
        if maker is not None:
            text = said(maker, closed)
            gates.append(Gate(numbers, text, True, order, _assigns(text)))
        if len(numbers) > 1 or maker is None:
            for place, equation in places:
                used = f"operand {place.operand + 1} of {equation.primitive.name}, in {said(equation, closed)},"
                gates.append(Gate((index[place],), used, False, order, False))
    whole = [gate for gate in gates if gate.whole]
    whole = sorted(whole, key=lambda gate: not gate.assigned)[:IN_PAIRS]
    for a, b in itertools.combinations(whole, 2):
        gates.append(Gate((*a.places, *b.places), f"{a.text} and {b.text}", True, a.order, a.assigned, True))
    return gates


def _assigns(text: str) -> bool:
    """Whether the source line is `name = …`."""
    body = text.split("`")[1] if "`" in text else ""
    head = body.partition(" = ")[0]
    return " = " in body and head.replace("_", "").replace(", ", "").isalnum()
