"""Forward and backward are pure functions: jit, vmap, scan and shard leave them as they are; backward is linear in dy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import manual_backprop as mb
from cases import CASES, LAYERS, MODELS, OPS, Case, compiled, differentiable, each, gradient, random_like, sweep
from cases.case import inner, second_derivatives


def cotangent(case: Case, args, seed=4):
    y, _ = jax.eval_shape(case.pair.forward, *args)
    return random_like(y, seed)


def assert_close(ours, theirs, rtol=1e-10):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * (np.abs(b).max() if b.size else 0))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(**each(CASES))
def test_jit_changes_nothing(case: Case):
    args = case.args(dtype="float64")
    dy = cotangent(case, args)
    assert_close(compiled(case)(args, dy), gradient(case.pair, args, dy))


@pytest.mark.parametrize(**each(CASES))
def test_vmap_is_a_loop(case: Case):
    batch, looped = several(case)
    assert_close(jax.vmap(compiled(case))(*batch), looped)


@pytest.mark.parametrize(**each(CASES))
def test_scan_is_a_loop(case: Case):
    batch, looped = several(case)
    _, scanned = jax.lax.scan(lambda carry, row: (carry, gradient(case.pair, *row)), None, batch)
    assert_close(scanned, looped)


def several(case: Case, count: int = 3):
    """Some draws of (args, dy), stacked, and the gradients of a loop over them, stacked."""
    draws = [case.args(seed, "float64") for seed in range(count)]
    rows = [(args, cotangent(case, args, seed)) for seed, args in enumerate(draws)]
    run = compiled(case)
    looped = [run(*row) for row in rows]
    return tuple(jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees) for trees in (rows, looped))


@pytest.mark.parametrize(**each(CASES))
def test_backward_is_linear_in_dy(case: Case):
    args = case.args(dtype="float64")
    u, v = cotangent(case, args, 5), cotangent(case, args, 6)
    mixed = jax.tree.map(lambda a, b: 3 * a - 0.5 * b, u, v)
    run = compiled(case)
    assert_close(run(args, mixed), jax.tree.map(lambda a, b: 3 * a - 0.5 * b, run(args, u), run(args, v)))


@pytest.mark.parametrize(**each(CASES))
def test_backward_is_the_adjoint_of_the_references_tangent(case: Case):
    """⟨u, J v⟩ = ⟨Jᵀ u, v⟩, with J v from forward mode: no reverse mode on either side but ours."""
    args = case.args(dtype="float64")
    flat, tree = jax.tree.flatten(args)
    moves = differentiable(args, case.pair.constants)
    moving = [leaf for leaf, has in zip(flat, moves, strict=True) if has]

    def function(*moving):
        rest = iter(moving)
        return case.reference(
            *tree.unflatten([next(rest) if has else leaf for leaf, has in zip(flat, moves, strict=True)])
        )

    v = random_like(moving, 7)
    _, tangent = jax.jit(lambda x, v: jax.jvp(function, x, v))(moving, v)
    u = random_like(tangent, 8)
    ours = [d for d in compiled(case)(args, u) if d is not None]
    size = inner(jax.tree.map(jnp.abs, u), jax.tree.map(jnp.abs, tangent))
    np.testing.assert_allclose(inner(ours, v), inner(u, tangent), atol=1e-12 * size)


@pytest.mark.parametrize(**each([*LAYERS, *MODELS]))
def test_sharding_the_batch_changes_nothing(case: Case):
    """Eight devices, the leading axis of x split among them; the compiler inserts the sums over devices."""
    params, state, x, *key = case.args(dtype="float64")
    x = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * 8), x)
    dy = cotangent(case, (params, state, x, *key))
    sharded = jax.device_put(x, NamedSharding(eight_devices(), PartitionSpec("data")))
    run = jax.jit(lambda params, x, dy: gradient(case.pair, (params, state, x, *key), dy))
    assert len(jax.tree.leaves(sharded)[0].devices()) == 8
    assert_close(run(params, sharded, dy), run(params, x, dy))


@pytest.mark.parametrize(**sweep(OPS))
def test_on_eight_devices_every_op_is_what_it_is_on_one(case: Case):
    """Eight draws, one a device: by the compiler's partition of a sharded jit, and by hand in a shard_map."""
    batch, looped = several(case, 8)
    mesh, split = eight_devices(), PartitionSpec("data")
    sharded = jax.device_put(batch, NamedSharding(mesh, split))
    run = jax.vmap(compiled(case))
    assert_close(jax.jit(run)(*sharded), looped)
    # JAX's own check of what differs between devices has no rule for a collective over an axis of vmap.
    checked = case.unit.name not in mb.ops.collectives.__all__
    on_eight = jax.shard_map(run, mesh=mesh, in_specs=split, out_specs=split, check_vma=checked)
    assert_close(jax.jit(on_eight)(*sharded), looped)


def eight_devices():
    return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices("cpu"))


@pytest.mark.parametrize(**each(OPS))
def test_second_derivatives_through_the_pair(case: Case):
    """jax.grad of the custom_vjp's gradient is that of the reference's."""
    args = case.args(dtype="float64")
    dy = cotangent(case, args)
    assert_close(second_derivatives(case.unit, args, dy), second_derivatives(case.reference, args, dy))
