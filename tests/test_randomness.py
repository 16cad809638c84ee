"""Layers and ops that draw: by the key alone, as often as they say, and not in inference."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_backprop as mb
from manual_backprop.layers import Apply, Dense, Dropout, StochasticDepth

KEY = jax.random.key(7)
X = jnp.asarray(np.random.default_rng(0).standard_normal((11, 7, 5)), jnp.float32)
OTHER = jax.random.key(8)


@pytest.mark.parametrize("shared", [(), (1,), (1, 2)])
def test_dropout_is_flaxs_with_the_same_key(shared):
    op = mb.ops.dropout(keep_probability=0.75, broadcast_axes=shared)
    flax = nn.Dropout(rate=0.25, broadcast_dims=shared, deterministic=False)
    np.testing.assert_array_equal(op(X, KEY), flax.apply({}, X, rng=KEY))


@pytest.mark.parametrize("op", [mb.ops.dropout(keep_probability=0.3), mb.ops.stochastic_depth(keep_probability=0.3)])
def test_the_draws_depend_on_the_key_alone(op):
    y = op(X, KEY)
    np.testing.assert_array_equal(op(X, KEY), y)
    assert not np.array_equal(op(X, OTHER), y)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(op(X.astype(jnp.float64), KEY) == 0, y == 0)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("rule", [mb.ops.dropout, mb.ops.stochastic_depth])
def test_as_many_are_kept_as_it_says_and_the_mean_stays(rule, keep):
    n = 40_000
    y = rule(keep_probability=keep)(jnp.ones((n, 1)), KEY)
    deviation = np.sqrt(keep * (1 - keep) / n)
    np.testing.assert_allclose(np.mean(y != 0), keep, atol=4 * deviation)
    np.testing.assert_allclose(np.mean(y), 1, atol=4 * deviation / keep)


def test_stochastic_depth_keeps_or_drops_whole_examples():
    y = mb.ops.stochastic_depth(keep_probability=0.5)(X, KEY)
    kept = np.asarray(jnp.any(y != 0, (1, 2)))
    assert 0 < kept.sum() < len(kept)
    np.testing.assert_array_equal(y, np.where(kept[:, None, None], 2 * X, 0))


@pytest.mark.parametrize("layer", [Dropout(0.5), StochasticDepth(0.5)])
def test_inference_is_the_identity_and_needs_no_key(layer):
    assert layer.init(KEY, X) == ({}, ())
    assert layer.apply({}, (), X) is X
    model = mb.Residual(mb.Serial(Apply(mb.ops.relu()), layer))
    np.testing.assert_array_equal(model.apply(*model.init(KEY, X), X), X + jax.nn.relu(X))


def test_two_layers_of_one_model_draw_apart():
    model = mb.Parallel(Dropout(0.5), Dropout(0.5))
    (a, b), _, _ = model.forward(((), ()), ((), ()), X, KEY)
    assert not np.array_equal(a, b)


def test_the_gradient_of_a_model_is_that_of_what_it_drew():
    """dx of a repeated, recomputed block: autodiff of the forward pass with the same key."""
    model = mb.Repeat(mb.Recompute(mb.Residual(mb.Serial(Dense(5), Dropout(0.6), StochasticDepth(0.7)))), 3)
    params, state = model.init(KEY, X)
    y, _, residuals = model.forward(params, state, X, OTHER)
    theirs, pull = jax.vjp(lambda p, x: model.forward(p, state, x, OTHER)[0], params, X)
    dy = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
    np.testing.assert_allclose(y, theirs, rtol=1e-4, atol=1e-5)
    for ours, true in zip(
        jax.tree.leaves(model.backward(params, residuals, dy)), jax.tree.leaves(pull(dy)), strict=True
    ):
        np.testing.assert_allclose(ours, true, rtol=1e-4, atol=1e-5)
