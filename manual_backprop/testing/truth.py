"""What a right answer is, and how far from it a right answer may lie. Nothing here is handed over by the user.

E is the truth: the gradient of the reference by `jax.vjp`, in float64, at these arguments, for this cotangent.
For each entry i, in units of that entry:

    in float64            allowed = 1e-10 |E| + 4 spread + ulp (max |E| + max |dy|)
    in its own dtype      allowed = 2 autodiff + 2 ulp max |E| + 4 spread + ulp max |dy|

spread: how far E moves when every argument and the cotangent move by one to four ulp of the arithmetic (at least
float32), both ways: the condition of the problem. An exact zero moves by next to nothing.
autodiff: the largest error of `jax.vjp` of the reference in the arguments' own dtypes.
The terms with max are for entries whose truth is a cancellation to nothing.

Where that changes E by more than a thousandth in float64, the reference has a kink there: then any value between the
two sides is right, a subgradient, and the finding says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

TINY = 1e-150  # next to nothing in float64, whose square is still a number


class Expected(NamedTuple):
    """One leaf of y or of the cotangents. low … high is the point of the truth, but for kinks."""

    truth: np.ndarray
    low: np.ndarray
    high: np.ndarray
    allowed: np.ndarray
    kinks: np.ndarray  # bool


class Leaves(NamedTuple):
    """The leaves of y and, for the arguments that have a gradient, of their cotangents; None for the others."""

    y: list
    dargs: list


def autodiff(reference: Callable, wanted: list[bool]) -> Callable[..., Leaves]:
    """(args, dy) -> Leaves of the reference and of jax.vjp of it; compiled, unless the reference looks at values."""

    def run(args, dy):
        y, vjp = jax.vjp(reference, *args)
        dargs = vjp(jax.tree.map(lambda d, leaf: d.astype(leaf.dtype), dy, y))
        return jax.tree.leaves(y), [d for d, want in zip(jax.tree.leaves(dargs), wanted, strict=True) if want]

    jitted = jax.jit(run)

    def leaves(args, dy) -> Leaves:
        try:
            y, dargs = jitted(args, dy)
        except jax.errors.JAXTypeError:
            y, dargs = run(args, dy)
        rest = iter(dargs)
        return Leaves([to_numpy(leaf) for leaf in y], [to_numpy(next(rest)) if want else None for want in wanted])

    return leaves


def expected_in_float64(vjp, rng, args, dy) -> Leaves:
    """Leaves of Expected; args and dy are float64."""
    ulp, largest_dy = _ulp("float64"), _largest(jax.tree.leaves(dy))

    def expect(side, i, E, near):
        spread, kinks, low, high = _band(E, near)
        allowed = 1e-10 * np.maximum(abs(low), abs(high)) + ulp * (_largest([E]) + largest_dy)
        return Expected(E, low, high, allowed + np.where(kinks, 0, 4 * spread), kinks)

    return _each_leaf(expect, vjp(args, dy), _moved(vjp, rng, args, dy, "float64"))


def expected_in_own(vjp, rng, args, dy, args_64, dy_64, in_64: Leaves) -> Leaves:
    """The same truths, for args in the dtypes that they came in: the rounding of these is allowed."""
    with jax.enable_x64(True):
        truth, moved = vjp(args_64, dy_64), _moved(vjp, rng, args_64, dy_64, "float32")
    own = vjp(args, dy)
    dtypes = [[leaf.dtype for leaf in jax.tree.leaves(tree)] for tree in (dy, args)]
    largest_dy = _largest(jax.tree.leaves(dy))

    def expect(side, i, E, near):
        spread, _, _, _ = _band(E, near)
        kinks, ulp = in_64[side][i].kinks, _ulp(dtypes[side][i])
        with np.errstate(invalid="ignore"):
            error = _largest([np.where(kinks, 0, own[side][i] - E)])
        allowed = 2 * error + ulp * (2 * _largest([E]) + largest_dy) + np.where(kinks, 0, 4 * spread)
        # Where autodiff overflows on the way, nothing is asked; beyond the end of its dtype a right answer is infinite.
        allowed = np.where(np.isfinite(E) & ~np.isfinite(own[side][i]), np.inf, allowed)
        fit = {name: _overflown(getattr(in_64[side][i], name), dtypes[side][i]) for name in ("truth", "low", "high")}
        return in_64[side][i]._replace(allowed=allowed, **fit)

    return _each_leaf(expect, truth, moved)


def _each_leaf(expect: Callable, truth: Leaves, moved: list[Leaves]) -> Leaves:
    """expect(side, i, E, near): leaf i of y (side 0) or of the cotangents (side 1), and that of the truths near by."""

    def at(side, i, E):
        return None if E is None else expect(side, i, E, [near[side][i] for near in moved])

    return Leaves(*([at(side, i, E) for i, E in enumerate(leaves)] for side, leaves in enumerate(truth)))


def _moved(vjp, rng, args, dy, precision: str) -> list[Leaves]:
    """The truths near by: every number moved by one to four ulp, in random directions, there and back."""
    ulp = _ulp(precision)

    def direction(leaf):
        return rng.choice([-4, -3, -2, -1, 1, 2, 3, 4], leaf.shape) if is_inexact(leaf) else None

    def move(leaf, way, sign):
        return leaf if way is None else leaf * (1 + sign * ulp * way) + (leaf == 0) * (sign * TINY * way)

    near = []
    for _ in range(4):
        flat, tree = jax.tree.flatten((args, dy))
        ways = [direction(leaf) for leaf in flat]
        for sign in (1, -1):
            moved = [move(leaf, way, sign) for leaf, way in zip(flat, ways, strict=True)]
            near.append(vjp(*tree.unflatten(moved)))
    return near


def _band(E, near) -> tuple:
    """How far the truths near by are from E, where it has a kink, and the interval between its sides."""
    with np.errstate(invalid="ignore"):
        distance = np.stack([np.abs(other - E) for other in near])
        spread = np.where(np.isfinite(distance), distance, 0).max(0)
    if np.iscomplexobj(E):
        return spread, np.zeros(E.shape, bool), E, E
    sides = np.stack([E, *near])
    finite = np.where(np.isfinite(sides), sides, E)
    low, high = finite.min(0), finite.max(0)
    with np.errstate(invalid="ignore"):
        kinks = (spread > 1e-3 * np.maximum(abs(low), abs(high))) & (
            spread > max(1e-6 * _largest([E, *near]), 1e30 * TINY)
        )
    return spread, kinks, np.where(kinks, low, E), np.where(kinks, high, E)


def is_inexact(leaf) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))


def to_float64(leaf):
    if not is_inexact(leaf):
        return leaf
    return leaf.astype(jnp.complex128 if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else jnp.float64)


def to_numpy(leaf) -> np.ndarray:
    """A numpy array wide enough to subtract in."""
    leaf = leaf if isinstance(leaf, np.ndarray) else np.asarray(leaf)
    return leaf.astype(np.complex128 if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else np.float64)


def _overflown(leaf: np.ndarray, dtype) -> np.ndarray:
    """Infinite where the dtype ends."""
    if np.iscomplexobj(leaf):
        return leaf
    return np.where(np.abs(leaf) > float(jnp.finfo(dtype).max), np.copysign(np.inf, leaf), leaf)


def _ulp(dtype) -> float:
    return float(jnp.finfo(dtype).eps)


def _largest(leaves) -> float:
    """The largest finite magnitude in the leaves, 0 if there is none."""
    magnitudes = [np.abs(to_numpy(leaf)).ravel() for leaf in leaves]
    finite = np.concatenate([m[np.isfinite(m)] for m in magnitudes]) if magnitudes else np.zeros(0)
    return float(finite.max()) if finite.size else 0.0
