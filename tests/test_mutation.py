"""Mutants of a backward pass, and the score of a test over them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_backprop as mb
from cases import OPS
from manual_backprop.testing import Score, as_pair, check_vjp, mutation_score
from manual_backprop.testing.mutants import mutated, mutations

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


def kinds(forward, backward, *args):
    pair = as_pair((forward, backward))
    return [(mutation.kind, mutation.operand) for mutation in mutations(pair, args)]


def test_a_mean_is_summed_and_a_mask_dropped_on_either_side():
    x = CASES["tanh"].args()[0]
    mean = kinds(lambda x: (x.mean(), x), lambda x, dy: (jnp.broadcast_to(dy / 35.0, x.shape),), x)
    assert ("replace an operand by one", 1) in mean
    masked = (lambda x: (jnp.where(x > 0, x, 0), x)), lambda x, dy: (jnp.where(x > 0, dy, 0 * x),)
    found = [m for m in mutations(as_pair(masked), (x,)) if m.kind == "drop a mask"]
    y, residuals = masked[0](x)
    kept = [np.asarray(mutated(masked[1], m)(residuals, jnp.ones_like(y))[0]) for m in found]
    assert [k.tolist() for k in kept] == [np.zeros((7, 5)).tolist(), np.ones((7, 5)).tolist()]


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
