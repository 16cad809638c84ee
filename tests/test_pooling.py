"""Resampling beyond the table: every position exact, and an infinite cotangent where it belongs."""

import math
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

import manual_backprop as mb
from manual_backprop.ops.pooling.resample import positions


@pytest.mark.parametrize("center", [0.0, 0.5])
def test_the_position_of_every_output_is_exact(center):
    for n in range(1, 60):
        for m in range(1, 60):
            exact = [math.floor((i + Fraction(center)) * n / m) for i in range(m)]
            np.testing.assert_array_equal(np.floor(positions(m, Fraction(m, n), center)), exact)


@pytest.mark.parametrize(
    "op",
    [
        mb.ops.upsample_nearest(sizes=(5,)),
        mb.ops.upsample_bilinear(sizes=(5,)),
        mb.ops.adaptive_average_pool(sizes=(5,)),
        mb.ops.upsample_nearest(sizes=(500,)),
    ],
    ids=repr,
)
def test_an_infinite_cotangent_stays_at_the_positions_that_its_output_takes(op):
    x = jnp.ones((1, 3, 1))
    y, residuals = op.forward(x)
    first = jnp.zeros_like(y).at[0, 0].set(1)
    (dx,) = op.backward(residuals, jnp.where(first, jnp.inf, 0))
    (taken,) = op.backward(residuals, first)
    np.testing.assert_array_equal(dx, jnp.where(taken != 0, jnp.inf, 0))
