"""In low precision our error is not above autodiff's own: at most 1.2 times it and one ulp, both against float64."""

import jax.numpy as jnp
import pytest

from cases import CASES, Case, each, sweep
from cases.measure import rounding_errors


@pytest.mark.parametrize(**each(CASES))
def test_error_in_float32_is_not_above_autodiffs(case: Case):
    check(case, "float32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(**sweep(CASES))
def test_error_in_16_bit_is_not_above_autodiffs(case: Case, dtype):
    check(case, dtype)


def check(case: Case, dtype: str):
    for ours, theirs in rounding_errors(case, dtype):
        assert ours <= 1.2 * theirs + float(jnp.finfo(dtype).eps)
