"""A number, and what it may be: a sign, the size of an axis, a root of it, 1/(1-p), a constant."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction

import jax

from manual_backprop.testing.diagnosis.scene import Scene
from manual_backprop.testing.leaves import is_inexact

CONSTANTS = {
    "√2": 2**0.5,
    "1/√2": 0.5**0.5,
    "π": math.pi,
    "1/π": 1 / math.pi,
    "√(2π)": (2 * math.pi) ** 0.5,
    "√(2/π)": (2 / math.pi) ** 0.5,
    "ln 2": math.log(2),
    "1/ln 2": 1 / math.log(2),
    "ln 10": math.log(10),
    "e": math.e,
}


def number(c) -> str:
    """With as many digits as tell it from one."""
    c = complex(c)
    digits = 6 if abs(abs(c) - 1) > 1e-4 or abs(abs(c) - 1) < 1e-12 else 12
    return f"{c.real:.{digits}g}" if abs(c.imag) < 1e-9 * abs(c) else f"{c:.{digits}g}"


def named(c, scene: Scene) -> str:
    """`0.142857 = 1/7, the size of axis 0 of x: averaged where it is summed`."""
    shown, c = number(c), complex(c)
    if abs(c.imag) > 1e-9 * abs(c):
        return shown
    size, tolerance = abs(c.real), max(1e-7, scene.slack) * abs(c)
    if abs(c.real + 1) <= tolerance:
        return f"{shown} (the sign is flipped)"
    names = list(_sizes(size, tolerance, scene))
    names += [name for name, value in CONSTANTS.items() if abs(size - value) <= tolerance]
    for p in (k / 20 for k in range(1, 20) if k != 10):
        names += [f"1/(1 - {p:g})"] * (abs(size - 1 / (1 - p)) <= tolerance)
        names += [f"1 - {p:g}"] * (abs(size - (1 - p)) <= tolerance)
    simple = Fraction(size).limit_denominator(64)
    if simple and abs(size - simple) <= tolerance and simple.denominator > 1:
        names.append(str(simple))
    said = f"{shown} = {', or '.join(dict.fromkeys(names))}" if names else shown
    return f"{said} and the sign is flipped" if c.real < 0 else said


def _sizes(c: float, tolerance: float, scene: Scene) -> Iterator[str]:
    """c as the size of an axis or of two, their roots, and one over these."""
    for name, n in _axes(scene):
        for said, value in (
            (f"the size {n} of {name}: summed where it is averaged", n),
            (f"1/{n}, the size of {name}: averaged where it is summed", 1 / n),
            (f"√{n}, the size of {name}", n**0.5),
            (f"1/√{n}, the size of {name}", n**-0.5),
            (f"{n}/{n - 1}, the size of {name} and one less", n / (n - 1)),
            (f"{n - 1}/{n}, the size of {name} and one less", (n - 1) / n),
        ):
            if abs(c - value) <= tolerance:
                yield said
                return


def _axes(scene: Scene) -> list[tuple[str, int]]:
    """The axes of the cotangent and of the arguments, and the pairs of them, with their sizes."""
    shapes = [("dy", d.shape) for d in scene.dy[:1]]
    for j, leaf in enumerate(jax.tree.leaves(scene.args)):
        if is_inexact(leaf):
            shapes.append((scene.name(j)[1:], leaf.shape))
    single = [(f"axis {k} of {name}", n) for name, shape in shapes for k, n in enumerate(shape)]
    pairs = [
        (f"axes {j} and {k} of {name}", m * n)
        for name, shape in shapes
        for (j, m), (k, n) in itertools.combinations(enumerate(shape), 2)
    ]
    return [(name, n) for name, n in (*single, *pairs) if n > 1]
