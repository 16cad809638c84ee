"""In low precision our error is not above autodiff's own: at most 1.2 times it and one ulp, both against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import CASES, Case, compiled, each, random_like

DRAWS = 64  # rounding errors are random: two medians over many draws can be compared, two draws cannot


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(**each(CASES))
def test_error_is_not_above_autodiffs(case: Case, dtype):
    ours, autodiff = (jax.jit(jax.vmap(compiled(c))) for c in (case, case._replace(unit=case.reference)))
    draws = [case.args(seed, dtype) for seed in range(DRAWS)]
    args = jax.tree.map(lambda *leaves: jnp.stack(leaves), *draws)
    dy = random_like(jax.eval_shape(jax.vmap(case.reference), *args), seed=3)
    with jax.default_matmul_precision("highest"):
        mine, theirs = ours(args, dy), autodiff(args, dy)
        with jax.enable_x64(True):
            truth = autodiff(*jax.tree.map(to_float64, (args, dy)))
    for a, b, true in zip(mine, theirs, truth, strict=True):
        if a is not None:
            assert relative(a, true) <= 1.2 * relative(b, true) + float(jnp.finfo(dtype).eps)


def relative(got, truth) -> float:
    """The relative error of a typical draw: of each, root mean square error over that of the truth; their median."""
    truth = np.float64(truth).reshape(DRAWS, -1)
    error = np.float64(got).reshape(DRAWS, -1) - truth
    return float(np.median(np.linalg.norm(error, axis=1) / np.linalg.norm(truth, axis=1)))


def to_float64(leaf):
    return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
