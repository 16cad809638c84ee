"""Tasks of which it is known how well they can be done, with a memory and without: endless examples, drawn by a key.

    adding   two of many numbers are marked: what is their sum?  (Hochreiter & Schmidhuber 1997, experiment 4; with
             numbers from 0 to 1, and one mark in each half, as Arjovsky, Shah & Bengio 2016, arXiv:1511.06464)
    copy     ten symbols, a long blank, a sign: what were the ten?  (Hochreiter & Schmidhuber 1997; Arjovsky 2016)
    markov   each word is drawn by the two before it; a model reads one at a time  (`text.markov`)

Without a memory, the best answer to the first is always 1, the mean of the sum, whose variance is 2 · 1/12; to the
second, blanks and then any of eight symbols, 10 ln 8 over all steps; to the third, what mostly follows this one word.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from manual_backprop import ops
from manual_backprop.contract import Op
from manual_backprop.errors import InputError, choose
from manual_backprop.training import text

SYMBOLS, COPIED = 8, 10  # of the copy task: how many there are to choose from, and how many are to be remembered
BLANK, SIGN = SYMBOLS, SYMBOLS + 1


class Task(NamedTuple):
    """draw(key, data, n) → n examples (x, target): x [n, length, in], or with a vocabulary ids [n, length]."""

    name: str
    length: int
    vocabulary: int | None
    outputs: int
    last: bool  # whether the last step alone answers: target [n, outputs]; else every step: target [n, length] of ids
    cost: Op
    unit: str  # of the cost
    memoryless: float  # the least cost without a memory
    least: float  # the least cost that any model can have
    solved: float  # a cost below this one counts as solved
    draw: Callable
    data: Any = ()
    answers: int = 0  # so many last steps whose accuracy is to be told


def load(name: str, length: int, seed: int = 0) -> Task:
    """adding, copy or markov. Raises InputError for another, and for a length that has no room for it."""
    of, shortest, why = choose("--task", name, TASKS)
    if length < shortest:
        raise InputError(f"--length {length}: the task {name} wants at least {shortest}: {why}")
    return of(length, seed)


def adding(length: int, seed: int = 0) -> Task:
    """x [n, length, 2] of (a number from 0 to 1, 1 where it is marked, else 0), target [n, 1]."""

    def draw(key, data, n: int):
        keys = jax.random.split(key, 3)
        numbers = jax.random.uniform(keys[0], (n, length))
        first = jax.random.randint(keys[1], (n, 1), 0, length // 2)
        second = jax.random.randint(keys[2], (n, 1), length // 2, length)
        time = jnp.arange(length)
        marks = ((time == first) | (time == second)).astype(numbers.dtype)
        return jnp.stack([numbers, marks], -1), jnp.sum(numbers * marks, -1, keepdims=True)

    cost = ops.mean_squared_error()
    return Task("adding", length, None, 1, True, cost, "squared error", 1 / 6, 0.0, 0.01, draw)


def copy_memory(length: int, seed: int = 0) -> Task:
    """ids: ten of 0 … 7, blanks (8), a sign (9), ten blanks; target: blanks, then in the last ten steps the symbols."""

    def draw(key, data, n: int):
        symbols = jax.random.randint(key, (n, COPIED), 0, SYMBOLS, jnp.int32)
        blanks = jnp.full((n, length - COPIED), BLANK, jnp.int32)
        x = jnp.concatenate([symbols, blanks], -1).at[:, -COPIED - 1].set(SIGN)
        return x, jnp.concatenate([blanks, symbols], -1)

    memoryless = COPIED * math.log(SYMBOLS) / length
    cost = ops.softmax_cross_entropy()
    return Task(
        "copy", length, SYMBOLS + 2, SYMBOLS + 1, False, cost, "nats a step", memoryless, 0.0, 0.01 * memoryless, draw,
        answers=COPIED,
    )  # fmt: skip


def markov(length: int, seed: int = 0) -> Task:
    """ids of 16 words, target: the word that follows each. The table of the source is one of the seed."""
    source = text.markov(length, seed)
    table, pairs = (np.exp(np.asarray(logits, np.float64)) for logits in source.train)
    following = np.einsum("ab,abc->bc", pairs.reshape(table.shape[:2]), table)  # with the word before it
    given = following / following.sum(-1, keepdims=True)
    memoryless = -np.sum(following * np.log(given)) / following.sum()
    cost = ops.softmax_cross_entropy()
    return Task(
        "markov", length, source.vocabulary, source.vocabulary, False, cost, "nats a word", float(memoryless),
        source.entropy, 1.03 * source.entropy, source.draw, source.train,
    )  # fmt: skip


TASKS = {
    "adding": (adding, 2, "a number to mark in each half"),
    "copy": (copy_memory, 2 * COPIED + 1, "ten symbols, a sign, and ten steps to answer"),
    "markov": (markov, 2, "two words"),
}
