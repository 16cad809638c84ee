"""Transformers against flax: the same parameters, every gradient in float64, ten steps; and what every schedule leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manual_backprop as mb
from cases import random_like
from manual_backprop import ops
from manual_backprop.models.gpt import SIZES, Schedule, Size, gpt, logits
from peers import flax_gpt

CHUNKED = ops.chunked_attention(causal=True, chunk=4)
SCHEDULES = {
    "everything": Schedule(),
    "dear": Schedule("dear"),
    "inputs": Schedule("inputs"),
    "dear, chunks of tokens": Schedule("dear", CHUNKED, chunk=5),
    "inputs, chunks of classes": Schedule("inputs", CHUNKED, "backward", 8),
}
ARCHITECTURES = {
    "gpt2": Size(37, 13, 3, 24, 4),
    "modern": Size(37, 13, 3, 24, 4, 2, architecture="modern"),
}


@pytest.fixture(params=ARCHITECTURES)
def size(request) -> Size:
    return ARCHITECTURES[request.param]


def batch_of(size: Size, length: int = 11, seed: int = 0):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.integers(0, size.vocabulary, (2, length)), jnp.int32) for _ in range(2))


def drawn(objective, batch):
    """Parameters of numbers that hide nothing, in float64 where that is on."""
    params, state = objective.init(jax.random.key(0), batch)
    noise = random_like(params, 1)
    dtype = jnp.zeros(()).dtype
    return jax.tree.map(lambda p, e: p.astype(dtype) + 0.1 * e.astype(dtype), params, noise), state


def largest_difference(ours, theirs) -> float:
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in pairs)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_every_gradient_is_flaxs(size, schedule):
    with jax.enable_x64(True):
        batch = batch_of(size)
        objective = gpt(size, schedule)
        params, state = drawn(objective, batch)
        (cost, _), gradient = jax.jit(mb.value_and_grad(objective))(params, state, batch)
        peer = flax_gpt.cost(flax_gpt.GPT(size))
        expected, theirs = jax.jit(jax.value_and_grad(peer))(flax_gpt.to_flax(size, params), *batch)
        assert abs(cost - expected) <= 1e-13 * expected
        assert largest_difference(flax_gpt.to_flax(size, gradient), theirs) <= 1e-11


def test_ten_steps_end_where_flaxs_do(size):
    with jax.enable_x64(True):
        batch, optimizer = batch_of(size), optax.adamw(1e-2)
        objective = gpt(size, Schedule("dear"))
        ours, state = drawn(objective, batch)
        theirs = flax_gpt.to_flax(size, ours)
        peer = flax_gpt.cost(flax_gpt.GPT(size))

        def step(gradient):
            def run(params, optimizer_state):
                updates, optimizer_state = optimizer.update(gradient(params), optimizer_state, params)
                return optax.apply_updates(params, updates), optimizer_state

            return jax.jit(run)

        our_step = step(lambda p: mb.value_and_grad(objective)(p, state, batch)[1])
        their_step = step(lambda p: jax.grad(peer)(p, *batch))
        our_state, their_state = optimizer.init(ours), optimizer.init(theirs)
        for _ in range(10):
            ours, our_state = our_step(ours, our_state)
            theirs, their_state = their_step(theirs, their_state)
        assert largest_difference(flax_gpt.to_flax(size, ours), theirs) <= 1e-8  # AdamW divides by small numbers


def test_logits_are_flaxs(size):
    batch = batch_of(size)
    objective = gpt(size)
    params, state = drawn(objective, batch)
    expected = flax_gpt.GPT(size).apply(flax_gpt.to_flax(size, params), batch[0])
    np.testing.assert_allclose(logits(objective, params, state, batch[0]), expected, rtol=1e-4, atol=1e-4)


def test_in_bfloat16_the_error_is_no_larger_than_autodiffs(size):
    """Root of the mean square over all entries and sixteen batches: of one batch it is a matter of luck."""
    objective = gpt(size, Schedule("dear", compute="bfloat16"))
    params, state = drawn(objective, batch_of(size))
    variables = flax_gpt.to_flax(size, params)
    by_hand = jax.jit(mb.value_and_grad(objective))
    theirs, truth = (jax.jit(jax.grad(flax_gpt.cost(flax_gpt.GPT(size, dtype=d)))) for d in (jnp.bfloat16, None))
    squares = np.zeros(2)
    for seed in range(16):
        batch = batch_of(size, seed=seed)
        ours = flax_gpt.to_flax(size, by_hand(params, state, batch)[1])
        assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {jnp.dtype("float32")}
        expected = jax.tree.leaves(truth(variables, *batch))
        for i, gradient in enumerate((ours, theirs(variables, *batch))):
            pairs = zip(jax.tree.leaves(gradient), expected, strict=True)
            squares[i] += sum(float(jnp.sum((a - b) ** 2)) for a, b in pairs)
    assert np.sqrt(squares[0] / squares[1]) <= 1.2


def test_reversible_blocks_have_the_gradient_of_their_forward_pass(size):
    with jax.enable_x64(True):
        batch = batch_of(size)
        objective = gpt(size, Schedule("last"))
        params, state = drawn(objective, batch)
        _, ours = jax.jit(mb.value_and_grad(objective))(params, state, batch)
        theirs = jax.jit(jax.grad(lambda p: objective.apply(p, state, batch)))(params)
        assert largest_difference(ours, theirs) <= 1e-10


@pytest.mark.parametrize("name", [name for name in SIZES if "b" not in name])
def test_named_sizes_count_the_parameters_that_they_are_named_for(name):
    size = SIZES[name]
    ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    params, _ = jax.eval_shape(gpt(size).init, jax.random.key(0), (ids, ids))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    published = {"gpt2-124m": 124_439_808, "gpt2-355m": 354_823_168, "gpt2-774m": 774_030_080}
    assert count == published.get(name, count)


def test_gpt2_xl_has_the_published_number_of_parameters():
    ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    params, _ = jax.eval_shape(gpt("gpt2-1.5b").init, jax.random.key(0), (ids, ids))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 1_557_611_200


MISTAKES = {
    "an unknown size": (lambda: gpt("gpt2-125m"), "gpt: size 'gpt2-125m' is unknown; did you mean 'gpt2-124m'?"),
    "heads that do not divide": (lambda: Size(37, 13, 3, 24, 5), "gpt: 5 heads do not divide the width 24"),
    "key heads that do not divide": (
        lambda: Size(37, 13, 3, 24, 4, 3, architecture="modern"),
        "gpt: 3 key heads do not divide the 4 heads",
    ),
    "an unknown schedule": (lambda: Schedule("all"), "gpt: keep is 'all'; wants one of everything, dear, inputs, last"),
    "an unknown dtype": (
        lambda: gpt("tiny", Schedule(compute="fp8")),
        "Precision: compute is 'fp8'; wants one of bfloat16, float16, float32, float64",
    ),
    "a sequence beyond the positions": (
        lambda: gpt("tiny").init(jax.random.key(0), (jnp.zeros((1, 65), int), jnp.zeros((1, 65), int))),
        "x has 65 positions, the table 64 rows; wants no more than it has",
    ),
    "a token beyond the vocabulary": (
        lambda: run_tiny(jnp.full((1, 8), 256)),
        "embedding: id 256 is outside 0 … 255, the 256 rows of the table",
    ),
}


def run_tiny(ids):
    objective = gpt("tiny")
    params, state = objective.init(jax.random.key(0), (ids % 256, ids % 256))
    return mb.value_and_grad(objective)(params, state, (ids, ids % 256))


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(mistake):
    run, message = mistake
    with pytest.raises(mb.InputError) as error:
        run()
    assert message in str(error.value) and "\n" not in str(error.value)
