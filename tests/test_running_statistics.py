"""The state of a batch norm: flax's running statistics in training, and inference by them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_backprop as mb
from manual_backprop.layers import BatchNorm

LAYER = BatchNorm(eps=1e-3, momentum=0.9)
FLAX = nn.BatchNorm(epsilon=1e-3, momentum=0.9, use_fast_variance=False)
PARAMS = {"scale": jnp.array([1.5, -0.5, 2.0]), "bias": jnp.array([0.5, -1.0, 0.25])}


def batches(n: int = 3):
    """Off centre, and of another size each."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(3 + 2 * rng.standard_normal((4 + i, 2, 3)), jnp.float32) for i in range(n)]


def trained():
    """The state after three batches, and flax's."""
    _, state = LAYER.init(jax.random.key(0), batches()[0])
    statistics = {"mean": jnp.zeros(3), "var": jnp.ones(3)}
    for x in batches():
        _, state, _ = LAYER.forward(PARAMS, state, x)
        variables = {"params": PARAMS, "batch_stats": statistics}
        _, new = FLAX.apply(variables, x, use_running_average=False, mutable=["batch_stats"])
        statistics = new["batch_stats"]
    return state, statistics


def test_running_statistics_are_flaxs():
    state, statistics = trained()
    np.testing.assert_allclose(state["mean"], statistics["mean"], rtol=1e-5)
    np.testing.assert_allclose(state["variance"], statistics["var"], rtol=1e-5)


def test_inference_is_by_the_running_statistics():
    state, statistics = trained()
    x = batches()[0][:1, :1]  # one example alone
    variables = {"params": PARAMS, "batch_stats": statistics}
    np.testing.assert_allclose(
        LAYER.apply(PARAMS, state, x), FLAX.apply(variables, x, use_running_average=True), rtol=1e-5
    )


def test_an_empty_batch_leaves_the_state_as_it_is():
    state, _ = trained()
    y, new, _ = LAYER.forward(PARAMS, state, jnp.zeros((0, 3)))
    assert y.shape == (0, 3)
    jax.tree.map(np.testing.assert_array_equal, new, state)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_state_is_wide_and_stays_so(dtype):
    x = batches()[0].astype(dtype)
    params, state = LAYER.init(jax.random.key(0), x)
    _, new, _ = LAYER.forward(params, state, x)
    assert {leaf.dtype for leaf in jax.tree.leaves((state, new))} == {jnp.dtype("float32")}
    assert LAYER.apply(params, new, x).dtype == dtype


def test_under_repeat_every_layer_has_statistics_of_its_own():
    x = batches()[0]
    layer = mb.Repeat(mb.Residual(LAYER), 3)
    params, state = layer.init(jax.random.key(0), x)
    _, stacked, _ = jax.jit(layer.forward)(params, state, x)
    for i in range(3):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], (params, state))
        y, alone, _ = LAYER.forward(*one, x)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5), stacked, alone)
        x = x + y
