"""Queries in chunks: which keys a chunk reaches, and a loop over chunks that compiles to a short program."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.ops.arrays import sum_to

RUNS = 8  # more would leave out more blocks, and make a longer program


class Run(NamedTuple):
    """`count` chunks of `rows` queries each, from the query `first` on; each against `width` keys of low … high - 1."""

    first: int
    rows: int
    count: int
    low: int
    high: int
    width: int

    def key(self, i, band) -> jax.Array | int:
        """The first key of the chunk whose first query is i."""
        if self.width == self.high - self.low:
            return self.low
        return jnp.clip(i + band[0], self.low, self.high - self.width)


def runs(T: int, S: int, chunk: int, band) -> Iterator[Run]:
    """All queries, in order. The last chunk may be shorter.

    Keys out of the band are left out. Every chunk has a run of its own where there are few; a band with one end, as of
    causal attention, gets RUNS runs, each against all keys that it reaches; a window one, with keys that move along.
    """
    low, high = band
    chunks, rest = divmod(T, chunk)
    one_end = (low is None) != (high is None)
    size = max(1, -(-chunks // RUNS) if one_end else chunks)
    groups = [(c * chunk, chunk, min(size, chunks - c)) for c in range(0, chunks, size)]
    if rest or not chunks:
        groups.append((chunks * chunk, rest, 1))
    for first, rows, count in groups:
        begin = 0 if low is None else min(max(first + low, 0), S)
        end = S if high is None else min(max(first + rows * count + high, begin), S)
        width = end - begin if low is None or high is None else max(0, min(end - begin, rows + high - low))
        yield Run(first, rows, count, begin, end, width)


def over_chunks(all_runs: list[Run], step: Callable, totals) -> tuple:
    """step(run, totals, i) -> (totals, outputs) for each chunk, i its first query; outputs are joined along axis -3."""
    pieces = []
    for run in all_runs:
        if run.count == 1:
            totals, outputs = step(run, totals, run.first)
        else:
            firsts = run.first + run.rows * jnp.arange(run.count, dtype=jnp.int32)
            totals, outputs = lax.scan(functools.partial(step, run), totals, firsts)
            outputs = jax.tree.map(_joined, outputs)
        pieces.append(outputs)
    return totals, jax.tree.map(lambda *arrays: jnp.concatenate(arrays, -3), *pieces)


def _joined(x) -> jax.Array:
    """[chunks, ..., rows, N, X] → [..., chunks · rows, N, X]."""
    chunks, *leading, rows, N, X = x.shape
    return jnp.moveaxis(x, 0, -4).reshape(*leading, chunks * rows, N, X)


# ── parts of arrays ──────────────────────────────────────────────────────────────────────────────────────────────────


def part(x, axis: int, start, size: int) -> jax.Array:
    """`size` entries of x along an axis, from `start` on."""
    return x if x.shape[axis] == size else lax.dynamic_slice_in_dim(x, start, size, axis)


def added(total, x, start) -> jax.Array:
    """total with x added to its part along axis -2 that starts there."""
    if total.shape == x.shape:
        return total + x
    return lax.dynamic_update_slice_in_dim(total, part(total, -2, start, x.shape[-2]) + x, start, -2)


def part_of_pairs(x, i, rows: int, j, columns: int) -> jax.Array:
    """The block of a mask or bias, which broadcasts to [..., N, T, S]: from query i and key j on."""
    for axis, start, size in ((-2, i, rows), (-1, j, columns)):
        if x.ndim >= -axis and x.shape[axis] != 1:
            x = part(x, axis, start, size)
    return x


def added_to_pairs(total, x, i, j) -> jax.Array:
    """total, of the shape of a bias, with the block x added, summed over the axes along which the bias is copied."""
    block = part_of_pairs(total, i, x.shape[-2], j, x.shape[-1])
    starts = {total.ndim - 2: i, total.ndim - 1: j}
    at = [0 if total.shape[axis] == block.shape[axis] else starts[axis] for axis in range(total.ndim)]
    at = [jnp.asarray(start, jnp.int32) for start in at]
    return lax.dynamic_update_slice(total, block + sum_to(x, block.shape), at)
