"""What a right answer is, and how far from it a right answer may lie. Nothing here is handed over by the user.

E is the truth: the gradient of the reference by `jax.vjp`, in float64, at these arguments, for this cotangent.
For each entry i, in units of that entry:

    in float64            allowed = 1e-10 |E| + 4 spread + ulp (max |E| + max |dy|) + 4 autodiff32 ulp / ulp32
    in its own dtype      allowed = 3 autodiff + 2 ulp max |E| + 8 spread + ulp max |dy|

spread: how far E moves when every argument and the cotangent move by one to four ulp of the arithmetic (at least
float32), both ways: the condition of the problem. An exact zero moves by next to nothing.
autodiff: the largest error of `jax.vjp` of the reference in the arguments' own dtypes, at these arguments and near by.
The terms with max are for entries whose truth is a cancellation to nothing.

Where that changes E by more than a thousandth in float64, and moves a thousand times as far hardly change it more, the
reference has a kink there: then any value between the two sides is right, a subgradient, and the finding says so.
Entries at kinks may still be bound to each other: where the sum of E over some axes does not change (the shares of a
tie add up to one), the sum of the answer is judged as well.

Where `jax.vjp` says nan though the values are finite, the truth is the slope by differences.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from manual_backprop.testing.compiled import quickly
from manual_backprop.testing.leaves import (
    as_cotangent,
    is_float64,
    is_inexact,
    largest,
    to_float64,
    to_numpy,
    to_precision,
    ulp,
)
from manual_backprop.testing.slopes import MOST, slopes

TINY = 1e-150  # next to nothing in float64, whose square is still a number
NEAR = 4  # how many points near by, each on both sides


class Expected(NamedTuple):
    """One leaf of y or of the cotangents. low … high is the point of the truth, but for kinks."""

    truth: np.ndarray
    low: np.ndarray
    high: np.ndarray
    allowed: np.ndarray
    kinks: np.ndarray  # bool
    sums: tuple = ()  # (axes, truth, allowed), where entries at kinks add up to what is no kink
    failed: Any = False  # bool, where `jax.vjp` of the reference says nan: a candidate that does so too is no worse


class Leaves(NamedTuple):
    """The leaves of y and, for the arguments that have a gradient, of their cotangents; None for the others."""

    y: list
    dargs: list


def gradient_of(function: Callable, wanted: tuple[bool, ...]) -> Callable:
    """(args, dy) -> (y, the cotangents of the wanted leaves of args), by `jax.vjp`."""

    def run(args, dy):
        flat, tree = jax.tree.flatten(args)

        def of_wanted(*moving):
            rest = iter(moving)
            return function(*tree.unflatten([next(rest) if w else leaf for leaf, w in zip(flat, wanted, strict=True)]))

        y, vjp = jax.vjp(of_wanted, *(leaf for leaf, want in zip(flat, wanted, strict=True) if want))
        return y, vjp(as_cotangent(y, dy))

    return run


def autodiff(reference: Callable, wanted: tuple[bool, ...]) -> Callable[..., Leaves]:
    """(args, dy) -> Leaves of the reference and of jax.vjp of it; compiled, unless the reference looks at values."""
    run = gradient_of(reference, wanted)
    well, quick = jax.jit(run), quickly(run)

    def leaves(args, dy) -> Leaves:
        try:
            y, dargs = (quick if is_float64(args) else well)(args, dy)
        except jax.errors.JAXTypeError:
            y, dargs = run(args, dy)
        rest = iter(dargs)
        y = [to_numpy(leaf) for leaf in jax.tree.leaves(y)]
        return Leaves(y, [to_numpy(next(rest)) if want else None for want in wanted])

    return leaves


def expected_in_float64(vjp, rng, args, dy) -> Leaves:
    """Leaves of Expected; args and dy are float64."""
    eps, largest_dy = ulp("float64"), largest(jax.tree.leaves(dy))
    truth, moved = vjp(args, dy), _moved(vjp, rng, args, dy, eps)
    least = 1e-12 * largest_dy
    jumps = any(_band(E, [near[side][i] for near in moved], least)[1].any() for side, i, E in _all(truth))
    further = _moved(vjp, rng, args, dy, 1024 * eps) if jumps else moved
    moved += _moved(vjp, rng, args, dy, eps, 3 * NEAR) if jumps else []  # each side of each kink is to be met
    in_32, leaves = _in_float32(vjp, args, dy), jax.tree.leaves(args)

    def expect(side, i, E, near):
        spread, kinks, low, high = _band(E, near, least)
        with np.errstate(invalid="ignore", over="ignore"):
            error = 0.0 if in_32 is None else largest([in_32[side][i] - E])
        kinks &= ~(high - low < 1e-6 * error)  # what float32 makes a million times larger is rounding, not a kink
        if kinks.any():  # what grows with the way moved is condition, not a kink
            _, _, lowest, highest = _band(E, [far[side][i] for far in further], least)
            kinks &= ~(highest - lowest > 64 * (high - low))
        low, high = np.where(kinks, low, E), np.where(kinks, high, E)
        allowed = 1e-10 * np.maximum(abs(low), abs(high)) + eps * (largest([E]) + largest_dy)
        if in_32 is not None:
            with np.errstate(invalid="ignore", over="ignore"):
                error = largest([np.where(kinks, 0, in_32[side][i] - E)])
            allowed = allowed + 4 * error * eps / ulp("float32")
        allowed = np.where(np.isnan(allowed), 0, allowed) + np.where(kinks, 0, 4 * spread)
        sums = tuple(_sums(E, near, kinks, allowed))
        kinks, low, high = _tied(E, kinks, low, high, sums, to_numpy(leaves[i]) if side else E)
        return Expected(E, low, high, allowed, kinks, sums)

    found = _each_leaf(expect, truth, moved)
    if not all(np.isfinite(E).all() for E in truth.y):
        return found
    return found._replace(dargs=[_by_differences(vjp, args, dy, i, e) for i, e in enumerate(found.dargs)])


def _by_differences(vjp, args, dy, place: int, expect: Expected | None) -> Expected | None:
    """The slope by differences where autodiff says nan though the values are finite; of the rest of these nothing."""
    if expect is None or np.iscomplexobj(expect.truth) or not np.isnan(expect.truth).any():
        return expect
    entries = [tuple(map(int, entry)) for entry in np.argwhere(np.isnan(expect.truth))]
    truth, low, high, allowed, kinks = (np.array(part) for part in expect[:5])
    for entry, slope in zip(entries[:MOST], slopes(vjp, args, dy, place, entries[:MOST]), strict=True):
        low[entry], high[entry], allowed[entry] = slope
        truth[entry] = slope.low if slope.low == slope.high else (slope.low + slope.high) / 2
        kinks[entry] = slope.high - slope.low > 4 * slope.allowed
    for entry in entries[MOST:]:
        allowed[entry] = np.inf
    return Expected(truth, low, high, allowed, kinks, failed=np.isnan(expect.truth))


def _in_float32(vjp, args, dy) -> Leaves | None:
    """Autodiff in float32; None where the reference does not run in it."""
    try:
        with jax.enable_x64(False):
            return vjp(*jax.tree.map(lambda leaf: to_precision(leaf, "float32"), (args, dy)))
    except Exception:
        return None


def expected_in_own(vjp, rng, args, dy, args_64, dy_64, in_64: Leaves, dtypes: Leaves) -> Leaves:
    """The same truths, for args in the dtypes that they came in: the rounding of these is allowed."""
    with jax.enable_x64(True):
        truth, moved = vjp(args_64, dy_64), _moved(vjp, rng, args_64, dy_64, ulp("float32"))
    own = vjp(args, dy)
    measured = [(own, truth), *_measured_near_by(vjp, rng, args, dy)]
    largest_dy = largest(jax.tree.leaves(dy))

    def expect(side, i, E, near):
        spread, *_ = _band(E, near)
        fit, dtype = in_64[side][i], dtypes[side][i]
        if not jnp.issubdtype(dtype, jnp.inexact):
            return fit
        with np.errstate(invalid="ignore", over="ignore"):
            error = largest([np.where(fit.kinks, 0, ours[side][i] - theirs[side][i]) for ours, theirs in measured])
        allowed = 3 * error + ulp(dtype) * (2 * largest([E]) + largest_dy) + np.where(fit.kinks, 0, 8 * spread)
        allowed = allowed + 16 * float(jnp.finfo(dtype).tiny)  # what is less may be flushed to zero
        # Where autodiff overflows on the way, nothing is asked; beyond the end of its dtype a right answer is infinite.
        allowed = np.where(np.isfinite(E) & ~np.isfinite(own[side][i]), np.inf, allowed)
        narrow = {name: _overflown(getattr(fit, name), dtype) for name in ("truth", "low", "high")}
        allowed = allowed + np.where(np.isnan(E), fit.allowed, 0)  # there the truth is a slope by differences
        sums = tuple((axes, S, np.broadcast_to(allowed, E.shape).sum(axes)) for axes, S, _ in fit.sums)
        return fit._replace(allowed=allowed, sums=sums, **narrow)

    return _each_leaf(expect, truth, moved)


def _measured_near_by(vjp, rng, args, dy) -> list[tuple[Leaves, Leaves]]:
    """Autodiff in these dtypes and the truth, at two points near by: one point may be lucky."""
    pairs = []
    for _ in range(2):

        def move(leaf):
            if not is_inexact(leaf) or leaf.size == 0:
                return leaf
            return (leaf * (1 + ulp(leaf.dtype) * rng.integers(-4, 5, leaf.shape))).astype(leaf.dtype)

        near = jax.tree.map(move, (args, dy))
        own = vjp(*near)
        with jax.enable_x64(True):
            pairs.append((own, vjp(*jax.tree.map(to_float64, near))))
    return pairs


def _all(leaves: Leaves):
    """(side, place, leaf) of every leaf that has a truth."""
    return [(side, i, E) for side, part in enumerate(leaves) for i, E in enumerate(part) if E is not None]


def _each_leaf(expect: Callable, truth: Leaves, moved: list[Leaves]) -> Leaves:
    """expect(side, i, E, near): leaf i of y (side 0) or of the cotangents (side 1), and that of the truths near by."""

    def at(side, i, E):
        return None if E is None else expect(side, i, E, [near[side][i] for near in moved])

    return Leaves(*([at(side, i, E) for i, E in enumerate(leaves)] for side, leaves in enumerate(truth)))


def _moved(vjp, rng, args, dy, eps: float, pairs: int = NEAR) -> list[Leaves]:
    """The truths near by: every number moved by one to four ulp, in random directions, there and back."""

    def direction(leaf):
        return rng.choice([-1, 1], leaf.shape) * rng.uniform(1, 4, leaf.shape) if is_inexact(leaf) else None

    def move(leaf, way, sign):
        return leaf if way is None else leaf * (1 + sign * eps * way) + (leaf == 0) * (sign * TINY * way)

    near = []
    for _ in range(pairs):
        flat, tree = jax.tree.flatten((args, dy))
        ways = [direction(leaf) for leaf in flat]
        for sign in (1, -1):
            moved = [move(leaf, way, sign) for leaf, way in zip(flat, ways, strict=True)]
            near.append(vjp(*tree.unflatten(moved)))
    return near


def _band(E, near, least: float = 0.0) -> tuple:
    """How far the truths near by are from E, where it has a kink, and the interval between its sides.

    least: a jump below it is rounding.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.stack([np.abs(other - E) for other in near])
        spread = np.where(np.isfinite(distance), distance, 0).max(0)
    if np.iscomplexobj(E):
        return spread, np.zeros(E.shape, bool), E, E
    sides = np.stack([E, *near])
    finite = np.where(np.isfinite(sides), sides, np.nan)
    with warnings.catch_warnings(), np.errstate(invalid="ignore", over="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # of entries that are finite nowhere
        low, high = np.nanmin(finite, 0), np.nanmax(finite, 0)
        far = high - low
        kinks = np.isnan(E) & (far > 1e-3 * np.maximum(abs(low), abs(high)))  # where the reference itself fails
        kinks |= (far > 1e-3 * np.maximum(abs(low), abs(high))) & (far > max(1e-6 * largest(sides), least, 1e30 * TINY))
        kinks &= ~np.isinf(E)
        spread = np.where(np.isnan(spread), 0, spread)
        inside = [(other > low + 0.05 * far) & (other < high - 0.05 * far) for other in near]
        several = kinks & np.any(inside, 0)  # several kinks at once, of which not every mixture was met
        low, high = low - np.where(several, far, 0), high + np.where(several, far, 0)
    return spread, kinks, np.where(kinks, low, E), np.where(kinks, high, E)


def _sums(E, near, kinks, allowed) -> Iterator[tuple]:
    """The sums over axes that are no kink although their entries are: (axes, sum, allowed)."""
    if not kinks.any() or not np.isfinite(E).all() or E.ndim > 4:
        return
    for axes in itertools.chain(*(itertools.combinations(range(E.ndim), n + 1) for n in range(E.ndim))):
        S, size = E.sum(axes), np.abs(E).sum(axes)
        spread = np.max([np.abs(other.sum(axes) - S) for other in near], 0)
        held = (spread <= 1e-9 * size) & kinks.any(axes)
        if held.any():
            yield axes, np.where(held, S, np.nan), np.broadcast_to(allowed, E.shape).sum(axes) + 1e-9 * size


def _tied(E, kinks, low, high, sums, x) -> tuple:
    """(kinks, low, high), where entries at kinks share a sum: of a tie, whichever wins, any of them could have won.

    x: the argument; entries of it that equal one at a kink are of the same tie.
    """
    shared = np.zeros(kinks.shape, bool)
    for axes, S, _ in sums:
        held = ~np.isnan(np.expand_dims(S, axes)) & ~shared
        mine = kinks & held
        least, most = (
            end(np.where(mine, x, start), axes, keepdims=True) for end, start in ((np.min, np.inf), (np.max, -np.inf))
        )
        mine |= held & ((x == least) | (x == most))
        lowest = np.where(mine, low, np.inf).min(axes, keepdims=True)
        highest = np.where(mine, high, -np.inf).max(axes, keepdims=True)
        low, high = np.where(mine, lowest, low), np.where(mine, highest, high)
        kinks, shared = kinks | mine, shared | mine
    return kinks, low, high


def _overflown(leaf: np.ndarray, dtype) -> np.ndarray:
    """Infinite where the dtype ends."""
    if np.iscomplexobj(leaf):
        return leaf
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(leaf) > float(jnp.finfo(dtype).max), np.copysign(np.inf, leaf), leaf)
