"""Mutants of a backward pass, and the score of a test over them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_backprop as mb
from cases import OPS
from manual_backprop.testing import Score, check_vjp, mutation_score

CASES = {case.name: case for case in OPS}


def oracle(name: str):
    case = CASES[name]
    return lambda op: check_vjp(op, case.reference, *case.args(), effort="quick", order=1)


def summed(name: str):
    """The test that people write: the gradient of a sum against autodiff's, to a tolerance."""
    case = CASES[name]
    args = case.args()

    def test(op):
        ours = jax.grad(lambda *args: op(*args).sum())(*args)
        theirs = jax.grad(lambda *args: case.reference(*args).sum())(*args)
        np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-2)

    return test


@pytest.mark.parametrize("name", ["tanh", "dense", "embedding", "softmax"])
def test_the_oracle_catches_every_mutant(name):
    score = mutation_score(oracle(name), CASES[name].unit)
    assert isinstance(score, Score) and score.total >= 3
    assert not score.survivors and score.score == 1.0, str(score)


def test_a_weak_test_is_told_what_it_misses():
    score = mutation_score(summed("layer_norm"), CASES["layer_norm"].unit, most=20)
    assert 0 < score.score < 0.9
    survivor = score.survivors[0]
    assert "layer_norm.py:" in str(score) and str(survivor) in str(score)
    assert f"your test catches {len(score.caught)} of {score.total} mutants" in str(score)


def test_a_test_that_looks_at_nothing_catches_nothing():
    x = CASES["tanh"].args()[0]
    score = mutation_score(lambda op: op(x).sum() < 1e9, CASES["tanh"].unit)
    assert score.score == 0.0 and score.total > 5


def tanh(x):
    y = jnp.tanh(x)
    return y, y


def tanh_backward(y, dy):
    return (dy * (1 - y * y),)


def custom():
    function = jax.custom_vjp(lambda x: jnp.tanh(x))
    function.defvjp(tanh, tanh_backward)
    return function


@pytest.mark.parametrize("candidate", [mb.ops.tanh(), mb.ops.tanh, (tanh, tanh_backward), custom()], ids=["op", "constructor", "pair", "custom_vjp"])  # fmt: skip
def test_candidates_of_every_kind(candidate):
    x = CASES["tanh"].args()[0]
    score = mutation_score(lambda c: check_vjp(c, jnp.tanh, x, effort="quick", order=1), candidate, most=6)
    assert score.total and not score.survivors


def test_a_layer():
    layer, x = mb.layers.Dense(3), jnp.asarray(np.random.default_rng(0).standard_normal((7, 5)), jnp.float32)
    params, state = layer.init(jax.random.key(0), x)

    def test(layer):
        reference = lambda p, s, x: x @ p["w"] + p["b"]
        return check_vjp(layer, reference, params, state, x, effort="quick", order=1)

    score = mutation_score(test, layer)
    assert score.total and not score.survivors, str(score)


def test_the_same_seed_draws_the_same_mutants():
    scores = [mutation_score(summed("tanh"), CASES["tanh"].unit, most=4, seed=seed) for seed in (3, 3)]
    assert scores[0] == scores[1]


def nothing(op):
    return True


@pytest.mark.parametrize(
    ("test", "candidate", "message"),
    [
        ("a test", mb.ops.tanh(), "the test is 'a test'; wants a function"),
        (nothing, "tanh", "the candidate is 'tanh'"),
        (lambda op: False, mb.ops.tanh(), "the test fails for tanh.. as it is"),
        (nothing, mb.ops.tanh(), "never calls tanh"),
    ],
)
def test_what_cannot_be_scored_is_one_line(test, candidate, message):
    with pytest.raises(mb.InputError, match=message) as raised:
        mutation_score(test, candidate)
    assert "\n" not in str(raised.value)
