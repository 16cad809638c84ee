"""The truth where autodiff of the reference says nan though its values are finite: slopes by differences.

`jnp.where(x > 0, f(x), 0)` has such places: the derivative of the side not taken is infinite, and zero times it is nan.
A backward pass that is written by hand may well be right there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from manual_backprop.testing.leaves import largest, to_numpy

MOST = 48  # entries of a leaf; of more nothing is asked
STEP = 1e-4
TOLERANCE = 1e-5


class Slope(NamedTuple):
    """The slopes from both sides, with what they may be off by.

    nan where a side does not settle, as an infinite slope does not. A side on which there are no values has no say.
    """

    low: float
    high: float
    allowed: float


def slopes(vjp: Callable, args, dy, place: int, entries: list[tuple[int, ...]]) -> list[Slope]:
    """Of the inner product of y with dy, along single entries of one leaf of args; args and dy are float64."""
    flat, tree = jax.tree.flatten(args)
    weights = [to_numpy(d) for d in jax.tree.leaves(dy)]
    leaf = to_numpy(flat[place])
    unit = largest([leaf]) or 1.0

    def value(entry, step) -> float:
        moved = leaf.copy()
        moved[entry] += step
        y = vjp(tree.unflatten([*flat[:place], jnp.asarray(moved), *flat[place + 1 :]]), dy).y
        return float(sum(np.sum(w * other).real for w, other in zip(weights, y, strict=True)))

    def one(entry) -> Slope:
        h = STEP * (abs(leaf[entry]) or unit)
        here, sides, off = value(entry, 0), [], 0.0
        for sign in (1, -1):
            near, far, farther = (sign * (value(entry, sign * h * k) - here) / (h * k) for k in (0.25, 0.5, 1))
            first, second = 2 * near - far, 2 * far - farther
            if not np.isfinite(near + far + farther):
                continue
            if abs(first - second) <= 1e-3 * abs(near) + 3e-4 * largest(weights) / unit:
                sides.append(first)
                off = max(off, 2 * abs(first - second))
            else:
                return Slope(np.nan, np.nan, 0.0)
        if not sides:
            return Slope(np.nan, np.nan, 0.0)
        return Slope(min(sides), max(sides), off + TOLERANCE * (max(map(abs, sides)) + STEP * abs(here) / unit))

    return [one(entry) for entry in entries]
