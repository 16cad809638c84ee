"""The laws of the combinators: each is a sentence of the calculus, so it obeys the algebra of that sentence."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_backprop as mb
from cases import BLOCK, random_like
from manual_backprop.layers import Apply, Dense, Identity


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def x_of(width=5, batch=7):
    return jnp.asarray(np.random.default_rng(0).standard_normal((batch, width)))


def start(layer, x, seed=1):
    params, state = layer.init(jax.random.key(seed), x)
    return random_like(params, seed), state


def run(layer, params, state, x, key=None):
    """y, the new state, and dparams, dx for a random dy."""
    y, state, residuals = layer.forward(params, state, x, key)
    return y, state, *layer.backward(params, residuals, random_like(y, 2))


def assert_same(a, b, rtol=1e-13):
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    for left, right in zip(a, b, strict=True):
        np.testing.assert_allclose(left, right, rtol=rtol, atol=rtol * np.abs(right).max())


def assert_same_bits(a, b):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(left, right)


# Two layers to try the general contract with: one that draws random numbers, one that has state.


@dataclass(frozen=True, repr=False)
class Noise(mb.Layer):
    """y = x · m, m a random mask; dx = dy · m."""

    def init(self, key, x):
        return {}, ()

    def apply(self, params, state, x):
        return x

    def forward(self, params, state, x, key=None):
        if key is None:
            raise mb.InputError("Noise: needs a key, got none")
        mask = jax.random.normal(key, x.shape, x.dtype)
        return x * mask, state, mask

    def backward(self, params, residuals, dy):
        return {}, dy * residuals


@dataclass(frozen=True, repr=False)
class Count(mb.Layer):
    """y = x · scale, and a count of the forward passes as state."""

    def init(self, key, x):
        return {"scale": jnp.ones((), x.dtype)}, jnp.zeros((), jnp.int32)

    def apply(self, params, state, x):
        return x * params["scale"]

    def forward(self, params, state, x, key=None):
        return x * params["scale"], state + 1, x

    def backward(self, params, residuals, dy):
        return {"scale": jnp.sum(dy * residuals)}, dy * params["scale"]


NOISY = mb.Serial(Dense(5), Noise(), Count(), Dense(5))


# ── the chain rule ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_serial_is_associative():
    x = x_of()
    f, g, h = Dense(3), Apply(mb.ops.tanh()), Dense(2)
    left, right, flat = mb.Serial(mb.Serial(f, g), h), mb.Serial(f, mb.Serial(g, h)), mb.Serial(f, g, h)
    params, state = start(flat, x)
    p, q, r = params
    y, _, (dp, dq, dr), dx = run(flat, params, state, x)
    for layer, nested, d in ((left, ((p, q), r), ((dp, dq), dr)), (right, (p, (q, r)), (dp, (dq, dr)))):
        assert_same_bits(run(layer, nested, layer.init(jax.random.key(0), x)[1], x), (y, state, d, dx))


def test_serial_of_one_layer_is_that_layer():
    x = x_of()
    params, state = start(Dense(3), x)
    assert_same_bits(run(mb.Serial(Dense(3)), (params,), (state,), x), run(Dense(3), params, state, x))


@pytest.mark.parametrize("layer", [BLOCK, mb.Residual(BLOCK), Count(), NOISY], ids=repr)
def test_repeat_is_serial_of_the_same_layer(layer):
    x, n = x_of(), 4
    repeat, serial = mb.Repeat(layer, n), mb.Serial(*[layer] * n)
    stacked, stacked_state = start(repeat, x)
    params, state = (
        tuple(jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(n)) for tree in (stacked, stacked_state)
    )
    key = jax.random.key(3)
    y, new_state, dparams, dx = run(repeat, stacked, stacked_state, x, key)
    y_serial, state_serial, dparams_serial, dx_serial = run(serial, params, state, x, key)
    restacked = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees) for trees in (state_serial, dparams_serial)]
    assert_same((y, new_state, dparams, dx), (y_serial, *restacked, dx_serial))
    assert_same(repeat.apply(stacked, stacked_state, x), serial.apply(params, state, x))


def test_repeat_starts_every_layer_with_weights_of_its_own():
    params, _ = mb.Repeat(Dense(5), 3).init(jax.random.key(0), x_of())
    assert params["w"].shape == (3, 5, 5)
    assert len(np.unique(np.asarray(params["w"]))) == 75


# ── the sum over paths ───────────────────────────────────────────────────────────────────────────────────────────────


def test_residual_of_zero_is_the_identity():
    x = x_of()
    layer = mb.Residual(mb.Serial(Dense(3), Apply(mb.ops.tanh()), Dense(5)))
    params, state = start(layer, x)
    zero = jax.tree.map(jnp.zeros_like, params)
    y, _, _, dx = run(layer, zero, state, x)
    assert_same_bits((y, dx), (x, random_like(y, 2)))


def test_residual_is_parallel_with_the_identity_added():
    x = x_of()
    residual, parallel = mb.Residual(BLOCK), mb.Parallel(Identity(), BLOCK)
    params, state = start(residual, x)
    y, _, dparams, dx = run(residual, params, state, x)
    (same, f), _, residuals = parallel.forward(({}, params), ((), state), x)
    dy = random_like(y, 2)
    (_, dparams_parallel), dx_parallel = parallel.backward(({}, params), residuals, (dy, dy))
    assert_same((y, dparams, dx), (same + f, dparams_parallel, dx_parallel))


def test_parallel_adds_what_comes_back_on_each_path():
    x = x_of()
    branches = Dense(3), Identity(), Dense(2)
    layer = mb.Parallel(*branches)
    params, state = start(layer, x)
    y, _, residuals = layer.forward(params, state, x)
    dy = random_like(y, 2)
    _, dx = layer.backward(params, residuals, dy)
    paths = [
        branch.backward(p, branch.forward(p, s, x)[2], d)[1]
        for branch, p, s, d in zip(branches, params, state, dy, strict=True)
    ]
    assert_same(dx, sum(paths))


def test_a_tied_weights_gradient_is_the_sum_over_its_places():
    x = x_of()
    free = mb.Serial(Dense(5), Apply(mb.ops.tanh()), Dense(5), Dense(5))
    tied = mb.Tied(free, (0, "w"), (2, "w"), (3, "w"))
    params, state = start(tied, x)
    assert params[2]["w"] is params[3]["w"] is None
    spread = tuple({**p, "w": params[0]["w"]} if p else p for p in params)
    y, _, dparams, dx = run(tied, params, state, x)
    y_free, _, dfree, dx_free = run(free, spread, state, x)
    assert_same_bits((y, dx), (y_free, dx_free))
    assert_same(dparams[0]["w"], dfree[0]["w"] + dfree[2]["w"] + dfree[3]["w"])
    assert dparams[2]["w"] is dparams[3]["w"] is None
    assert_same_bits([d["b"] for d in dparams if d], [d["b"] for d in dfree if d])


def test_whole_layers_can_be_tied():
    """Serial(f, f) with one set of parameters: a network in time, as it were."""
    x = x_of()
    tied = mb.Tied(mb.Serial(Dense(5), Dense(5)), (0,), (1,))
    params, state = start(tied, x)
    assert params[1] is None
    _, _, dparams, _ = run(tied, params, state, x)
    w, b = params[0]["w"], params[0]["b"]
    y, vjp = jax.vjp(lambda w, b: (x @ w + b) @ w + b, w, b)
    assert_same((dparams[0]["w"], dparams[0]["b"]), vjp(random_like(y, 2)))


# ── which values are kept ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("layer", [BLOCK, mb.Repeat(mb.Residual(BLOCK), 3), NOISY], ids=repr)
def test_recomputing_changes_no_bit(layer, jit):
    x, key = x_of(), jax.random.key(3)
    params, state = start(layer, x)
    plain, again = (
        jax.jit(lambda p, s, x, key, layer=layer: run(layer, p, s, x, key))
        if jit
        else lambda *a, layer=layer: run(layer, *a)
        for layer in (layer, mb.Recompute(layer))
    )
    assert_same_bits(again(params, state, x, key), plain(params, state, x, key))


def test_recompute_keeps_its_input_alone():
    x = x_of()
    layer = mb.Recompute(mb.Serial(Dense(11), Apply(mb.ops.gelu()), Dense(5)))
    params, state = start(layer, x)
    _, _, residuals = layer.forward(params, state, x)
    assert [leaf.shape for leaf in jax.tree.leaves(residuals)] == [x.shape]


def temporary(function, *args) -> int:
    return jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes


def test_recompute_takes_less_memory():
    """Compiled, not just meant. Unrolled as much as jax.checkpoint, which an old compiler can undo; under scan always."""
    block = mb.Residual(mb.Serial(Dense(256), Apply(mb.ops.gelu()), Dense(64)))
    x = jnp.ones((512, 64))
    params, state = mb.Serial(*[block] * 8).init(jax.random.key(0), x)

    def ours(block, wrap, params, state):
        objective = mb.Objective(wrap(block), Apply(mb.ops.squared_error()))
        return temporary(mb.value_and_grad(objective), (params, {}), (state, ()), (x, x))

    @jax.checkpoint
    def reference(p, x):
        return x + jax.nn.gelu(x @ p[0]["w"] + p[0]["b"]) @ p[2]["w"] + p[2]["b"]

    def checkpointed(params):
        y = x
        for p in params:
            y = reference(p, y)
        return jnp.mean(jnp.sum((y - x) ** 2, -1))

    serial = ours(mb.Recompute(block), lambda block: mb.Serial(*[block] * 8), params, state)
    assert serial <= 1.05 * temporary(jax.grad(checkpointed), params)

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    plain, again = (ours(b, lambda block: mb.Repeat(block, 8), stacked, state[0]) for b in (block, mb.Recompute(block)))
    assert again < 0.5 * plain


# ── keys and state ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_state_comes_out_of_every_combinator():
    x = x_of()
    layer = mb.Serial(Count(), mb.Residual(Count()), mb.Repeat(Count(), 3), mb.Recompute(Count()))
    params, state = layer.init(jax.random.key(0), x)
    for _ in range(2):
        _, state, _ = layer.forward(params, state, x)
    assert [leaf.tolist() for leaf in jax.tree.leaves(state)] == [2, 2, [2, 2, 2], 2]


def test_every_layer_gets_a_key_of_its_own():
    x = jnp.ones((7, 5))
    (a, b), _, _ = mb.Parallel(Noise(), Noise()).forward(({}, {}), ((), ()), x, jax.random.key(0))
    assert not np.any(np.asarray(a) == np.asarray(b))


def test_a_layer_that_needs_a_key_says_so_by_name():
    layer = mb.Serial(Identity(), mb.Repeat(Noise(), 2))
    params, state = layer.init(jax.random.key(0), x_of())
    with pytest.raises(mb.InputError, match=r"Serial\[1\] .*: Noise: needs a key"):
        layer.forward(params, state, x_of())


# ── the average over examples ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("cost", [mb.ops.squared_error(), mb.ops.softmax_cross_entropy()], ids=repr)
def test_the_gradient_is_the_average_over_the_examples(cost):
    x = x_of()
    target = jnp.arange(7) % 3 if cost.name == "softmax_cross_entropy" else x_of(3)
    objective = mb.Objective(mb.models.mlp(4, 3), Apply(cost))
    params, state = start(objective, (x, target))
    gradient = mb.value_and_grad(objective)
    (whole, _), dparams = gradient(params, state, (x, target))
    (costs, _), each = jax.vmap(lambda x, t: gradient(params, state, (x[None], t[None])))(x, target)
    assert_same((whole, dparams), (costs.mean(), jax.tree.map(lambda leaf: leaf.mean(0), each)))
