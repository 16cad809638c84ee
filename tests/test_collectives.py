"""Collectives on eight devices: values and gradients of whole arrays, against jax.vjp of JAX's own collectives."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

import manual_backprop as mb
from cases import random_like
from manual_backprop import ops

EACH, WHOLE = PartitionSpec("model"), PartitionSpec()
RING = tuple((d, (d + 1) % 8) for d in range(8))
SOME = ((0, 3), (3, 5), (7, 0), (2, 2))


class Row(NamedTuple):
    op: mb.Op
    collective: object  # JAX's own
    x: PartitionSpec
    y: PartitionSpec
    shape: tuple[int, ...]  # of the whole of x


def own(x):
    return lax.dynamic_slice_in_dim(x, lax.axis_index("model") * (x.shape[1] // 8), x.shape[1] // 8, 1)


gather, scatter = partial(lax.all_gather, tiled=True), partial(lax.psum_scatter, tiled=True)
ROWS = {
    "all_reduce": Row(ops.all_reduce(axis="model"), lambda x: lax.psum(x, "model"), EACH, WHOLE, (16, 5)),
    "copy_to_devices": Row(
        ops.copy_to_devices(axis="model"), lambda x: lax.pcast(x, "model", to="varying"), WHOLE, EACH, (3, 5)
    ),
    "all_gather": Row(ops.all_gather(axis="model", dim=1), lambda x: gather(x, "model", axis=1), EACH, EACH, (16, 5)),
    "reduce_scatter": Row(
        ops.reduce_scatter(axis="model", dim=1), lambda x: scatter(x, "model", scatter_dimension=1), EACH, EACH, (16, 24)
    ),
    "gather_parts": Row(
        ops.gather_parts(axis="model", dim=1), lambda x: gather(x, "model", axis=1, to="invarying"), EACH, WHOLE, (16, 5)
    ),
    "own_part": Row(ops.own_part(axis="model", dim=1), own, WHOLE, EACH, (3, 16)),
    "all_to_all": Row(
        ops.all_to_all(axis="model", split=1, join=0),
        lambda x: lax.all_to_all(x, "model", 1, 0, tiled=True),
        EACH,
        EACH,
        (24, 16),
    ),
    "collective_permute": Row(
        ops.collective_permute(axis="model", pairs=RING), lambda x: lax.ppermute(x, "model", RING), EACH, EACH, (16, 5)
    ),
    "collective_permute, not all send": Row(
        ops.collective_permute(axis="model", pairs=SOME), lambda x: lax.ppermute(x, "model", SOME), EACH, EACH, (16, 5)
    ),
}  # fmt: skip


def eight(names=("model",), sizes=(8,)):
    return jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(names), devices=jax.devices("cpu")[:8])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", ROWS)
def test_the_pair_is_jaxs_collective_and_its_vjp(name):
    """shard_map checks too that what is said to be whole is, on the way back as well."""
    op, collective, x_spec, y_spec, shape = ROWS[name]
    x = random_like(jnp.zeros(shape), 0)
    y, pull = jax.vjp(jax.shard_map(collective, mesh=eight(), in_specs=x_spec, out_specs=y_spec), x)
    dy = random_like(y, 1)

    def pair(x, dy):
        y, residuals = op.forward(x)
        return y, *op.backward(residuals, dy)

    pair = jax.shard_map(pair, mesh=eight(), in_specs=(x_spec, y_spec), out_specs=(y_spec, x_spec))
    called, pull_call = jax.vjp(jax.shard_map(op, mesh=eight(), in_specs=x_spec, out_specs=y_spec), x)
    for ours in (jax.jit(pair)(x, dy), (called, *pull_call(dy))):
        for a, b in zip(ours, (y, *pull(dy)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-14)


@pytest.mark.parametrize("name", ROWS)
def test_under_vmap_it_is_what_it_is_on_devices(name):
    op, _, x_spec, y_spec, shape = ROWS[name]
    x = random_like(jnp.zeros(shape), 0)
    there = jax.shard_map(op, mesh=eight(), in_specs=x_spec, out_specs=y_spec)(x)
    axis = lambda spec: None if spec == WHOLE else 0
    here = jax.vmap(op, in_axes=axis(x_spec), out_axes=axis(y_spec), axis_name="model", axis_size=8)
    y = here(x if x_spec == WHOLE else x.reshape(8, -1, *shape[1:]))
    np.testing.assert_allclose(y if y_spec == WHOLE else y.reshape(there.shape), there, rtol=1e-14)


def test_a_sum_over_two_axes():
    mesh, spec = eight(("data", "model"), (2, 4)), PartitionSpec(("data", "model"))
    x = random_like(jnp.zeros((16, 5)), 0)
    op = ops.all_reduce(axis=("data", "model"))
    y, pull = jax.vjp(jax.shard_map(op, mesh=mesh, in_specs=spec, out_specs=WHOLE), x)
    np.testing.assert_allclose(y, x.reshape(8, 2, 5).sum(0), rtol=1e-14)
    np.testing.assert_array_equal(pull(y)[0], jnp.tile(y, (8, 1)))


@pytest.mark.parametrize("op", [ops.all_reduce(axis="model"), ops.reduce_scatter(axis="model")], ids=repr)
def test_sums_run_in_float32(op):
    x = jnp.ones((8, 8), jnp.bfloat16).at[0].set(256)  # 256 + 1 is 256 in bfloat16
    summed = jax.vmap(op, axis_name="model")(x)
    assert summed.dtype == jnp.bfloat16 and (summed == 264).all()


def test_two_products_between_two_collectives_are_the_layer_that_they_are_cut_of():
    """Columns, then rows: Megatron's perceptron; with positions cut, a gather and a scatter in the place of the two."""
    x, up, down = (random_like(jnp.zeros(shape), i) for i, shape in enumerate([(16, 5), (5, 24), (24, 5)]))
    whole = lambda x, up, down: jnp.tanh(x @ up) @ down
    y, pull = jax.vjp(whole, x, up, down)
    dy = random_like(y, 3)
    copies, total = ops.copy_to_devices(axis="model"), ops.all_reduce(axis="model")
    gathered, scattered = ops.all_gather(axis="model"), ops.reduce_scatter(axis="model")
    columns, rows = PartitionSpec(None, "model"), PartitionSpec("model", None)
    for before, after, stream in ((copies, total, WHOLE), (gathered, scattered, EACH)):

        def step(x, up, down, dy, before=before, after=after):
            copied, _ = before.forward(x)
            a = jnp.tanh(copied @ up)
            y, residuals = after.forward(a @ down)
            (dterm,) = after.backward(residuals, dy)
            dz = (dterm @ down.T) * (1 - a**2)
            (dx,) = before.backward(residuals, dz @ up.T)
            return y, dx, copied.T @ dz, a.T @ dterm

        specs = stream, columns, rows
        run = jax.shard_map(step, mesh=eight(), in_specs=(*specs, stream), out_specs=(stream, *specs))
        for a, b in zip(run(x, up, down, dy), (y, *pull(dy)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * np.abs(b).max())


def test_a_head_and_a_table_cut_by_rows_are_those_that_they_are_cut_of():
    rng = np.random.default_rng(0)
    ids, labels = jnp.asarray(rng.integers(0, 24, (2, 3, 7)))
    hidden, table = jnp.asarray(rng.standard_normal((3, 7, 5))), jnp.asarray(rng.standard_normal((24, 5)))

    def whole(hidden, table):
        return ops.linear_cross_entropy(z_loss=0.01)(hidden + ops.embedding()(ids, table), table, labels)

    def cut(hidden, table):
        rows = ops.all_reduce(axis="model")(ops.parallel_embedding(axis="model")(ids, table))
        copies = ops.copy_to_devices(axis="model")(hidden + rows)
        return ops.parallel_cross_entropy(axis="model", z_loss=0.01, chunk=4)(copies, table, labels)

    run = jax.shard_map(cut, mesh=eight(), in_specs=(WHOLE, EACH), out_specs=WHOLE)
    ours, theirs = (jax.jit(jax.value_and_grad(f, (0, 1)))(hidden, table) for f in (run, whole))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("wrong", ["id", "label"])
def test_what_no_device_has_is_nan(wrong):
    ids = jnp.array([3, 24 if wrong == "id" else 1])
    labels = jnp.array([0, 24 if wrong == "label" else 2])

    def cut(table):
        rows = ops.all_reduce(axis="model")(ops.parallel_embedding(axis="model")(ids, table))
        return ops.parallel_cross_entropy(axis="model")(rows, table, labels)

    table = jnp.ones((24, 5))
    assert np.isnan(jax.jit(jax.shard_map(cut, mesh=eight(), in_specs=EACH, out_specs=WHOLE))(table))
