"""Which stage of a pipeline does what in which tick: the order of a backward pass, written by hand.

The layers are cut into S stages, the batch into M micro-batches. The chain rule asks for three things alone:

    y(s, i)     the output of stage s for micro-batch i     after y(s - 1, i)
    dx(s, i)    the cotangent of its input                  after dx(s + 1, i), on the last stage after y(s, i)
    dw(s, i)    a part of dw(s) = Σᵢ dw(s, i)               with dx(s, i), or at any time after it

Every order that keeps to these has the same gradients. The tables here come of one rule: a stage goes forward while it
may, else backward, else makes dw, else waits. They differ in how many micro-batches may be on their way on a stage,
which keeps the residuals of so many, and in what fits into a tick:

    gpipe        all M: forward to the end, then backward (Huang 2018, arXiv:1811.06965)
    1f1b         S - s: one forward, one backward in turn (Narayanan 2019, PipeDream; 2021, arXiv:2104.04473). As many
                 ticks; what is kept does not grow with M
    pairs        2 (S - s) - 1: one forward and one backward in the same tick
    zero-bubble  S - s, and dw apart, where else a stage would wait (Qi 2023, arXiv:2401.10241, ZB-H1)

Of the 2 (M + S - 1) ticks of the first two a stage waits in 2 (S - 1): the bubble, (S - 1) / (M + S - 1) of them. Where
dw is made apart, and M ≥ S, it waits in S - 1 of 3 M + S - 1.

Devices that hand on at the end of each tick what they made in it wait for the slowest. y, dx and dw take about as long
as one another, so in "1f1b", where some stages have y while others have dx and dw, y takes as long as two. In the other
tables all stages do alike between the ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from manual_backprop.errors import choose, want_count


class Rule(NamedTuple):
    """What makes the tables differ."""

    most: Callable[[int, int, int], int]  # micro-batches on their way on stage s of S, of M
    pairs: bool = False  # forward and backward in one tick
    apart: bool = False  # dw apart from dx


SCHEDULES = {
    "1f1b": Rule(lambda s, S, M: S - s),
    "gpipe": Rule(lambda s, S, M: M),
    "pairs": Rule(lambda s, S, M: 2 * (S - s) - 1, pairs=True),
    "zero-bubble": Rule(lambda s, S, M: S - s, apart=True),
}


class Timetable(NamedTuple):
    """In which tick a stage does what: arrays [stages, micro-batches]."""

    forward: np.ndarray
    backward: np.ndarray
    weights: np.ndarray | None = None  # dw, where it is made apart

    @property
    def ticks(self) -> int:
        return 1 + max(int(when.max()) for when in self if when is not None)

    @property
    def waiting(self) -> float:
        """The share of ticks in which a stage does nothing."""
        busy = sum(self.at_work(when) >= 0 for when in self if when is not None) > 0
        return 1 - float(busy.mean())

    def at_work(self, when: np.ndarray) -> np.ndarray:
        """[ticks, stages]: the micro-batch that a stage has in a tick, -1 for none."""
        found = np.full((self.ticks, len(when)), -1, np.int32)
        for s, row in enumerate(when):
            found[row, s] = np.arange(len(row))
        return found

    def length(self, y: float = 1, dx: float = 1, dw: float = 1) -> float:
        """How long it takes, where each takes so long and a tick lasts as long as it does on its longest stage."""
        costs = (y, dx if self.weights is not None else dx + dw, dw)
        work = [cost * (self.at_work(when) >= 0) for cost, when in zip(costs, self, strict=True) if when is not None]
        return float(sum(work).max(1).sum())

    def idle(self, y: float = 1, dx: float = 1, dw: float = 1) -> float:
        """The share of that time in which a stage does nothing."""
        return 1 - self.forward.shape[1] * (y + dx + dw) / self.length(y, dx, dw)

    def __str__(self) -> str:
        """A line a stage, a column a tick: f3 is micro-batch 3 forward, b3 backward, w3 its dw, . nothing."""
        letters = zip("fbw", self, strict=True)
        found = [(letter, self.at_work(when)) for letter, when in letters if when is not None]
        cell = lambda t, s: "".join(f"{letter}{i[t, s]}" for letter, i in found if i[t, s] >= 0) or "."
        rows = [[cell(t, s) for t in range(self.ticks)] for s in range(len(self.forward))]
        width = max(len(each) for row in rows for each in row)
        return "\n".join(f"stage {s}  " + " ".join(each.rjust(width) for each in row) for s, row in enumerate(rows))


def timetable(schedule: str, stages: int, micro_batches: int) -> Timetable:
    """The table of a schedule by its name, for S stages and M micro-batches. Raises InputError for an unknown name."""
    rule = choose("pipeline: schedule", schedule, SCHEDULES)
    S, M = want_count("pipeline: stages", stages), want_count("pipeline: micro_batches", micro_batches)
    forward, backward, weights = (np.full((S, M), np.iinfo(np.int32).max) for _ in range(3))
    done, t = np.zeros((S, 3), int), 0
    while (done < M).any():
        for s in range(S):
            f, b, w = done[s]
            forth = f < M and f - b < rule.most(s, S, M) and (s == 0 or forward[s - 1, f] < t)
            forth = forth and not (rule.apart and f - w >= S)  # what dw is made of is kept too
            if forth:
                forward[s, f] = t
            back = b < M and (backward[s + 1, b] < t if s < S - 1 else forward[s, b] <= t)
            back = back and (rule.pairs or not forth)
            if back:
                backward[s, b] = t
            late = rule.apart and w < b and not (forth or back)
            if late:
                weights[s, w] = t
            done[s] += (forth, back, late if rule.apart else back)
        t += 1
    return Timetable(forward, backward, weights if rule.apart else None)


def places(first: np.ndarray, last: np.ndarray) -> int:
    """How many places a ring needs on each stage for what waits from one tick to another, both of them counted.

    first, last: [stages, micro-batches].
    """
    ticks = np.arange(last.max(initial=0) + 1)[:, None, None]
    return max(1, int(((first <= ticks) & (ticks <= last)).sum(-1).max(initial=0)))
