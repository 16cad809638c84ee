"""In low precision our error is not above autodiff's own: at most 1.2 times it and one ulp, both against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import manual_backprop as mb
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


@pytest.mark.parametrize("gradients", ["forward", "backward"])
def test_the_mean_over_many_tokens_does_not_underflow(gradients):
    """A class that is no label gets from each of 20,000 tokens a thousandth of 1 / 20,000: nothing in float16."""
    rng = np.random.default_rng(0)
    hidden, weight = rng.uniform(size=(20_000, 3)), rng.standard_normal((1009, 3))
    op = mb.ops.linear_cross_entropy(gradients=gradients)
    rounding = {"xla_allow_excess_precision": False}  # else a CPU leaves out what an accelerator does: it rounds du
    dweight = jax.jit(jax.grad(op, 1), compiler_options=rounding)

    def rare(dtype):
        return np.float64(dweight(hidden.astype(dtype), weight.astype(dtype), jnp.arange(20_000) % 7))[7:]

    ours, truth = rare(jnp.float16), rare(jnp.float32)
    assert np.linalg.norm(ours - truth) <= 5e-3 * np.linalg.norm(truth)
