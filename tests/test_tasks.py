"""Tasks of known difficulty: what they ask, and what is known of the answers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_backprop as mb
from manual_backprop.training import tasks


def drawn(task: tasks.Task, n: int, seed: int = 0):
    return map(np.asarray, jax.jit(lambda key: task.draw(key, task.data, n))(jax.random.key(seed)))


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_batch_is_a_function_of_the_key(name):
    task = tasks.load(name, 23, seed=3)
    x, target = drawn(task, 5)
    assert x.shape[:2] == (5, 23) and (x.ndim == 3) == (task.vocabulary is None)
    assert target.shape == ((5, task.outputs) if task.last else (5, 23))
    again, other = drawn(task, 5), drawn(task, 5, seed=1)
    np.testing.assert_array_equal(x, next(again))
    assert (x != next(other)).any()


@pytest.mark.parametrize("length", [2, 3, 200])
def test_the_sum_is_that_of_the_two_marked(length):
    x, target = drawn(tasks.adding(length), 701)
    numbers, marks = x[..., 0], x[..., 1]
    assert set(np.unique(marks)) <= {0.0, 1.0} and (numbers >= 0).all() and (numbers < 1).all()
    assert (marks[:, : length // 2].sum(-1) == 1).all() and (marks[:, length // 2 :].sum(-1) == 1).all()
    np.testing.assert_allclose(target[:, 0], [row[mark == 1].sum() for row, mark in zip(numbers, marks, strict=True)])
    assert (marks.sum(0) > 0).all()  # every place is marked now and then


def test_always_one_is_off_by_a_sixth():
    task = tasks.adding(10)
    _, target = drawn(task, 200_000)
    cost = task.cost(jnp.ones_like(target), jnp.asarray(target))
    assert float(cost) == pytest.approx(task.memoryless, rel=0.01)
    assert np.mean(target) == pytest.approx(1, abs=0.005)


def test_what_is_copied_is_the_first_ten():
    task = tasks.copy_memory(47)
    x, target = drawn(task, 301)
    np.testing.assert_array_equal(target[:, -10:], x[:, :10])
    assert (target[:, :-10] == tasks.BLANK).all()
    np.testing.assert_array_equal(np.unique(x[:, :10]), np.arange(tasks.SYMBOLS))
    assert (x[:, 10:36] == tasks.BLANK).all() and (x[:, 36] == tasks.SIGN).all() and (x[:, 37:] == tasks.BLANK).all()
    assert x.max() < task.vocabulary and target.max() < task.outputs


def test_blanks_and_then_a_guess_cost_what_is_said():
    task = tasks.copy_memory(60)
    _, target = drawn(task, 7)
    sure, guess = np.full((50, 9), -1e9), np.full((10, 9), -math.log(8))
    sure[:, tasks.BLANK] = 0
    guess[:, tasks.BLANK] = -1e9
    logits = jnp.asarray(np.broadcast_to(np.concatenate([sure, guess]), (7, 60, 9)), jnp.float32)
    assert float(task.cost(logits, jnp.asarray(target))) == pytest.approx(task.memoryless, rel=1e-5)
    assert task.memoryless == pytest.approx(10 * math.log(8) / 60) and task.answers == 10


def test_counting_words_finds_the_entropies_of_the_source():
    """Without a memory: by the word before, counted. With one: no less than the entropy, by the two before, counted."""
    task = tasks.markov(50, seed=1)
    x, target = drawn(task, 20_000)
    pairs = np.zeros((16, 16))
    np.add.at(pairs, (x, target), 1)
    assert conditional(pairs) == pytest.approx(task.memoryless, rel=0.005)
    triples = np.zeros((16, 16, 16))
    np.add.at(triples, (x[:, :-1], x[:, 1:], target[:, 1:]), 1)
    assert (conditional(pairs) + 49 * conditional(triples)) / 50 == pytest.approx(task.least, rel=0.005)
    assert 0 < task.least < task.solved < task.memoryless < math.log(16)


def conditional(counts) -> float:
    """The entropy of the last index given those before, in nats."""
    given = counts / np.maximum(counts.sum(-1, keepdims=True), 1)
    return float(-np.sum(counts * np.log(np.maximum(given, 1e-300))) / counts.sum())


MISTAKES = {
    ("addition", 20): "--task 'addition' is unknown; did you mean 'adding'?",
    ("adding", 1): "--length 1: the task adding wants at least 2: a number to mark in each half",
    ("copy", 20): "--length 20: the task copy wants at least 21: ten symbols, a sign, and ten steps to answer",
    ("markov", 0): "--length 0: the task markov wants at least 2",
}


@pytest.mark.parametrize("given", MISTAKES)
def test_a_mistake_is_one_line(given):
    with pytest.raises(mb.InputError) as error:
        tasks.load(*given)
    assert MISTAKES[given] in str(error.value) and "\n" not in str(error.value)
