"""Every backward pass is that of an independent reference under jax.vjp, in float64, for random cotangents."""

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cases import CASES, FAMILIES, OPS, Case, compiled, differentiable, each, random_like
from cases.measure import float64_error
from cases.routing import BY_DECREE
from manual_backprop.testing import check_vjp

FIRST_OF_EACH = list({case.unit.name: case for case in reversed(OPS) if case.unit.name not in BY_DECREE}.values())


@pytest.mark.parametrize(**each(CASES))
def test_oracle_finds_nothing(case: Case):
    check_drawn_from(case, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize(**each(CASES))
def test_oracle_finds_nothing_with_other_arguments(case: Case):
    check_drawn_from(case, seed=1, effort="normal")


def check_drawn_from(case: Case, seed: int, effort: str = "quick"):
    by_decree = getattr(case.unit, "name", case.name) in BY_DECREE or case.name in BY_DECREE
    report = check_vjp(case.unit, case.reference, *case.args(seed), surrogate=by_decree, effort=effort, seed=seed)
    assert report, f"\n{report}"


@pytest.mark.parametrize(**each(CASES))
def test_relative_error_in_float64_is_below_1e_12(case: Case):
    assert float64_error(case) <= 1e-12


@pytest.mark.parametrize(**each(FIRST_OF_EACH))
def test_the_slope_along_a_line_is_that_of_central_differences(case: Case):
    """No autodiff on either side: C(x + hv) - C(x - hv) over 2h, at two h, extrapolated."""
    with jax.enable_x64(True):
        args = case.args(seed=3, dtype="float64")
        flat, tree = jax.tree.flatten(args)
        moves = differentiable(args)
        moving = [leaf for leaf, has in zip(flat, moves, strict=True) if has]
        directions = random_like(moving, 4)
        dy = random_like(jax.eval_shape(case.reference, *args), 5)

        @jax.jit
        def cost(t):
            moved = iter(leaf + t * v for leaf, v in zip(moving, directions, strict=True))
            y = case.unit.forward(
                *tree.unflatten([next(moved) if has else leaf for leaf, has in zip(flat, moves, strict=True)])
            )[0]
            return sum(jax.numpy.vdot(a, b) for a, b in zip(jax.tree.leaves(y), jax.tree.leaves(dy), strict=True))

        ours = [d for d in compiled(case)(args, dy) if d is not None]
        slope = sum(np.vdot(d, v) for d, v in zip(ours, directions, strict=True))
        scale = sum(np.abs(np.asarray(d) * np.asarray(v)).sum() for d, v in zip(ours, directions, strict=True))
        coarse, fine = (float(cost(h) - cost(-h)) / (2 * h) for h in (2e-5, 1e-5))
    np.testing.assert_allclose((4 * fine - coarse) / 3, slope, atol=1e-7 * scale)


def check_drawn(family, data):
    module = next(module for module in FAMILIES if module.__name__ == f"cases.{family}")
    case, seed = data.draw(module.drawn()), data.draw(st.integers(0, 99))
    assert float64_error(case, seed) <= 1e-11, case


NAMES = [module.__name__.removeprefix("cases.") for module in FAMILIES]
common = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("family", NAMES)
@settings(common, max_examples=15)
@given(data=st.data())
def test_any_shape_and_option(family, data):
    check_drawn(family, data)


@pytest.mark.slow
@pytest.mark.parametrize("family", NAMES)
@settings(common, max_examples=300)
@given(data=st.data())
def test_any_shape_and_option_many_times(family, data):
    check_drawn(family, data)
