"""Meshes: what lives where, the values of one device, an even share of its memory and work, and what is sent."""

import math
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
from manual_backprop.inspection.collectives import instructions, sent
from manual_backprop.inspection.products import products
from manual_backprop.layers import Apply, Dense, LayerNorm, LinearCrossEntropy
from manual_backprop.models.gpt import Schedule, Size, gpt
from manual_backprop.training import sharding
from manual_backprop.training.descent import Descent
from manual_backprop.training.sharding import axes, mesh_of, on_mesh

SIZES = {
    "gpt2": Size(64, 16, 2, 32, 4),
    "modern": Size(64, 16, 2, 32, 4, 2, architecture="modern"),
}
SCHEDULE = Schedule("dear", ops.chunked_attention(causal=True, chunk=8), chunk=8)  # the head takes many slices
MESHES = ["data=8", "fsdp=8", "data=4,model=2", "model=2"]
BATCH = 8


def batch_of(size: Size, n: int = BATCH):
    ids = jax.random.randint(jax.random.key(1), (n, size.length), 0, size.vocabulary)
    return ids, jnp.roll(ids, -1, 1)


def shapes_of(objective, batch):
    params, state = jax.eval_shape(objective.init, jax.random.key(0), batch)
    return params, state


def on_devices(objective, params, batch, mesh, sequence=False):
    """The objective, its parameters and a batch, where the mesh has them."""
    specs = sharding.of_params(objective, params, mesh)
    params = jax.device_put(params, sharding.placed(specs, mesh))
    return (
        on_mesh(objective, mesh, sequence),
        params,
        jax.device_put(batch, sharding.placed(sharding.of_batch(mesh), mesh)),
        specs,
    )


def assert_close(a, b):
    """To the rounding of float32, beside the largest entry."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        np.testing.assert_allclose(x, y, rtol=0, atol=2e-5 * np.abs(y).max() + 1e-12)


def started(objective, batch):
    return jax.jit(objective.init)(jax.random.key(0), batch)


def assert_same_gradient(objective, batch, mesh, sequence=False):
    params, state = started(objective, batch)
    (cost, _), gradient = jax.jit(mb.value_and_grad(objective))(params, state, batch)
    placed, there, cut, specs = on_devices(objective, params, batch, mesh, sequence)
    step = jax.jit(mb.value_and_grad(placed), out_shardings=(None, sharding.placed(specs, mesh)))
    (cost_there, _), gradient_there = step(there, state, cut)
    assert_close(cost_there, cost)
    assert_close(gradient_there, gradient)
    assert_close(jax.jit(placed.apply)(there, state, cut), cost)


@pytest.mark.parametrize("text", MESHES)
@pytest.mark.parametrize("architecture", SIZES)
def test_cost_and_gradient_are_those_of_one_device(architecture, text):
    size = SIZES[architecture]
    assert_same_gradient(gpt(size, SCHEDULE), batch_of(size), mesh_of(axes(text)))


@pytest.mark.parametrize("architecture", SIZES)
def test_positions_may_be_cut_too(architecture):
    size = SIZES[architecture]
    assert_same_gradient(gpt(size, SCHEDULE), batch_of(size), mesh_of(axes("data=2,model=2")), sequence=True)


def test_cut_positions_take_less_memory():
    size = Size(64, 128, 4, 64, 4, architecture="modern")
    objective, mesh = gpt(size, Schedule(attention=ops.attention(causal=True))), mesh_of(axes("model=4"))
    memory = lambda sequence: (
        lowered(objective, batch_of(size, 4), mesh, sequence=sequence).compile().memory_analysis().temp_size_in_bytes
    )
    assert memory(sequence=True) < 0.9 * memory(sequence=False)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["data=2,fsdp=2,model=2", "fsdp=2,model=4", "model=2,fsdp=4", "fsdp=4", "data=1"])
@pytest.mark.parametrize("keep", ["everything", "dear", "inputs", "last"])
def test_all_schedules_on_other_meshes(keep, text):
    size = replace(SIZES["modern"], key_heads=4)
    gradients = "forward" if keep in ("everything", "dear") else "backward"
    assert_same_gradient(
        gpt(size, replace(SCHEDULE, keep=keep, gradients=gradients)), batch_of(size), mesh_of(axes(text))
    )


def test_a_network_of_dense_layers_is_cut_too():
    model = mb.Serial(Dense(16), Apply(ops.gelu()), LayerNorm(), mb.Residual(mb.Serial(Dense(24), Dense(16))), Dense(3))
    objective = mb.Objective(model, Apply(ops.softmax_cross_entropy()))
    batch = jax.random.normal(jax.random.key(2), (8, 5)), jnp.arange(8) % 3
    assert_same_gradient(objective, batch, mesh_of(axes("data=2,model=4")))


def test_parts_of_the_batch_with_few_valid_labels_count_less():
    ids, labels = batch_of(SIZES["modern"])
    labels = labels.at[1:].set(-1).at[5, :3].set(7)
    objective = gpt(SIZES["modern"], SCHEDULE, ignored=-1)
    assert_same_gradient(objective, (ids, labels), mesh_of(axes("data=4")))


@pytest.mark.parametrize("products", ["each", "one"])
def test_micro_batches_are_cut_too(products):
    size = SIZES["modern"]
    objective = mb.MicroBatches(gpt(size, SCHEDULE), 2, products=products)
    assert_same_gradient(objective, batch_of(size), mesh_of(axes("data=2,model=2")))


def test_dense_layers_are_cut_in_turn_by_columns_and_rows():
    objective = gpt(SIZES["gpt2"], SCHEDULE)
    params, _ = shapes_of(objective, batch_of(SIZES["gpt2"]))
    (embedding, positions, blocks, _), head = sharding.of_params(objective, params, mesh_of(axes("data=4,model=2")))
    (qkv, *_, out), (up, down) = blocks
    columns, rows = PartitionSpec(None, None, "model"), PartitionSpec(None, "model", None)
    whole = {"bias": PartitionSpec(None, None), "scale": PartitionSpec(None, None)}
    assert qkv == up == (whole, {"w": columns, "b": PartitionSpec(None, "model")})
    assert out == down[1] == {"w": rows, "b": PartitionSpec(None, None)}
    assert embedding["table"] == PartitionSpec("model", None) and head == {"weight": None}
    assert positions["table"] == PartitionSpec(None, None)


def test_what_the_mesh_does_not_divide_stays_whole():
    objective = mb.Objective(mb.Repeat(mb.Residual(Dense(10)), 8), LinearCrossEntropy(7))
    params, _ = shapes_of(objective, (jnp.zeros((4, 10)), jnp.zeros(4, int)))
    specs, head = sharding.of_params(objective, params, mesh_of(axes("fsdp=4,model=2")))
    assert specs == {
        "w": PartitionSpec(None, None, "model"),
        "b": PartitionSpec(None, "model"),
    }  # 8 layers, 10 features
    assert head == {"weight": PartitionSpec(None, "model")}
    specs, _ = sharding.of_params(objective, params, mesh_of(axes("fsdp=8")))
    assert specs == {"w": PartitionSpec(None, None, None), "b": PartitionSpec(None, None)}


def bytes_there(tree) -> int:
    """On the first device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("architecture", SIZES)
def test_fsdp_keeps_an_eighth_on_each_device(architecture):
    objective, optimizer, mesh = gpt(SIZES[architecture], SCHEDULE), optax.adamw(1e-3), mesh_of(axes("fsdp=8"))

    def start(key):
        params, _ = objective.init(key, batch_of(SIZES[architecture]))
        return params, optimizer.init(params)

    shapes = jax.eval_shape(start, jax.random.key(0))
    specs = sharding.of_mirrors(shapes, shapes[0], sharding.of_params(objective, shapes[0], mesh))
    training = jax.jit(start, out_shardings=sharding.placed(specs, mesh))(jax.random.key(0))
    assert bytes_there(training) <= 1.1 / 8 * sum(leaf.nbytes for leaf in jax.tree.leaves(training))


def test_what_the_optimiser_remembers_lives_with_its_parameter():
    size = replace(SIZES["gpt2"], hidden=32)  # so that up and down are of one shape
    objective, mesh = gpt(size, SCHEDULE), mesh_of(axes("fsdp=2,model=2"))
    params, _ = shapes_of(objective, batch_of(size))
    specs = sharding.of_params(objective, params, mesh)
    decayed = lambda params: jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key != "b", params)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.masked(optax.adamw(1e-3), decayed))
    state = jax.eval_shape(optimizer.init, params)
    adam = sharding.of_mirrors(state, params, specs)[1].inner_state[0]
    assert adam.count == PartitionSpec()
    for mirror in (adam.mu, adam.nu):
        (_, _, (_, (up, down)), _), _ = mirror
        assert up[1]["w"] == specs[0][2][1][0][1]["w"] and down[1]["w"] == specs[0][2][1][1][1]["w"] != up[1]["w"]


@pytest.mark.parametrize("architecture", SIZES)
def test_updates_in_the_backward_pass_end_where_those_of_one_device_do(architecture):
    size, optimizer, mesh = SIZES[architecture], optax.sgd(0.1, momentum=0.9), mesh_of(axes("fsdp=4,model=2"))
    objective, batch = gpt(size, SCHEDULE), batch_of(size)
    params, state = started(objective, batch)
    alone = Descent(objective, optimizer)
    _, expected = jax.jit(alone)(jax.jit(alone.start)(params), state, batch)

    descent = Descent(on_mesh(objective, mesh), optimizer)
    weights = jax.jit(descent.start)(params)
    specs = sharding.of_mirrors(weights, params, sharding.of_params(objective, params, mesh))
    there = sharding.placed(specs, mesh)
    cut = jax.device_put(batch, sharding.placed(sharding.of_batch(mesh), mesh))
    step = jax.jit(descent, out_shardings=(None, there))
    _, weights = step(jax.device_put(weights, there), state, cut)
    assert_close(weights, expected)
    assert bytes_there(weights) < 0.2 * sum(leaf.nbytes for leaf in jax.tree.leaves(weights))


def compiled(objective, batch, mesh, late=False) -> str:
    """The program of each device: of the gradient, or where `late` of an update in the backward pass."""
    return lowered(objective, batch, mesh, late).compile().as_text()


def lowered(objective, batch, mesh, late=False, sequence=False):
    params, state = shapes_of(objective, batch)
    step, training = mb.value_and_grad(on_mesh(objective, mesh, sequence)), params
    if late:
        step = Descent(on_mesh(objective, mesh), optax.adamw(0.1))
        training = jax.eval_shape(step.start, params)
    specs = sharding.of_mirrors(training, params, sharding.of_params(objective, params, mesh))
    specs = sharding.placed(specs, mesh)
    shape = lambda leaf, there: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=there)
    training = jax.tree.map(shape, training, specs)
    batch = jax.tree.map(lambda leaf: shape(leaf, sharding.placed(sharding.of_batch(mesh), mesh)), batch)
    return jax.jit(step, out_shardings=(None, specs)).lower(training, state, batch)


def product_flops(program: str) -> float:
    """Of the matrix products that a compiled program for the CPU runs."""
    sizes = lambda shape: [int(n) for n in re.search(r"\[([\d,]*)\]", shape)[1].split(",") if n]
    found = list(instructions(program))
    shapes, total = {name: shape for _, name, shape, _, _ in found}, 0
    for line, _, shape, operation, times in found:
        if operation == "dot":
            left = sizes(shapes[re.search(r" dot\(%?([\w.\-]+)", line)[1]])
            axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line)[1]
            total += times * 2 * math.prod(sizes(shape)) * math.prod(left[int(axis)] for axis in axes.split(","))
    return total


@pytest.mark.parametrize("text", ["data=8", "fsdp=8", "data=4,model=2"])
@pytest.mark.parametrize("gradients", ["forward", "backward"])
def test_no_device_computes_what_another_does(gradients, text):
    size = replace(SIZES["modern"], vocabulary=256)  # most of the work is the head's, and it goes in slices
    objective = gpt(size, replace(SCHEDULE, gradients=gradients, chunk=32))
    mesh, batch = mesh_of(axes(text)), batch_of(size)
    params, state = shapes_of(objective, batch)
    whole = products(mb.value_and_grad(on_mesh(objective, mesh)), params, state, batch).flops
    assert product_flops(compiled(objective, batch, mesh)) < 1.05 * whole / mesh.size


def test_data_parallel_devices_send_their_gradients_once():
    size = SIZES["modern"]
    objective, batch = gpt(size, SCHEDULE), batch_of(size)
    params, _ = shapes_of(objective, batch)
    held = sum(4 * leaf.size for leaf in jax.tree.leaves(params))
    found = sent(compiled(objective, batch, mesh_of(axes("data=8"))))
    assert set(found) == {"all-reduce"}
    assert 2 * 7 / 8 * held <= found["all-reduce"] < 1.01 * 2 * 7 / 8 * held


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("gradients", ["forward", "backward"])
def test_fsdp_gathers_parameters_and_no_activations(gradients, late):
    size = SIZES["modern"]
    objective = gpt(size, replace(SCHEDULE, gradients=gradients))
    params, _ = shapes_of(objective, batch_of(size))
    held = sum(4 * leaf.size for leaf in jax.tree.leaves(params))
    program = lambda n: sent(compiled(objective, batch_of(size, n), mesh_of(axes("fsdp=8")), late))
    small, large = program(8), program(64)
    assert {kind for kind, n in small.items() if n > 1000} == {"all-gather", "all-reduce"}
    assert small["all-gather"] <= 2 * 7 / 8 * held  # once on the way forward, once on the way back
    assert small["all-reduce"] < 1.03 * 2 * 7 / 8 * held
    assert large["all-gather"] == small["all-gather"] and large["all-reduce"] < 1.03 * small["all-reduce"]


def test_a_table_cut_by_features_does_not_cut_the_blocks_activations():
    size = replace(SIZES["gpt2"], vocabulary=63)
    found = sent(compiled(gpt(size, SCHEDULE), batch_of(size), mesh_of(axes("data=4,model=2"))))
    stream = 4 * BATCH // 4 * size.length * size.width  # bytes on a device
    assert found["all-gather"] <= 1.01 * 2 * stream / 2  # what the embedding gives, and what the head gives back


PROGRAM = """HloModule jit_step, is_scheduled=true, num_partitions=8

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %c = f32[] add(%a, %b)
}

%async (p: f32[8]) -> f32[2] {
  ROOT %scattered = f32[2]{0} reduce-scatter(%p), replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%sum
}

%body (t: (s32[], f32[4])) -> (s32[], f32[4]) {
  %x = f32[4]{0} get-tuple-element(%t), index=1
  %gathered = bf16[8,4]{1,0} all-gather(%x), replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, dimensions={0}
  ROOT %y = (s32[], f32[4]) tuple(%i, %x)
}

%branch (p: f32[4]) -> f32[4] {
  ROOT %moved = f32[4]{0} collective-permute(%p), source_target_pairs={{0,1}}
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %both = (f32[4]{0}, /*index=1*/pred[8]{0}) all-reduce(%p, %q), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%sum
  %loop = (s32[], f32[4]) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"11"}}
  %start = (f32[1]{0}, f32[8]{0}) all-gather-start(%p), replica_groups={}, dimensions={0}
  %done = f32[8]{0} all-gather-done(%start)
  %async-start = ((f32[8]), f32[2]) async-start(%p), calls=%async
  %async-done = f32[2] async-done(%async-start)
  ROOT %chosen = f32[4] conditional(%i, %p, %p), branch_computations={%branch, %branch}
}
"""


def test_the_compilers_ways_of_writing_are_read():
    assert sent(PROGRAM) == {
        "all-reduce": 2 * (16 + 8) * 3 / 4,
        "all-gather": 11 * 64 * 1 / 2 + 32 * 7 / 8,
        "reduce-scatter": 8 * 3,
        "collective-permute": 2 * 16,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("date=4", "mesh: axis 'date' is unknown; did you mean 'data'? known: data, fsdp, model"),
        ("data", "mesh 'data' is not understood; wants, say, data=4,model=2"),
        ("data=two", "mesh 'data=two' is not understood"),
        ("data=4,", "mesh 'data=4,' is not understood"),
        ("data=-1", "mesh 'data=-1' is not understood"),
        ("data=0", "mesh 'data=0' has 0 devices; wants 1 to 1024"),
        ("data=99999", "has 99999 devices; wants 1 to 1024"),
        ("data=2,data=2", "has the axis data twice"),
    ],
)
def test_a_mesh_that_makes_no_sense_is_one_line(text, message):
    with pytest.raises(mb.InputError, match=re.escape(message)):
        axes(text)


def test_too_few_devices_are_told_with_the_remedy():
    with pytest.raises(mb.InputError, match=re.escape('jax.config.update("jax_num_cpu_devices", 16)')):
        mesh_of({"data": 16})


def test_a_batch_that_the_mesh_does_not_divide_is_told():
    size = SIZES["modern"]
    objective = on_mesh(gpt(size, SCHEDULE), mesh_of(axes("data=8")))
    params, state = shapes_of(objective, batch_of(size))
    with pytest.raises(mb.InputError, match="8 devices do not divide a batch of labels"):
        jax.eval_shape(mb.value_and_grad(objective), params, state, batch_of(size, 6))
