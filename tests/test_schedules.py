"""Schedules of the backward pass leave the gradient as it is: parts of a batch, reversible blocks, other precisions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_backprop as mb
from manual_backprop.combinators.walk import children, map_leaves
from manual_backprop.layers import Apply, Dense, Dropout, Embedding, LayerNorm, LinearCrossEntropy
from manual_backprop.testing import check_vjp

KEY = jax.random.key(0)
X, TARGET = jax.random.normal(KEY, (6, 5)), jax.random.normal(jax.random.key(1), (6, 3))
REGRESSION = mb.Objective(mb.Serial(Dense(7), Apply(mb.ops.tanh()), Dense(3)), Apply(mb.ops.squared_error()))


def gradient(objective, batch, key=None):
    params, state = objective.init(KEY, batch)
    (cost, _), dparams = jax.jit(mb.value_and_grad(objective))(params, state, batch, key)
    return cost, dparams


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(n):
    cost, dparams = gradient(mb.MicroBatches(REGRESSION, n), (X, TARGET))
    expected, whole = gradient(REGRESSION, (X, TARGET))
    np.testing.assert_allclose(cost, expected, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), dparams, whole)


def test_parts_with_unequal_numbers_of_tokens_count_by_them():
    model = mb.Serial(Embedding(11, 5), LayerNorm())
    objective = mb.Objective(model, LinearCrossEntropy(11, ignored=-1))
    rng = np.random.default_rng(0)
    ids, labels = (jnp.asarray(rng.integers(0, 11, (4, 7)), jnp.int32) for _ in range(2))
    labels = labels.at[0, 1:].set(-1).at[3, 5:].set(-1)
    count = lambda batch: jnp.sum(batch[1] != -1)
    cost, dparams = gradient(mb.MicroBatches(objective, 4, count), (ids, labels))
    expected, whole = gradient(objective, (ids, labels))
    np.testing.assert_allclose(cost, expected, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), dparams, whole)
    alike, _ = gradient(mb.MicroBatches(objective, 4), (ids, labels))
    assert abs(alike - expected) > 1e-3  # the average of averages is another number


def test_each_part_has_a_key_of_its_own():
    objective = mb.Objective(mb.Serial(Dropout(0.5), Dense(3)), Apply(mb.ops.squared_error()))
    same = jnp.concatenate([X[:3], X[:3]]), jnp.concatenate([TARGET[:3], TARGET[:3]])
    parts = mb.MicroBatches(objective, 2)
    params, state = parts.init(KEY, same)
    cost, _, _ = parts.forward(params, state, same, jax.random.key(1))
    assert (
        abs(cost - objective.forward(params, state, jax.tree.map(lambda x: x[:3], same), jax.random.key(1))[0]) > 1e-6
    )
    np.testing.assert_allclose(parts.apply(params, state, same), objective.apply(params, state, same), rtol=1e-6)


def test_parts_that_do_not_divide_are_one_line():
    with pytest.raises(mb.InputError, match="MicroBatches: a batch of 6 does not divide into 4 parts"):
        mb.MicroBatches(REGRESSION, 4).init(KEY, (X, TARGET))


def test_reversible_blocks_by_the_oracle():
    layer = mb.Reversible(mb.Serial(LayerNorm(), Dense(5)), mb.Serial(Dense(7), Apply(mb.ops.gelu()), Dense(5)), 3)
    x = X, 2 * X[::-1]
    params, state = layer.init(KEY, x)
    report = check_vjp(layer, None, params, state, x, order=1, effort="quick")
    assert report, str(report)


def test_a_wrong_inverse_is_found():
    class Wrong(mb.Reversible):
        def back(self, like, params, state, key, x, dx):
            return super().back(like, params, state, key, (x[0], 1.01 * x[1]), dx)

    layer = Wrong(mb.Serial(Dense(5), Apply(mb.ops.tanh())), mb.Serial(Dense(5), Apply(mb.ops.tanh())), 2)
    params, state = layer.init(KEY, (X, X))
    assert not check_vjp(layer, None, params, state, (X, X), order=1, effort="quick")


@pytest.mark.parametrize("depth", [6, 48])
def test_the_memory_of_reversible_blocks_is_constant_in_depth(depth):
    branch = mb.Serial(Dense(64), Apply(mb.ops.tanh()))

    def temporary(depth):
        objective = mb.Objective(
            mb.Serial(mb.Reversible(branch, branch, depth), Apply(mb.ops.add())), Apply(mb.ops.squared_error())
        )
        batch = (jnp.ones((512, 64)), jnp.ones((512, 64))), jnp.ones((512, 64))
        params, state = objective.init(KEY, batch)
        compiled = jax.jit(mb.value_and_grad(objective)).lower(params, state, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(depth) <= 1.1 * temporary(6)


@pytest.mark.parametrize("streams", [X, (X,), (X, X, X)], ids=["one array", "one", "three"])
def test_other_than_two_streams_are_one_line(streams):
    layer = mb.Reversible(Dense(5), Dense(5))
    with pytest.raises(mb.InputError, match="wants a pair of streams"):
        layer.init(KEY, streams)


@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
def test_precision_rounds_what_goes_in_and_keeps_what_is_added_up(compute):
    layer = mb.Precision(mb.Serial(LayerNorm(), Dense(3)), compute)
    params, state = layer.init(KEY, X)
    y, _, residuals = layer.forward(params, state, X)
    dparams, dx = layer.backward(params, residuals, y)
    assert y.dtype == compute
    assert {leaf.dtype for leaf in jax.tree.leaves((params, dparams, dx))} == {jnp.dtype("float32")}
    rounded = lambda tree: jax.tree.map(lambda leaf: leaf.astype(compute), tree)
    expected, _, kept = layer.layer.forward(rounded(params), state, rounded(X))
    np.testing.assert_array_equal(y, expected)
    jax.tree.map(np.testing.assert_array_equal, dparams, layer.layer.backward(rounded(params), kept, y)[0])


def test_a_model_is_walked_by_its_structure():
    model = mb.Serial(mb.Residual(Dense(5)), mb.Repeat(mb.Recompute(mb.Serial(LayerNorm(), Dense(5))), 2))
    seen = []
    same = map_leaves(model, lambda layer, at: (seen.append((at, type(layer).__name__)), layer)[1])
    assert same == model and len(children(model)) == 2
    assert seen == [((0,), "Dense"), ((1, 0), "LayerNorm"), ((1, 1), "Dense")]
