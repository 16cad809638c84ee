"""The order in which stages of a pipeline work: its laws, its bubble, its picture."""

import re
from itertools import product

import numpy as np
import pytest

import manual_backprop as mb
from manual_backprop.training.timetable import SCHEDULES, places, timetable


def tables(name):
    return [(S, M, timetable(name, S, M)) for S, M in product(range(1, 8), range(1, 18))]


@pytest.mark.parametrize("name", SCHEDULES)
def test_everything_comes_after_what_it_is_made_of(name):
    for S, M, (forward, backward, weights) in tables(name):
        assert (forward[1:] > forward[:-1]).all()
        assert (backward[:-1] > backward[1:]).all()
        assert (backward[-1] >= forward[-1]).all() if SCHEDULES[name].pairs else (backward[-1] > forward[-1]).all()
        assert weights is None or (weights > backward).all()
        for when in (forward, backward, weights):
            if when is not None:
                assert when.shape == (S, M) and when.min() >= 0
                assert (np.diff(when) > 0).all()  # in order: so a ring holds them


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_stage_does_one_thing_in_a_tick_or_a_pair(name):
    for S, _, table in tables(name):
        busy = [table.at_work(when) >= 0 for when in table if when is not None]
        assert (sum(busy) <= 1 + SCHEDULES[name].pairs).all()
        assert sum(busy).any(1).all()  # no tick is empty
        for when in table:
            if when is not None:
                found = table.at_work(when)
                assert all(found[when[s, i], s] == i for s, i in np.ndindex(when.shape))
                assert all((found[:, s] >= 0).sum() == when.shape[1] for s in range(S))


@pytest.mark.parametrize(("name", "most"), [("1f1b", 0), ("gpipe", None), ("pairs", 1), ("zero-bubble", 0)])
def test_as_many_micro_batches_are_on_their_way_as_may_be(name, most):
    for S, M, table in tables(name):
        for s in range(S):
            kept = places(table.forward[s : s + 1], table.backward[s : s + 1])
            assert kept == min(M, S - s + most * (S - s - 1)) if most is not None else kept == M
        if table.weights is not None:
            assert places(table.forward, table.weights) <= S


def test_the_bubble_is_that_of_the_papers():
    for name in ("1f1b", "gpipe"):
        for S, M, table in tables(name):
            assert table.ticks == 2 * (M + S - 1)
            np.testing.assert_allclose(table.waiting, (S - 1) / (M + S - 1), atol=1e-12)
    for S, M, table in tables("zero-bubble"):
        if M >= S:
            assert table.ticks == 3 * M + S - 1
            np.testing.assert_allclose(table.waiting, (S - 1) / (3 * M + S - 1), atol=1e-12)
    assert all(table.ticks == M + 2 * S - 2 for S, M, table in tables("pairs"))


def test_a_tick_lasts_as_long_as_its_longest_stage():
    for S, M in product(range(1, 8), range(1, 18)):
        length = {name: timetable(name, S, M).length for name in SCHEDULES}
        ideal = (M + S - 1) * (2 + 3 + 5)
        assert length["gpipe"](2, 3, 5) == length["pairs"](2, 3, 5) == ideal
        assert length["1f1b"](2, 3, 5) == ideal if S == 1 else length["1f1b"](2, 3, 5) >= ideal
        assert length["1f1b"](2, 2, 0) == 4 * (M + S - 1)  # y as long as dx and dw
    assert timetable("1f1b", 4, 8).length() == 40 and timetable("zero-bubble", 4, 8).length() == 27
    np.testing.assert_allclose(timetable("gpipe", 4, 8).idle(2, 3, 5), 3 / 11)


def test_a_table_is_a_picture():
    assert str(timetable("1f1b", 2, 3)).splitlines() == [
        "stage 0  f0 f1  . b0 f2 b1  . b2",
        "stage 1   . f0 b0 f1 b1 f2 b2  .",
    ]
    assert str(timetable("pairs", 2, 3)).splitlines() == [
        "stage 0    f0   f1 f2b0   b1   b2",
        "stage 1     . f0b0 f1b1 f2b2    .",
    ]
    assert str(timetable("zero-bubble", 2, 2)).splitlines() == [
        "stage 0  f0 f1  . b0 w0 b1 w1",
        "stage 1   . f0 b0 f1 b1 w0 w1",
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: timetable("gpip", 2, 2), "pipeline: schedule 'gpip' is unknown; did you mean 'gpipe'?"),
        (lambda: timetable("gpipe", 0, 2), "pipeline: stages is 0; wants a whole number"),
        (lambda: timetable("gpipe", 2, 1.5), "pipeline: micro_batches is 1.5; wants a whole number"),
    ],
)
def test_a_table_that_there_is_not_is_one_line(make, message):
    with pytest.raises(mb.InputError, match=re.escape(message)):
        make()
