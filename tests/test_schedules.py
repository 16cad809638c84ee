"""Schedules of the backward pass leave the gradient as it is: parts of a batch, reversible blocks, other precisions."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manual_backprop as mb
from manual_backprop.combinators.deferred import is_owed
from manual_backprop.combinators.split import settled, split
from manual_backprop.combinators.walk import children, map_leaves
from manual_backprop.layers import Apply, Dense, Dropout, Embedding, LayerNorm, LinearCrossEntropy
from manual_backprop.models.gpt import Schedule, Size, gpt
from manual_backprop.testing import check_vjp
from manual_backprop.training.loop import NonFinite, Step, train

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


SIZES = {
    "gpt2": Size(37, 13, 3, 24, 4),
    "modern": Size(37, 13, 3, 24, 4, 2, architecture="modern"),
}
KEEPS = {keep: Schedule(keep) for keep in ("everything", "dear", "inputs", "last")} | {
    "bfloat16": Schedule("dear", compute="bfloat16")
}
IDS = jnp.asarray(np.random.default_rng(0).integers(0, 37, (4, 11)), jnp.int32)


def halves(objective, batch, which=lambda leaf: True):
    """The gradient in two steps, and how many layers owe theirs."""
    params, state = objective.init(KEY, batch)
    layer = split(objective, which)

    @jax.jit
    def run(params):
        cost, _, residuals = layer.forward(params, state, batch)
        return layer.backward(params, residuals, jnp.ones_like(cost))[0]

    owed = run(params)
    count = sum(map(is_owed, jax.tree.leaves(owed, is_leaf=is_owed)))
    return jax.jit(lambda params, owed: settled(layer, params, owed))(params, owed), count


@pytest.mark.parametrize("schedule", KEEPS.values(), ids=KEEPS)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_gradient_in_two_halves_is_the_gradient(size, schedule):
    objective = gpt(size, schedule)
    later, count = halves(objective, (IDS, IDS))
    _, at_once = gradient(objective, (IDS, IDS))
    assert count > 8
    assert_close(later, at_once, 1e-2 if schedule.compute else 1e-5)


def assert_close(ours, theirs, tolerance: float):
    """Leaf by leaf, in length."""
    distance = lambda a, b: jnp.linalg.norm(jnp.ravel(a - b)) / jnp.linalg.norm(jnp.ravel(b))
    assert max(jax.tree.leaves(jax.tree.map(distance, ours, theirs))) <= tolerance


def test_only_the_chosen_layers_owe_their_gradient():
    later, count = halves(REGRESSION, (X, TARGET), lambda leaf: leaf == Dense(7))
    assert count == 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), later, gradient(REGRESSION, (X, TARGET))[1])
    assert split(REGRESSION, lambda leaf: False) == REGRESSION


def test_the_first_half_has_no_weight_products():
    """What nobody asks for is not computed: of three products a layer, the backward half on the way has one."""
    batch = X, TARGET
    params, state = REGRESSION.init(KEY, batch)
    _, _, residuals = REGRESSION.forward(params, state, batch)

    def products(layer):
        run = jax.jit(lambda params, residuals: layer.backward(params, residuals, jnp.ones(())))
        return run.lower(params, residuals).compile().cost_analysis()["flops"]

    assert products(split(REGRESSION)) < 0.6 * products(REGRESSION)


@pytest.mark.parametrize("schedule", KEEPS.values(), ids=KEEPS)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_one_product_for_the_parts_of_a_batch(size, schedule):
    objective = gpt(size, schedule)
    _, one = gradient(mb.MicroBatches(objective, 2, products="one"), (IDS, IDS))
    _, each = gradient(mb.MicroBatches(objective, 2), (IDS, IDS))
    assert_close(one, each, 1e-2 if schedule.compute else 1e-5)


@pytest.mark.parametrize("products", ["each", "one"])
def test_many_parts_add_up_in_float32(products):
    model = mb.Serial(LayerNorm(), Dense(5), LayerNorm(), Dense(3))
    objective = mb.Objective(mb.Precision(model, "bfloat16"), Apply(mb.ops.squared_error()))
    x, target = (jax.random.normal(jax.random.key(i), (1024, n)) for i, n in enumerate((7, 3)))
    _, whole = gradient(mb.Objective(model, Apply(mb.ops.squared_error())), (x, target))
    _, parts = gradient(mb.MicroBatches(objective, 256, products=products), (x, target))
    assert_close(parts, whole, 0.02)


def test_parts_in_float64_are_exact_and_parts_without_a_token_are_zero():
    with jax.enable_x64(True):
        batch = X.astype(float), TARGET.astype(float)
        params, state = jax.tree.map(lambda p: p.astype(float), REGRESSION.init(KEY, (X, TARGET)))
        run = lambda o: jax.jit(mb.value_and_grad(o))(params, state, batch)[1]
        assert_close(run(mb.MicroBatches(REGRESSION, 3)), run(REGRESSION), 1e-14)
    cost, dparams = gradient(mb.MicroBatches(REGRESSION, 3, lambda batch: 0), (X, TARGET))
    assert cost == 0 and all(not np.any(leaf) for leaf in jax.tree.leaves(dparams))


@pytest.mark.parametrize("products", ["each", "one"])
def test_parts_inside_shard_map(products):
    objective = mb.MicroBatches(REGRESSION, 3, products=products)
    params, state = objective.init(KEY, (X, TARGET))
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    P = jax.sharding.PartitionSpec
    run = lambda params, x, target: jax.lax.pmean(mb.value_and_grad(objective)(params, state, (x, target))[1], "data")
    sharded = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=P()))
    assert_close(sharded(params, X, TARGET), gradient(REGRESSION, (X, TARGET))[1], 1e-5)


def test_what_is_split_is_not_split_again():
    halves = split(REGRESSION)
    assert split(halves) == halves
    inner = mb.MicroBatches(REGRESSION, 2, products="one")
    with pytest.raises(mb.InputError, match="gradients are owed"):
        gradient(mb.MicroBatches(halves, 3), (X, TARGET))
    with pytest.raises(mb.InputError, match="cannot be rescaled yet; wants an objective that is not split"):
        gradient(mb.MicroBatches(mb.LossScale(REGRESSION), 3, products="one"), (X, TARGET))
    with pytest.raises(mb.InputError, match="wants LossScale within MicroBatches"):
        mb.LossScale(inner)
    assert_close(
        gradient(mb.MicroBatches(mb.LossScale(REGRESSION), 2), (X, TARGET))[1],
        gradient(REGRESSION, (X, TARGET))[1],
        1e-5,
    )
    with pytest.raises(mb.InputError, match="split: got 3; wants a layer"):
        split(3)


def test_serials_of_one_layer_split_too():
    objective = mb.Objective(mb.Serial(mb.Serial(Dense(7)), mb.Serial(Dense(3))), Apply(mb.ops.squared_error()))
    later, count = halves(objective, (X, TARGET))
    assert count == 2
    assert_close(later, gradient(objective, (X, TARGET))[1], 1e-6)
    assert_close(gradient(mb.MicroBatches(objective, 2, products="one"), (X, TARGET))[1], later, 1e-5)


def test_micro_batches_of_a_split_objective_are_one_line():
    parts = split(mb.MicroBatches(REGRESSION, 2))
    params, state = parts.init(KEY, (X, TARGET))
    with pytest.raises(mb.InputError, match=r"MicroBatches.*gradients are owed"):
        parts.forward(params, state, (X, TARGET))


def test_a_tied_embedding_adds_its_rows_to_the_heads_gradient_in_place():
    """The table is large beside all else: the gradient is the only other one of its size."""
    rows, ids = 20_000, IDS
    head = LinearCrossEntropy(rows, gradients="backward", chunk=500)
    objective = mb.Tied(mb.Objective(mb.Serial(Embedding(rows, 64), LayerNorm()), head), (0, 0, "table"), (1, "weight"))
    params, state = jax.eval_shape(objective.init, KEY, (ids, ids))
    compiled = jax.jit(mb.value_and_grad(objective)).lower(params, state, (ids, ids)).compile()
    memory = compiled.memory_analysis()
    assert memory.output_size_in_bytes >= rows * 64 * 4
    assert memory.temp_size_in_bytes < 0.2 * rows * 64 * 4


# ── cotangents that float16 would round to nothing ───────────────────────────────────────────────────────────────────


@dataclass(frozen=True, repr=False)
class Small(mb.Stateless):
    def run(self, params, x):
        return 1e-8 * x, ()

    def backward(self, params, residuals, dy):
        return {}, 1e-8 * dy


NETWORK = mb.Serial(Dense(7), Apply(mb.ops.tanh()), Dense(3))
SMALL = mb.Serial(Apply(mb.ops.squared_error()), Small())
HALF = mb.Objective(mb.Precision(NETWORK, "float16"), SMALL)


def norm(tree) -> float:
    return float(jnp.sqrt(sum(jnp.sum(jnp.square(1e8 * leaf)) for leaf in jax.tree.leaves(tree))))


def test_a_scaled_cost_keeps_the_cotangents_that_float16_loses():
    _, exact = gradient(mb.Objective(NETWORK, SMALL), (X, TARGET))
    _, lost = gradient(HALF, (X, TARGET))
    _, kept = gradient(mb.LossScale(HALF), (X, TARGET))
    difference = lambda tree: norm(jax.tree.map(lambda a, b: a - b, tree, exact)) / norm(exact)
    _, in_parts = gradient(mb.MicroBatches(mb.LossScale(HALF), 2), (X, TARGET))
    assert difference(kept) < 0.01 and difference(in_parts) < 0.01
    assert difference(lost) > 0.3


def test_the_scale_halves_when_a_gradient_overflows_and_doubles_after_some_that_do_not():
    objective = mb.LossScale(HALF, initial=2.0**60, patience=3)
    params, state = objective.init(KEY, (X, TARGET))
    step = jax.jit(mb.value_and_grad(objective))
    scales, finite = [], []
    for _ in range(45):
        scales.append(float(state.scale))
        (_, state), dparams = step(params, state, (X, TARGET))
        finite.append(all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(dparams)))
    for i in range(44):
        if not finite[i]:
            assert scales[i + 1] == scales[i] / 2
        else:
            assert scales[i + 1] in (scales[i], 2 * scales[i])
            assert (scales[i + 1] == 2 * scales[i]) == (
                finite[max(0, i - 2) : i + 1] == [True] * 3 and scales[i - 2] == scales[i]
            )
    assert not finite[0] and finite.count(True) > 10 and 2.0**20 < scales[-1] < 2.0**50


def test_steps_with_an_overflown_gradient_are_left_out_and_training_goes_on():
    objective = mb.LossScale(HALF, initial=2.0**60)
    adam = optax.with_extra_args_support(optax.adam(1e-2))
    step = Step(objective, adam, 4, 0, skips=50)
    start = step.start((X, TARGET))
    skipped = []
    for training, metrics in train(step, start, (X, TARGET), 60, 20):
        skipped += metrics.skipped.tolist()
        if len(skipped) == 20:
            jax.tree.map(np.testing.assert_array_equal, training.params, start.params)
    assert skipped == sorted(skipped, reverse=True) and 20 <= sum(skipped) < 50
    assert norm(jax.tree.map(lambda a, b: a - b, training.params, start.params)) > 0
    with pytest.raises(NonFinite, match="the cost or the gradient is not finite"):
        list(train(Step(objective, adam, 4, 0, skips=5), start, (X, TARGET), 60, 20))


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


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_block_in_bfloat16_by_the_oracle(size):
    objective = gpt(size, Schedule("dear", compute="bfloat16"))
    repeat = (objective.layer if isinstance(objective, mb.Tied) else objective).model.layers[2]
    x = jax.random.normal(KEY, (2, 7, size.width))
    params, state = repeat.layer.init(KEY, x)
    report = check_vjp(repeat.layer, None, params, state, x, order=1, effort="quick")
    assert isinstance(repeat.layer, mb.Precision) and report, str(report)
