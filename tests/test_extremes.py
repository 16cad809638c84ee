"""Extreme arguments: finite wherever the truth is, and right. No examples: no gradient, of the right shape."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import EMPTY, EXTREMES, Case, compiled, each, random_like
from cases.case import second_derivatives
from cases.measure import autodiff, to_float64
from manual_backprop.testing import check_vjp

# Where a cotangent on the way is below the smallest number of float32; for others the same row is right.
UNDERFLOWS = {"l2_norm, 2^110 times": {"dy × 0.0001"}}


@pytest.mark.parametrize(**each(EXTREMES))
def test_oracle_finds_nothing(case: Case):
    report = check_vjp(case.unit, case.reference, *case.args(), effort="quick")
    beyond = {finding.arguments for finding in report.failures} <= UNDERFLOWS.get(case.name, set())
    assert beyond, f"\n{report}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(**each(EXTREMES))
def test_finite_where_the_truth_is(case: Case, dtype):
    args = case.args(dtype=dtype)
    dy = random_like(jax.eval_shape(case.reference, *args), 0)
    ours = compiled(case)(args, dy)
    with jax.enable_x64(True):
        truths = compiled(autodiff(case))(*to_float64((args, dy)))
    for a, true in zip(ours, truths, strict=True):
        if a is not None:
            within = np.isfinite(true) & (np.abs(true) < float(jnp.finfo(a.dtype).max))
            assert np.isfinite(np.float64(a))[within].all()


@pytest.mark.parametrize(**each(EXTREMES))
def test_second_derivatives_are_finite_where_the_truth_is(case: Case):
    with jax.enable_x64(True):
        args = case.args(dtype="float64")
        dy = random_like(jax.eval_shape(case.reference, *args), 0)
        ours, truths = (second_derivatives(function, args, dy) for function in (case.unit, case.reference))
    for a, true in zip(ours, truths, strict=True):
        assert np.isfinite(a)[np.isfinite(true)].all()


@pytest.mark.parametrize(**each(EMPTY))
def test_no_examples(case: Case):
    args = case.args()
    y, _ = jax.eval_shape(case.pair.forward, *args)
    dy = random_like(y, 0)
    for ours, theirs in zip(compiled(case)(args, dy), compiled(autodiff(case))(args, dy), strict=True):
        if ours is not None:
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
