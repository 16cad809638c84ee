"""Arguments of several dtypes: y has the one that they promote to, each cotangent that of its argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_backprop as mb

INDICES = jnp.array([0, 2, 2])
MIXED = {
    "add": (mb.ops.add(), lambda a, b, c: a + b + c, ((7, 5), (5,), ())),
    "subtract": (mb.ops.subtract(), jnp.subtract, ((7, 5), (5,))),
    "multiply": (mb.ops.multiply(), lambda a, b, c: a * b * c, ((7, 5), (5,), ())),
    "divide": (mb.ops.divide(), jnp.divide, ((7, 5), (5,))),
    "concatenate": (mb.ops.concatenate(), lambda *xs: jnp.concatenate(xs, -1), ((7, 5), (7, 3), (7, 2))),
    "stack": (mb.ops.stack(), lambda *xs: jnp.stack(xs), ((7, 5), (7, 5), (7, 5))),
    "scatter_add": (
        lambda x, u: mb.ops.scatter_add()(x, INDICES, u),
        lambda x, u: x.astype(jnp.result_type(x, u)).at[INDICES].add(u),
        ((7, 5), (3, 5)),
    ),
    "scatter": (
        lambda x, u: mb.ops.scatter()(x, INDICES, u),
        lambda x, u: x.astype(jnp.result_type(x, u)).at[INDICES].set(u),
        ((7, 5), (3, 5)),
    ),
}


@pytest.mark.parametrize("dtypes", [("bfloat16", "float32", "float16"), ("float16", "bfloat16", "bfloat16")], ids=str)
@pytest.mark.parametrize("name", MIXED)
def test_mixed_dtypes(name, dtypes):
    op, reference, shapes = MIXED[name]
    rng = np.random.default_rng(0)
    args = [jnp.asarray(rng.uniform(1, 2, shape), dtype) for shape, dtype in zip(shapes, dtypes, strict=False)]
    (y, pull), (true, pull_true) = jax.vjp(op, *args), jax.vjp(reference, *args)
    assert y.dtype == true.dtype == jnp.result_type(*args)
    dy = jnp.asarray(rng.standard_normal(y.shape), y.dtype)
    for ours, theirs, arg in zip((y, *pull(dy)), (true, *pull_true(dy)), (true, *args), strict=True):
        assert (ours.shape, ours.dtype) == (arg.shape, arg.dtype)
        ulp = float(jnp.finfo(arg.dtype).eps)
        np.testing.assert_allclose(
            np.float64(ours), np.float64(theirs), rtol=8 * ulp, atol=8 * ulp * float(jnp.abs(theirs).max())
        )
