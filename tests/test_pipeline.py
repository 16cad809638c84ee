"""Pipelines: the gradients of one device, what is kept and what is sent, and bad input."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import manual_backprop as mb
from manual_backprop import ops
from manual_backprop.inspection.collectives import sent
from manual_backprop.layers import Apply, BatchNorm, Dense, Dropout
from manual_backprop.models.gpt import Schedule, Size, gpt
from manual_backprop.testing.compiled import quickly
from manual_backprop.training import sharding
from manual_backprop.training.loop import Step
from manual_backprop.training.pipeline import Pipeline
from manual_backprop.training.sharding import axes, mesh_of
from manual_backprop.training.timetable import SCHEDULES, timetable

SIZES = {
    "gpt2": Size(32, 8, 4, 8, 2),  # the head is tied to the embedding
    "modern": Size(32, 8, 4, 8, 2, 1, hidden=11, architecture="modern"),
}
SCHEDULE = Schedule("everything", chunk=16)

# ── the gradients ────────────────────────────────────────────────────────────────────────────────────────────────────


def batch_of(size: Size, n: int):
    ids = jax.random.randint(jax.random.key(1), (n, size.length), 0, size.vocabulary)
    return ids, jnp.roll(ids, -1, 1)


def wide(tree):
    return jax.tree.map(lambda leaf: leaf.astype("float64") if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)


def assert_close(a, b, tolerance):
    """Beside the largest entry; in dtypes, too; on every device."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        y = np.asarray(y)
        for shard in x.addressable_shards:
            there = y[shard.index]
            np.testing.assert_allclose(shard.data, there, rtol=0, atol=tolerance * np.abs(y).max() + 1e-300)


KNOWN = {}


def alone(objective, batch, key=None):
    """Parameters, state and batch in float64; cost and gradient on one device, computed once."""
    name = repr((objective, jax.tree.map(lambda leaf: leaf.shape, batch)))
    if name not in KNOWN:
        params, state = quickly(objective.init)(jax.random.key(0), batch)
        params, batch = wide((params, batch))
        KNOWN[name] = params, state, batch, *quickly(mb.value_and_grad(objective))(params, state, batch, key)
    return KNOWN[name]


def assert_same_gradient(objective, pipeline, batch, key=None):
    """As the objective's, cost and gradient to the rounding of float64."""
    with jax.enable_x64(True):
        params, state, batch, (cost, _), gradient = alone(objective, batch, key)
        (cost_there, state_there), there = quickly(mb.value_and_grad(pipeline))(params, state, batch, key)
        assert_close((cost_there, there), (cost, gradient), 1e-12)
        assert state_there == state


CHOICES = [
    ("gpt2", "stage=4", 8, "1f1b"),
    ("gpt2", "data=2,stage=4", 4, "1f1b"),
    ("gpt2", "stage=2", 4, "gpipe"),
    ("gpt2", "fsdp=2,stage=2,data=2", 4, "zero-bubble"),
    ("modern", "stage=2", 8, "1f1b"),
    ("modern", "stage=4", 8, "zero-bubble"),
    ("modern", "stage=4", 16, "pairs"),
    ("modern", "stage=1", 4, "1f1b"),
]


@pytest.mark.parametrize(("architecture", "text", "M", "name"), CHOICES)
def test_the_gradient_is_that_of_one_device(architecture, text, M, name):
    size = SIZES[architecture]
    objective = gpt(size, SCHEDULE)
    assert_same_gradient(objective, Pipeline(objective, mesh_of(axes(text)), M, name), batch_of(size, 16))


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("architecture", SIZES)
@pytest.mark.parametrize(
    ("text", "M"),
    [("stage=2", 4), ("stage=2", 8), ("stage=4", 4), ("stage=4", 8), ("data=2,stage=4", 4), ("stage=4", 1)],
)
def test_all_schedules_on_other_meshes(text, M, architecture, name):
    size = SIZES[architecture]
    objective = gpt(size, SCHEDULE)
    assert_same_gradient(objective, Pipeline(objective, mesh_of(axes(text)), M, name), batch_of(size, 16))


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("architecture", SIZES)
@pytest.mark.parametrize("keep", ["dear", "inputs"])
def test_whatever_a_block_keeps(keep, architecture, name):
    size = SIZES[architecture]
    objective = gpt(size, replace(SCHEDULE, keep=keep, gradients="backward"))
    assert_same_gradient(objective, Pipeline(objective, mesh_of(axes("stage=2")), 4, name), batch_of(size, 16))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["1f1b", "zero-bubble"])
def test_in_bfloat16_the_gradient_is_as_near_as_that_of_micro_batches(name):
    size = SIZES["gpt2"]
    batch, half = batch_of(size, 16), gpt(size, replace(SCHEDULE, compute="bfloat16"))
    params, state = quickly(half.init)(jax.random.key(0), batch)
    pipeline = Pipeline(half, mesh_of(axes("stage=4")), 8, name)
    exact, one, there = (
        quickly(mb.value_and_grad(each))(params, state, batch)[1]
        for each in (gpt(size, SCHEDULE), mb.MicroBatches(half, 8), pipeline)
    )
    far = lambda gradient: float(optax.tree.norm(jax.tree.map(jnp.subtract, jax.device_get(gradient), exact)))
    assert 0 < far(there) < 1.05 * far(one)


def dense_layers(n: int, *layers, width=5):
    return mb.Objective(
        mb.Serial(mb.Repeat(mb.Residual(mb.Serial(Dense(width), Apply(ops.gelu()))), n), *layers),
        Apply(ops.softmax_cross_entropy()),
    )


def vectors(n: int, width=5):
    return jax.random.normal(jax.random.key(2), (n, width)), jnp.arange(n) % 3


@pytest.mark.parametrize("name", ["1f1b", "zero-bubble"])
@pytest.mark.parametrize(
    "objective",
    [
        dense_layers(8),  # nothing before the stages
        dense_layers(8, mb.Serial(Dense(7), Apply(ops.relu())), Dense(3)),
        mb.Objective(
            mb.Serial(mb.Serial(Dense(6), mb.Repeat(mb.Residual(Dense(6)), 4)), Dense(3)),  # a Serial within
            Apply(ops.softmax_cross_entropy()),
        ),
    ],
    ids=["alone", "before", "within"],
)
def test_other_models_too(objective, name):
    assert_same_gradient(objective, Pipeline(objective, mesh_of(axes("stage=4")), 3, name), vectors(6))


def test_a_parameter_tied_within_the_stages_and_one_beside_them():
    both = mb.Serial(Dense(5), Dense(5))
    objective = mb.Objective(mb.Serial(Dense(5), mb.Repeat(both, 2), Dense(5)), Apply(ops.softmax_cross_entropy()))
    objective = mb.Tied(mb.Tied(objective, (0, 1, 0, "w"), (0, 1, 1, "w")), (0, 0, "w"), (0, 2, "w"))
    assert_same_gradient(objective, Pipeline(objective, mesh_of(axes("stage=2")), 2), vectors(4))


@pytest.mark.parametrize(("text", "M", "name"), [("stage=2", 4, "1f1b"), ("data=2,stage=2", 2, "zero-bubble")])
def test_the_draws_are_those_of_one_device(text, M, name):
    block = mb.Residual(mb.Serial(Dense(5), Dropout(0.7)))
    cost = Apply(ops.softmax_cross_entropy())
    objective = mb.Objective(mb.Serial(Dropout(0.8), mb.Repeat(block, 4), Dropout(0.6)), cost)
    pipeline = Pipeline(objective, mesh_of(axes(text)), M, name)
    assert pipeline.on_one_device == mb.MicroBatches(objective, 4)
    assert_same_gradient(pipeline.on_one_device, pipeline, vectors(8), jax.random.key(3))


def test_evaluation_costs_the_same():
    size = SIZES["gpt2"]
    objective = gpt(size, SCHEDULE)
    pipeline = Pipeline(objective, mesh_of(axes("data=2,stage=4")), 4)
    with jax.enable_x64(True):
        params, state, batch, (cost, _), _ = alone(objective, batch_of(size, 16))
        assert_close(quickly(pipeline.apply)(params, state, batch), cost, 1e-12)


def counted(part):
    return jnp.sum(part[1] != -1)


def test_micro_batches_with_few_valid_labels_count_less():
    size = SIZES["modern"]
    ids, labels = batch_of(size, 8)
    labels = labels.at[1:].set(-1).at[5, :3].set(7)
    objective = gpt(size, SCHEDULE, ignored=-1)
    mesh = mesh_of(axes("data=2,stage=2"))
    assert_same_gradient(objective, Pipeline(objective, mesh, 2, count=counted), (ids, labels))


def test_twenty_steps_end_where_those_of_one_device_do():
    size = SIZES["gpt2"]
    objective, mesh = gpt(size, SCHEDULE), mesh_of(axes("data=2,stage=4"))
    ids = jax.random.randint(jax.random.key(1), (64, size.length), 0, size.vocabulary)
    data = ids, ids
    costs = []
    for each in (objective, Pipeline(objective, mesh, 4)):
        step = Step(each, optax.with_extra_args_support(optax.adamw(1e-2)), 16, 0)
        training = quickly(step.start)(data)
        if each is not objective:
            specs = sharding.of_params(each, training.params, mesh)
            there = sharding.placed(sharding.of_mirrors(training, training.params, specs), mesh)
            training = jax.device_put(training, there)
        _, metrics = quickly(
            lambda training, data, step=step: jax.lax.scan(lambda t, _: step(t, data), training, length=20)
        )(training, data)
        costs.append(metrics.cost)
    np.testing.assert_allclose(costs[1], costs[0], rtol=2e-5)
    assert costs[0][-1] < 0.9 * costs[0][0]


# ── what is kept, and what is sent ───────────────────────────────────────────────────────────────────────────────────


def compiled(objective, mesh, M, name, batch):
    params, state = jax.eval_shape(objective.init, jax.random.key(0), batch)
    pipeline = Pipeline(objective, mesh, M, name)
    there = sharding.placed(sharding.of_params(pipeline, params, mesh), mesh)
    params = jax.tree.map(lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at), params, there)
    step = jax.jit(mb.value_and_grad(pipeline), out_shardings=(None, there))
    return step.lower(params, state, batch).compile()


def test_what_1f1b_keeps_does_not_grow_with_the_batch():
    objective, mesh, n, width = dense_layers(8, width=32), mesh_of(axes("stage=4")), 64, 32
    memory = lambda name, M: compiled(objective, mesh, M, name, vectors(n * M, width)).memory_analysis()
    temp = {M: {name: memory(name, M).temp_size_in_bytes for name in ("1f1b", "gpipe")} for M in (8, 16)}
    activation = 4 * n * width  # of a micro-batch: a layer keeps x and z, the last stage y
    assert temp[16]["1f1b"] - temp[8]["1f1b"] < activation
    assert temp[16]["gpipe"] - temp[8]["gpipe"] >= 8 * 4 * activation
    assert temp[16]["gpipe"] - temp[16]["1f1b"] >= (16 - 4) * 4 * activation


def test_devices_send_activations_once_a_tick_and_gradients_once():
    size, mesh = SIZES["modern"], mesh_of(axes("stage=4"))
    objective = gpt(size, SCHEDULE)
    found = sent(compiled(objective, mesh, 6, "1f1b", batch_of(size, 6)).as_text())
    activation, ticks = 4 * size.length * size.width, timetable("1f1b", 4, 6).ticks
    assert found["collective-permute"] == 2 * ticks * activation
    params, _ = jax.eval_shape(objective.init, jax.random.key(0), batch_of(size, 6))
    (embedding, positions, _, norm), head = params
    held = sum(4 * leaf.size for leaf in jax.tree.leaves((embedding, positions, norm, head)))
    assert set(found) == {"collective-permute", "all-reduce"}
    assert 2 * 3 / 4 * held <= found["all-reduce"] < 1.01 * 2 * 3 / 4 * held + 100


def test_a_stage_has_its_own_layers():
    size, mesh = SIZES["gpt2"], mesh_of(axes("data=2,stage=4"))
    objective = gpt(size, SCHEDULE)
    params, _ = jax.eval_shape(objective.init, jax.random.key(0), batch_of(size, 8))
    for each in (objective, Pipeline(objective, mesh, 2)):
        specs = sharding.of_params(each, params, mesh)
        (embedding, positions, blocks, norm), head = specs
        assert {spec[0] for spec in jax.tree.leaves(blocks)} == {"stage"}
        assert all(set(spec[1:]) == {None} for spec in jax.tree.leaves(blocks))
        assert {name for spec in jax.tree.leaves((embedding, positions, norm, head)) for name in spec} == {None}
    specs, _ = sharding.of_params(dense_layers(6), {"w": jnp.zeros((6, 5, 5)), "b": jnp.zeros((6, 5))}, mesh), None
    assert set(jax.tree.leaves(specs)) == {PartitionSpec(None, None, None), PartitionSpec(None, None)}


# ── bad input ────────────────────────────────────────────────────────────────────────────────────────────────────────

MESH = "data=2,stage=4"
OBJECTIVE = dense_layers(8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pipeline(dense_layers(6), mesh_of(axes(MESH)), 2), "Pipeline: 4 stages do not divide the 6 layers of Repeat"),
        (
            lambda: Pipeline(OBJECTIVE, mesh_of(axes("data=8")), 2),
            "Pipeline: the mesh is of data; wants stage, and at most data and fsdp beside",
        ),
        (lambda: Pipeline(OBJECTIVE, mesh_of(axes("stage=2,model=2")), 2), "Pipeline: the mesh is of stage, model; wants"),
        (lambda: Pipeline(OBJECTIVE, "stage=4", 2), "Pipeline: the mesh is of 'stage=4'; wants stage"),
        (lambda: Pipeline(OBJECTIVE, mesh_of(axes(MESH)), 0), "Pipeline: micro_batches is 0; wants a whole number"),
        (
            lambda: Pipeline(OBJECTIVE, mesh_of(axes(MESH)), 2, "1f2b"),
            "Pipeline: schedule '1f2b' is unknown; did you mean '1f1b'? known: 1f1b, gpipe, pairs, zero-bubble",
        ),
        (lambda: Pipeline(OBJECTIVE, mesh_of(axes(MESH)), 2, count=3), "Pipeline: count is 3; wants a function"),
        (
            lambda: Pipeline(mb.MicroBatches(OBJECTIVE, 2), mesh_of(axes(MESH)), 2),
            "Pipeline: got MicroBatches; wants an Objective(model, cost), or a Tied one",
        ),
        (
            lambda: Pipeline(mb.Objective(mb.models.mlp(5, 3), Apply(ops.softmax_cross_entropy())), mesh_of(axes(MESH)), 2),
            "Pipeline: there are no Repeats among Dense, Apply, Dense, Apply; wants one, to cut into stages",
        ),
        (
            lambda: Pipeline(dense_layers(4, mb.Repeat(Dense(5), 4)), mesh_of(axes(MESH)), 2),
            "Pipeline: there are 2 Repeats among Repeat, Repeat, Apply; wants one, to cut into stages",
        ),
        (
            lambda: Pipeline(gpt(SIZES["gpt2"], Schedule("last")), mesh_of(axes(MESH)), 2),
            "Pipeline: there are no Repeats among Embedding, PositionalEmbedding, Parallel, Reversible, Apply, LayerNorm",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_cut_is_one_line(make, message):
    with pytest.raises(mb.InputError, match=re.escape(message)) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_batch_that_does_not_divide_is_told_early_and_late():
    pipeline = Pipeline(OBJECTIVE, mesh_of(axes(MESH)), 3)
    message = "Pipeline: 2 parts of 3 micro-batches do not divide a batch of shape (9, 5) along its first axis"
    params, state = pipeline.init(jax.random.key(0), vectors(6))
    for run in (lambda: pipeline.init(jax.random.key(0), vectors(9)), lambda: pipeline.apply(params, state, vectors(9)),
                lambda: mb.value_and_grad(pipeline)(params, state, vectors(9))):  # fmt: skip
        with pytest.raises(mb.InputError, match=re.escape(message)):
            run()


def test_layers_that_keep_state_are_told():
    objective = mb.Objective(mb.Serial(BatchNorm(), mb.Repeat(Dense(5), 4)), Apply(ops.softmax_cross_entropy()))
    pipeline = Pipeline(objective, mesh_of(axes("stage=4")), 2)
    with pytest.raises(mb.InputError, match=re.escape("Pipeline: BatchNorm() keeps state, which stages do not; wants")):
        pipeline.init(jax.random.key(0), vectors(8))


def test_dropout_without_a_key_is_told():
    objective = mb.Objective(mb.Repeat(mb.Serial(Dense(5), Dropout(0.5)), 4), Apply(ops.softmax_cross_entropy()))
    pipeline = Pipeline(objective, mesh_of(axes("stage=4")), 2)
    params, state = pipeline.init(jax.random.key(0), vectors(8))
    with pytest.raises(mb.InputError, match="Dropout: got no key; wants one, to draw from: give forward a key"):
        mb.value_and_grad(pipeline)(params, state, vectors(8))
    assert jnp.isfinite(quickly(pipeline.apply)(params, state, vectors(8)))
