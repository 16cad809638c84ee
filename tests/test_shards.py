"""Collectives by hand: the cost, the gradient and the training of one device, and no byte sent that need not be."""

from collections import Counter
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import manual_backprop as mb
from manual_backprop import ops
from manual_backprop.inspection.collectives import SENT, instructions, sent
from manual_backprop.layers import Apply, BatchNorm, Dense, Dropout, Embedding, LayerNorm, LinearCrossEntropy
from manual_backprop.models.gpt import Schedule, Size, gpt
from manual_backprop.training import sharding, shards
from manual_backprop.training.sharding import axes, mesh_of, on_mesh
from manual_backprop.training.shards import by_hand

SIZES = {
    "gpt2": Size(64, 16, 2, 32, 4),
    "modern": Size(64, 16, 2, 32, 4, 2, architecture="modern"),
}
SCHEDULE = Schedule("dear", ops.chunked_attention(causal=True, chunk=8), chunk=8)
MESHES = ["data=8", "fsdp=8", "model=4", "model=2, sequence", "data=2,model=4", "data=2,fsdp=2,model=2, sequence"]
BATCH = 8


def meant(text: str) -> tuple:
    """The mesh, and whether positions are cut."""
    return mesh_of(axes(text.removesuffix(", sequence"))), text.endswith(", sequence")


def batch_of(size: Size, n: int = BATCH):
    ids = jax.random.randint(jax.random.key(1), (n, size.length), 0, size.vocabulary)
    return ids, jnp.roll(ids, -1, 1)


def drawn(objective, batch):
    """Parameters, all of them drawn: biases and scales too."""
    params, state = jax.eval_shape(objective.init, jax.random.key(0), batch)
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    numbers = [jnp.asarray(0.2 * rng.standard_normal(leaf.shape), leaf.dtype) for leaf in leaves]
    return tree.unflatten(numbers), state


def of_one_device(objective, batch):
    """Parameters, the cost and its gradient."""
    params, state = drawn(objective, batch)
    params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
    (cost, _), gradient = jax.jit(mb.value_and_grad(objective))(params, state, batch)
    return params, state, cost, gradient


def assert_same_gradient(objective, batch, *texts, rtol=1e-13):
    """In float64, of each parameter beside its gradient's largest entry."""
    with jax.enable_x64(True):
        batch = jax.tree.map(lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x, batch)
        params, state, cost, gradient = of_one_device(objective, batch)
        for text in texts:
            mesh, sequence = meant(text)
            here = by_hand(objective, mesh, sequence)
            specs = sharding.of_params(here, params, mesh)
            there = jax.device_put(here.arranged(params), sharding.placed(specs, mesh))
            cut = jax.device_put(batch, sharding.placed(sharding.of_batch(mesh), mesh))
            step = jax.jit(mb.value_and_grad(here), out_shardings=(None, sharding.placed(specs, mesh)))
            (cost_there, _), gradient_there = step(there, state, cut)
            np.testing.assert_allclose(cost_there, cost, rtol=rtol, err_msg=text)
            found = jax.tree.leaves_with_path(here.restored(gradient_there))
            for (path, a), b in zip(found, jax.tree.leaves(gradient), strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max(), err_msg=f"{text} {path}")


@pytest.mark.parametrize(
    ("architecture", "texts"),
    [("gpt2", ["model=2, sequence", "data=2,model=4"]), ("modern", ["model=4", "data=2,fsdp=2,model=2, sequence"])],
)
def test_cost_and_gradient_are_those_of_one_device(architecture, texts):
    """modern on model=4: its two key heads are on all devices, so attention is, between products that are cut."""
    size = SIZES[architecture]
    assert_same_gradient(gpt(size, SCHEDULE), batch_of(size), *texts)


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["everything", "dear", "inputs", "last"])
@pytest.mark.parametrize("architecture", SIZES)
def test_all_schedules_on_all_meshes(architecture, keep):
    gradients = "backward" if keep == "last" else "forward"
    objective = gpt(SIZES[architecture], replace(SCHEDULE, keep=keep, gradients=gradients))
    meshes = [*MESHES, "model=2", "fsdp=2,model=4, sequence", "data=2,model=2, sequence", "model=2,fsdp=4"]
    assert_same_gradient(objective, batch_of(SIZES[architecture]), *meshes)


IMAGES = jax.random.normal(jax.random.key(2), (16, 5)), jnp.arange(16) % 4
CLASSIFIER = Apply(ops.softmax_cross_entropy())
NETWORKS = {
    "mlp": mb.models.mlp(16, 24, 4),
    "a branch": mb.Serial(
        Dense(16),
        Apply(ops.gelu()),
        mb.Residual(mb.Serial(LayerNorm(), Dense(24), Apply(ops.gelu()), Dense(16))),
        Dense(4),
    ),
    "two branches": mb.Serial(mb.Parallel(Dense(8), mb.Serial(Dense(16), Dense(8))), Apply(ops.add()), Dense(4)),
    "a gate": mb.Serial(Dense(16), Apply(ops.split(sections=2)), Apply(ops.swiglu()), Dense(4)),
    "columns of use in their order too": mb.Serial(
        Dense(16),
        mb.Parallel(mb.Serial(Apply(ops.split(sections=2)), Apply(ops.add())), Dense(8)),
        Apply(ops.add()),
        Dense(4),
    ),
    "what two do not divide": mb.Serial(Dense(7), Apply(ops.gelu()), Dense(9), LayerNorm(), Dense(4)),
}  # fmt: skip


@pytest.mark.parametrize("network", NETWORKS)
def test_networks_of_dense_layers(network):
    objective = mb.Objective(NETWORKS[network], CLASSIFIER)
    assert_same_gradient(objective, IMAGES, "data=2,model=2", "fsdp=2,model=2, sequence")


def test_inference_is_that_of_one_device():
    objective, mesh = mb.Objective(NETWORKS["a gate"], CLASSIFIER), mesh_of(axes("data=2,model=2"))
    params, state = drawn(objective, IMAGES)
    here = by_hand(objective, mesh)
    np.testing.assert_allclose(
        jax.jit(here.apply)(here.arranged(params), state, IMAGES), objective.apply(params, state, IMAGES), rtol=1e-6
    )


def test_a_sum_of_costs():
    objective = mb.Objective(mb.models.mlp(6, 4), Apply(ops.softmax_cross_entropy(reduction="sum")))
    assert_same_gradient(objective, IMAGES, "data=8", "fsdp=8")


def embedded(vocabulary: int, **head):
    """What is around the blocks of a transformer."""
    return mb.Objective(
        mb.Serial(Embedding(vocabulary, 8), LayerNorm()), LinearCrossEntropy(vocabulary, chunk=5, **head)
    )


def test_parts_of_the_batch_with_few_valid_labels_count_less():
    ids, labels = batch_of(SIZES["modern"])
    labels = labels.at[1:].set(-1).at[5, :3].set(7)
    assert_same_gradient(embedded(64, ignored=-1), (ids, labels), "data=4", "fsdp=2,model=2, sequence")


@pytest.mark.parametrize("vocabulary", [64, 63])
def test_tables_cut_by_rows_by_features_and_not_at_all(vocabulary):
    """Four divide 64, two the 8 features, and three neither."""
    objective = embedded(vocabulary, label_smoothing=0.1, z_loss=0.01, softcap=2.0)
    ids = batch_of(Size(vocabulary, 16, 1, 8, 1))
    assert_same_gradient(objective, ids, "model=4", "data=2,model=2, sequence", *["model=3"] * (vocabulary == 64))


def test_a_tied_table():
    objective = mb.Tied(embedded(64), (0, 0, "table"), (1, "weight"))
    assert_same_gradient(objective, batch_of(SIZES["modern"]), "fsdp=2,model=2, sequence")


@pytest.mark.parametrize("products", ["each", "one"])
def test_micro_batches_are_cut_too(products):
    objective = mb.MicroBatches(mb.Objective(NETWORKS["a gate"], CLASSIFIER), 2, products=products)
    assert_same_gradient(objective, IMAGES, "data=2,fsdp=2,model=2")


def test_jaxs_own_types_agree_about_what_is_whole(monkeypatch):
    """Where a sum over devices lacks, a value that ought to be whole differs by device: shard_map finds it."""
    monkeypatch.setattr(shards.jax, "shard_map", partial(checked, jax.shard_map))
    for size in SIZES.values():
        objective, batch = gpt(size, Schedule("everything", SCHEDULE.attention, chunk=8)), batch_of(size)
        for text in ("model=2", "data=2,fsdp=2,model=2, sequence"):
            here = by_hand(objective, *meant(text))
            params, state = jax.eval_shape(objective.init, jax.random.key(0), batch)
            jax.eval_shape(mb.value_and_grad(here), params, state, batch)


def checked(shard_map, *args, check_vma, **options):
    return shard_map(*args, check_vma=True, **options)


# ── twenty steps ─────────────────────────────────────────────────────────────────────────────────────────────────────


def costs_of(objective, mesh, optimizer, params, batches):
    """Of every step."""
    specs = sharding.of_params(objective, params, mesh)
    params = jax.device_put(params, sharding.placed(specs, mesh))
    state = optimizer.init(params)

    @jax.jit
    def train(params, state, batches):
        def step(carry, batch):
            params, state = carry
            (cost, _), gradient = mb.value_and_grad(objective)(params, model_state, batch)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), cost

        return jax.lax.scan(step, (params, state), batches)[1]

    model_state = jax.eval_shape(objective.init, jax.random.key(0), jax.tree.map(lambda x: x[0], batches))[1]
    return np.asarray(train(params, state, batches))


def assert_same_training(architecture, optimizer, *texts, ways=(by_hand, on_mesh)):
    size = SIZES[architecture]
    objective = gpt(size, Schedule("everything", ops.attention(causal=True)))
    ids = jax.random.randint(jax.random.key(3), (20, BATCH, size.length), 0, 4)  # so that there is something to learn
    batches = ids, jnp.roll(ids, -1, -1)
    params, _ = objective.init(jax.random.key(0), jax.tree.map(lambda x: x[0], batches))
    alone = costs_of(objective, mesh_of({"data": 1}), optimizer, params, batches)
    assert alone[-1] < 0.6 * alone[0]
    for text in texts:
        mesh, sequence = meant(text)
        for way in ways:
            here = way(objective, mesh, sequence)
            started = here.arranged(params) if way is by_hand else params
            costs = costs_of(here, mesh, optimizer, started, batches)
            np.testing.assert_allclose(costs, alone, rtol=2e-5, err_msg=f"{text}, {way.__name__}")


def test_twenty_steps_cost_what_they_cost_on_one_device():
    assert_same_training("modern", optax.adam(1e-2), "data=2,fsdp=2,model=2, sequence", ways=[by_hand])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [optax.sgd(0.3), optax.adam(1e-2)], ids=["sgd", "adam"])
@pytest.mark.parametrize("architecture", SIZES)
def test_twenty_steps_on_all_meshes(architecture, optimizer):
    assert_same_training(architecture, optimizer, *MESHES)


# ── the order of columns ─────────────────────────────────────────────────────────────────────────────────────────────


def test_columns_of_several_kinds_are_side_by_side_by_device():
    order = shards._side_by_side([4, 2, 2], 2)
    np.testing.assert_array_equal(order, [0, 1, 4, 6, 2, 3, 5, 7])


def test_weights_come_back_in_the_order_that_they_had():
    objective = gpt(SIZES["gpt2"], SCHEDULE)
    here = by_hand(objective, mesh_of(axes("model=2")))
    params, _ = drawn(objective, batch_of(SIZES["gpt2"]))
    arranged = here.arranged(params)
    jax.tree.map(np.testing.assert_array_equal, here.restored(arranged), params)
    (_, _, ((qkv, *_), _), _), _ = params
    (_, _, ((there, *_), _), _), _ = arranged
    np.testing.assert_array_equal(there[1]["w"][..., 16:32], qkv[1]["w"][..., 32:48])  # the keys of the first device
    np.testing.assert_array_equal(there[1]["b"][..., 16:32], qkv[1]["b"][..., 32:48])
    started, _ = here.init(jax.random.key(0), batch_of(SIZES["gpt2"]))
    own, _ = objective.init(jax.random.key(0), batch_of(SIZES["gpt2"]))
    jax.tree.map(np.testing.assert_array_equal, here.restored(started), own)


def test_without_an_axis_model_the_order_is_that_of_one_device():
    objective = gpt(SIZES["gpt2"], SCHEDULE)
    params, _ = drawn(objective, batch_of(SIZES["gpt2"]))
    arranged = by_hand(objective, mesh_of(axes("data=2,fsdp=4"))).arranged(params)
    jax.tree.map(np.testing.assert_array_equal, arranged, params)


def test_one_device_is_left_alone():
    objective = gpt(SIZES["gpt2"], SCHEDULE)
    assert by_hand(objective, mesh_of({"data": 1})) is objective


# ── what is sent ─────────────────────────────────────────────────────────────────────────────────────────────────────

COUNTED = Size(64, 16, 2, 32, 4, architecture="modern")
LEAST = Schedule("everything", ops.attention(causal=True))


def program(objective, batch, text: str, hand: bool) -> str:
    mesh, sequence = meant(text)
    params, state = jax.eval_shape(objective.init, jax.random.key(0), batch)
    here = (by_hand if hand else on_mesh)(objective, mesh, sequence)
    specs = sharding.placed(sharding.of_params(objective, params, mesh), mesh)
    shape = lambda leaf, there: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=there)
    params = jax.tree.map(shape, params, specs)
    batch = jax.tree.map(lambda leaf: shape(leaf, sharding.placed(sharding.of_batch(mesh), mesh)), batch)
    return jax.jit(mb.value_and_grad(here), out_shardings=(None, specs)).lower(params, state, batch).compile().as_text()


def counted(text: str) -> dict[str, int]:
    """How often each collective runs."""
    counts = Counter()
    for *_, operation, times in instructions(text):
        kind = operation.removesuffix("-start")
        counts[kind] += times * (kind in SENT)
    return dict(+counts)


def held(objective, batch) -> int:
    return sum(4 * leaf.size for leaf in jax.tree.leaves(jax.eval_shape(objective.init, jax.random.key(0), batch)[0]))


def minimum(text: str) -> dict[str, float]:
    """Bytes a device sends, on paper: of COUNTED's parameters, of its activations, and the head's numbers a token.

    A ring sends (n - 1) / n of what it gathers or scatters, and twice that of what it sums. Data: the gradients, summed.
    Fsdp: the parameters, gathered on the way forward and back, but on the way back not the embedding and the last norm's
    … that no gradient needs; gradients scattered. Model: the stream, summed after the embedding and each of two branches
    a block, and on the way back before each and before the head.
    """
    mesh, sequence = meant(text)
    n, batch = mesh.size, batch_of(COUNTED)
    ring, P = (n - 1) / n, held(gpt(COUNTED, LEAST), batch)
    if "data" in text:
        return {"all-reduce": 2 * ring * P}
    if "fsdp" in text:
        return {"all-gather": 2 * ring * P, "reduce-scatter": ring * P}
    tokens = BATCH * COUNTED.length
    sums, numbers = 2 + 4 * COUNTED.depth, 3  # of a token: the largest logit, Σ e^(z - m), the label's
    stream, of_head = 4 * tokens * COUNTED.width, 2 * ring * 4 * tokens * numbers
    if not sequence:
        return {"all-reduce": sums * 2 * ring * stream + of_head}
    scales = 4 * COUNTED.width * (2 * COUNTED.depth + 1)  # of norms, each of which saw a part of the positions
    return {
        "all-gather": sums * ring * stream,
        "reduce-scatter": sums * ring * stream,
        "all-reduce": of_head + 2 * ring * scales,
    }


KINDS = ["data=8", "fsdp=8", "model=4", "model=4, sequence"]


def table() -> str:
    """Bytes that a device sends in a step, and how often: on paper, by hand, and by the compiler (for a CPU).

    To print it, in tests/: python -c 'import conftest, test_shards; print(test_shards.table())'
    """
    objective, batch = gpt(COUNTED, LEAST), batch_of(COUNTED)
    lines = ["| mesh | on paper | by hand | times | by the compiler | times |", "|---|---:|---:|---|---:|---|"]
    for text in KINDS:
        cells = [f"{sum(minimum(text).values()):.0f}"]
        for hand in (True, False):
            found = program(objective, batch, text, hand)
            times = ", ".join(f"{n} {kind}" for kind, n in sorted(counted(found).items()))
            cells += [f"{sum(sent(found).values()):.0f}", times]
        lines.append(f"| {text} | {' | '.join(cells)} |")
    return "\n".join(lines)


@pytest.mark.parametrize("text", KINDS)
def test_by_hand_no_more_is_sent_than_on_paper(text):
    found = program(gpt(COUNTED, LEAST), batch_of(COUNTED), text, hand=True)
    bytes_, least = sent(found), minimum(text)
    for kind, n in bytes_.items():
        if kind not in least:
            assert n < 100, kind  # the cost itself
        elif (text, kind) == ("fsdp=8", "all-gather"):
            assert 0.9 * least[kind] < n <= least[kind]  # the embedding's table is not needed on the way back
        else:
            np.testing.assert_allclose(n, least[kind], rtol=5e-4, err_msg=kind)
    assert set(least) <= set(bytes_)


@pytest.mark.parametrize("text", KINDS)
def test_the_compiler_sends_no_less(text):
    objective, batch = gpt(COUNTED, LEAST), batch_of(COUNTED)
    compiler = sum(sent(program(objective, batch, text, hand=False)).values())
    assert compiler >= 0.99 * sum(sent(program(objective, batch, text, hand=True)).values())


def test_sums_by_hand_are_as_many_as_on_paper():
    objective, batch = gpt(COUNTED, LEAST), batch_of(COUNTED)
    times = lambda text: counted(program(objective, batch, text, hand=True))
    of_stream = 2 + 4 * COUNTED.depth
    assert times("data=8") == {"all-reduce": 1}
    assert times("model=4") == {"all-reduce": of_stream + 2}  # two for the head's numbers
    found = times("model=4, sequence")
    assert found["all-gather"] == found["reduce-scatter"] == of_stream


# ── what cannot be cut ───────────────────────────────────────────────────────────────────────────────────────────────

TWO = mesh_of(axes("data=2,model=2"))
classifier = lambda *layers: mb.Objective(mb.Serial(*layers), CLASSIFIER)


def gradient_of(objective, batch=IMAGES, sequence=False):
    here = by_hand(objective, TWO, sequence)
    params, state = here.init(jax.random.key(0), batch)
    return jax.eval_shape(mb.value_and_grad(here), params, state, batch)


MISTAKES = {
    "a layer that mixes examples": (lambda: gradient_of(classifier(Dense(4), BatchNorm())), "the objective has a state"),
    "randomness": (lambda: gradient_of(classifier(Dense(4), Dropout(0.5))), "by_hand: Dropout(0.5) is not known to be cut"),
    "an op that is not known": (
        lambda: gradient_of(classifier(Dense(4), Apply(ops.softmax()))),
        "by_hand: Apply(softmax()) is not known to be cut by hand; wants sharding.on_mesh, for any layer",
    ),
    "a combinator that is not known": (
        lambda: gradient_of(mb.LossScale(classifier(Dense(4)))),
        "by_hand: the objective has a state",
    ),
    "a cost of all pairs of examples": (
        lambda: by_hand(mb.Objective(mb.Parallel(Dense(4), Dense(4)), Apply(ops.info_nce())), TWO),
        "is not an average over examples that count alike; wants sharding.on_mesh",
    ),
    "weighted examples": (
        lambda: by_hand(mb.Objective(Dense(4), LinearCrossEntropy(4, weights=True)), TWO),
        "is not an average over examples that count alike",
    ),
    "a model for an objective": (lambda: by_hand(Dense(4), TWO), "by_hand: Dense(4) is not an average"),
    "an op for an objective": (lambda: by_hand(ops.relu(), TWO), "by_hand: got relu(); wants a layer"),
    "a batch that the devices do not divide": (
        lambda: gradient_of(classifier(Dense(4)), jax.tree.map(lambda x: x[:7], IMAGES)),
        "by_hand: 2 devices do not divide a batch of shape (7, 5)",
    ),
    "positions that the devices do not divide": (
        lambda: gradient_of(gpt(SIZES["gpt2"]), jax.tree.map(lambda x: x[:, :15], batch_of(SIZES["gpt2"])), True),
        "reduce_scatter: x has shape (4, 15, 32); the 2 devices of 'model' do not divide dim 1",
    ),
    "positions without an axis to cut them along": (
        lambda: by_hand(gpt(SIZES["gpt2"]), mesh_of(axes("data=8")), sequence=True),
        "sequence cuts positions along model, the mesh has {'data': 8}; wants an axis model",
    ),
    "stages": (
        lambda: by_hand(gpt(SIZES["gpt2"]), mesh_of(axes("data=2,stage=2"))),
        "by_hand: the mesh is {'data': 2, 'stage': 2}; stages are pipeline.Pipeline's",
    ),
    "the compiler's positions without it": (
        lambda: on_mesh(gpt(SIZES["gpt2"]), mesh_of(axes("data=8")), sequence=True),
        "sequence cuts positions along model, the mesh has {'data': 8}; wants an axis model",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake):
    make, message = MISTAKES[mistake]
    with pytest.raises(mb.InputError) as raised:
        make()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
