"""Every backward pass is that of an independent reference under jax.vjp, in float64, for random cotangents."""

import jax
import numpy as np
import pytest

from cases import CASES, Case, compiled, each, random_like
from manual_backprop.testing import check_vjp


@pytest.mark.parametrize(**each(CASES))
@pytest.mark.parametrize("seed", [0, 1])
def test_oracle_finds_nothing(case: Case, seed):
    report = check_vjp(case.unit, case.reference, *case.args(seed), seed=seed)
    assert report, f"\n{report}"


@pytest.mark.parametrize(**each(CASES))
def test_relative_error_in_float64_is_below_1e_12(case: Case):
    with jax.enable_x64(True):
        args = case.args(dtype="float64")
        dy = random_like(jax.eval_shape(case.reference, *args), seed=2)
        autodiff = case._replace(unit=case.reference)
        for ours, theirs in zip(compiled(case)(args, dy), compiled(autodiff)(args, dy), strict=True):
            if ours is not None:
                assert np.abs(ours - theirs).max() <= 1e-12 * np.abs(theirs).max()
