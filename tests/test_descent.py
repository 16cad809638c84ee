"""Updates in the backward pass end where ordinary steps end."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manual_backprop as mb
from manual_backprop.combinators.split import split
from manual_backprop.layers import Apply, Dense
from manual_backprop.models.gpt import Schedule, Size, gpt
from manual_backprop.training.descent import Descent

SIZES = {
    "gpt2": Size(37, 13, 3, 24, 4),
    "modern": Size(37, 13, 3, 24, 4, 2, architecture="modern"),
}
OPTIMIZERS = {"sgd": optax.sgd(0.1), "momentum": optax.sgd(0.1, 0.9), "adamw": optax.adamw(1e-2)}
SCHEDULES = {"everything": Schedule(), "inputs": Schedule("inputs"), "last": Schedule("last"),
             "bfloat16": Schedule("dear", compute="bfloat16")}  # fmt: skip
X = jnp.asarray(np.random.default_rng(0).integers(0, 37, (2, 11)), jnp.int32)


def both(objective, optimizer, params, state, batch, steps: int):
    """The parameters after so many steps: updated in the backward pass, and by ordinary steps."""

    def step(params, optimizer_state):
        _, gradient = mb.value_and_grad(objective)(params, state, batch)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        return optax.apply_updates(params, updates), optimizer_state

    descent = Descent(objective, optimizer)
    weights, optimizer_state = descent.start(params), optimizer.init(params)
    inside, ordinary = jax.jit(descent), jax.jit(step)
    for _ in range(steps):
        (cost, _), weights = inside(weights, state, batch)
        params, optimizer_state = ordinary(params, optimizer_state)
    assert np.isfinite(cost)
    return descent.params(weights), params


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_it_is_the_ordinary_step_bit_for_bit(size, optimizer):
    """Operation by operation: what a compiler fuses, it may round once where it is rounded twice elsewhere."""
    objective = gpt(size)
    params, state = objective.init(jax.random.key(0), (X, X))
    with jax.disable_jit():
        ours, theirs = both(objective, optimizer, params, state, (X, X), 2)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(params), strict=True))


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_compiled_sgd_is_the_ordinary_step(size, schedule):
    objective = gpt(size, schedule)
    params, state = objective.init(jax.random.key(0), (X, X))
    ours, theirs = both(objective, OPTIMIZERS["sgd"], params, state, (X, X), 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8), ours, theirs)


def test_a_parameter_in_two_places_is_updated_once():
    model = mb.Tied(mb.Serial(Dense(5), Apply(mb.ops.tanh()), Dense(5)), (0, "w"), (2, "w"))
    objective = mb.Objective(model, Apply(mb.ops.squared_error()))
    batch = jax.random.normal(jax.random.key(1), (7, 5)), jnp.ones((7, 5))
    params, state = objective.init(jax.random.key(0), batch)
    with jax.disable_jit():
        ours, theirs = both(objective, OPTIMIZERS["adamw"], params, state, batch, 3)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_new_parameters_are_written_over_the_old_ones():
    """No second stack of parameters, and no stack of gradients."""
    block = mb.Residual(mb.Serial(Dense(128), Apply(mb.ops.relu()), Dense(128)))
    objective = mb.Objective(mb.Repeat(block, 16), Apply(mb.ops.squared_error()))
    batch = jnp.ones((4, 128)), jnp.ones((4, 128))
    params, state = objective.init(jax.random.key(0), batch)
    descent = Descent(objective, optax.sgd(0.1))
    compiled = jax.jit(descent, donate_argnums=0).lower(descent.start(params), state, batch).compile()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert compiled.memory_analysis().temp_size_in_bytes < 0.5 * size


@pytest.mark.parametrize(
    "optimizer",
    [optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)), optax.lamb(0.1), optax.adafactor(0.1)],
    ids=["global norm", "trust ratio", "block norm"],
)
def test_an_optimizer_that_mixes_entries_is_refused(optimizer):
    with pytest.raises(mb.InputError, match="depends on other entries, as clipping by the global norm does"):
        Descent(gpt(SIZES["gpt2"]), optimizer)


def test_clipping_by_value_is_not():
    Descent(gpt(SIZES["gpt2"]), optax.chain(optax.clip(1.0), optax.adamw(1e-3)))


def test_serials_of_one_layer_are_walked():
    model = mb.Serial(mb.Serial(Dense(5)), mb.Repeat(mb.Residual(mb.Serial(Dense(5))), 2))
    objective = mb.Objective(model, Apply(mb.ops.squared_error()))
    batch = jax.random.normal(jax.random.key(1), (4, 5)), jnp.ones((4, 5))
    params, state = objective.init(jax.random.key(0), batch)
    ours, theirs = both(objective, optax.sgd(0.1), params, state, batch, 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


def test_what_cannot_be_updated_so_is_one_line():
    chain = mb.Serial(Dense(5), Dense(5), Dense(5))
    twice = mb.Tied(mb.Tied(chain, (0, "w"), (1, "w")), (0, "w"), (2, "w"))
    with pytest.raises(mb.InputError, match="a parameter is tied twice; wants one Tied with all its places"):
        Descent(mb.Objective(twice, Apply(mb.ops.squared_error())), optax.sgd(0.1))
    with pytest.raises(mb.InputError, match="the objective is split, and owes its gradients"):
        Descent(split(mb.Objective(chain, Apply(mb.ops.squared_error()))), optax.sgd(0.1))


@pytest.mark.parametrize("whole", [lambda o: mb.MicroBatches(o, 2), mb.LossScale], ids=["MicroBatches", "LossScale"])
def test_what_needs_the_whole_gradient_is_refused(whole):
    with pytest.raises(mb.InputError, match="knows the gradient only when all of it is there"):
        Descent(whole(gpt(SIZES["gpt2"])), optax.sgd(0.1))
