"""Activations with kinks: a = f(z) for each number alone, so ∂C/∂z = ∂C/∂a · f′(z).

At a kink the derivative is that of `jax.nn`. Where f is linear on either side of it, the side is all that is saved: one
byte a number. (In a scan, y would be stacked once more beside the next layer's input.) A NaN stays one.
"""

from __future__ import annotations

import jax.numpy as jnp

from manual_backprop.contract import op
from manual_backprop.errors import InputError
from manual_backprop.ops.activations.rules import FromMask, from_input, from_mask
from manual_backprop.ops.arrays import want_float, wide
from manual_backprop.options import want_not_negative


@op
def relu():
    """y = max(x, 0);  dx = dy where x > 0, else 0.  Saved: that, one byte a number.  (Nair & Hinton 2010.)"""
    return from_mask("relu", lambda x: jnp.maximum(x, 0), lambda x: x > 0)


@op
def relu6():
    """y = min(max(x, 0), 6);  dx = dy where 0 < x < 6, else 0.  Saved: that, one byte a number.  (Krizhevsky 2010.)"""
    return from_mask("relu6", lambda x: jnp.clip(x, 0, 6), lambda x: (x > 0) & (x < 6))


@op
def squared_relu():
    """y = max(x, 0)²;  dx = dy · 2 max(x, 0).  Saved: x, since y overflows and underflows before x does.

    (So, Mańke, Liu, Dai, Shazeer & Le 2021, arXiv:2109.08668.)
    """
    return from_input("squared_relu", lambda x: jnp.square(jnp.maximum(x, 0)), lambda x: jnp.where(x > 0, 2 * x, 0))


@op
def leaky_relu(*, negative_slope: float = 0.01):
    """y = x where x ≥ 0, else s x;  dx = dy where x ≥ 0, else s dy, for the slope s.

    Saved: the sign, one byte a number. (y's sign will not do: s x can underflow to zero, and s can be negative.)
    (Maas, Hannun & Ng 2013.)
    """

    def forward(x):
        want_float("leaky_relu", x=x)
        positive = x >= 0
        y = jnp.where(positive, wide(x), negative_slope * wide(x))
        return y.astype(x.dtype), FromMask(positive)

    def backward(residuals, dy):
        dx = jnp.where(residuals.passes, wide(dy), negative_slope * wide(dy))
        return (dx.astype(dy.dtype),)

    return forward, backward


@op
def hard_sigmoid():
    """y = min(max(x + 3, 0), 6) / 6;  dx = dy / 6 where 0 < x + 3 < 6, else 0.  Saved: that, one byte a number.

    (Howard et al. 2019, arXiv:1905.02244.)
    """
    return from_mask("hard_sigmoid", hard_gate, is_between, slope=1 / 6)


@op
def hard_silu():
    """y = x h(x) for the hard sigmoid h;  dx = dy · (h + x h′).  Saved: x, since y takes values twice.

    h + x h′ is (2x + 3) / 6 where 0 < x + 3 < 6; beyond it 1, before it 0.  (Howard et al. 2019, arXiv:1905.02244.)
    """
    return from_input(
        "hard_silu",
        lambda x: x * hard_gate(x),
        lambda x: jnp.where(x + 3 <= 0, 0, jnp.where(x + 3 >= 6, 1, (2 * x + 3) / 6)),
    )


def hard_gate(x):
    return jnp.clip(x + 3, 0, 6) / 6


def is_between(x):
    return (x + 3 > 0) & (x + 3 < 6)


@op
def hard_tanh(*, low: float = -1.0, high: float = 1.0):
    """y = min(max(x, low), high);  dx = dy where low ≤ x ≤ high, else 0.  Saved: that, one byte a number.

    (Collobert, Weston, Bottou, Karlen, Kavukcuoglu & Kuksa 2011, arXiv:1103.0398.)
    """
    if not low <= high:
        raise InputError(f"hard_tanh: low is {low}, high {high}; wants low ≤ high")
    return from_mask("hard_tanh", lambda x: jnp.clip(x, low, high), lambda x: ~((x < low) | (x > high)))


@op
def hardshrink(*, threshold: float = 0.5):
    """y = 0 where |x| ≤ t, else x;  dx = 0 where |x| ≤ t, else dy.  Saved: that, one byte a number.

    (Donoho & Johnstone 1994, "Ideal spatial adaptation by wavelet shrinkage".)
    """
    passes = lambda x: ~(jnp.abs(x) <= threshold)  # so does a NaN
    return from_mask("hardshrink", lambda x: jnp.where(passes(x), x, 0), passes)


@op
def softshrink(*, threshold: float = 0.5):
    """y = x - t where x > t, x + t where x < -t, else 0;  dx = dy where |x| > t, else 0.

    Saved: that, one byte a number.  (Donoho & Johnstone 1994, "Ideal spatial adaptation by wavelet shrinkage".)
    """
    want_not_negative("softshrink", threshold=threshold)
    return from_mask("softshrink", lambda x: x - jnp.clip(x, -threshold, threshold), lambda x: jnp.abs(x) > threshold)


@op
def threshold(*, threshold: float = 0.0, value: float = 0.0):
    """y = the value where x ≤ t, else x;  dx = 0 where x ≤ t, else dy.  Saved: that, one byte a number.

    (Konda, Memisevic & Krueger 2014, arXiv:1402.3337.)
    """
    passes = lambda x: ~(x <= threshold)  # so does a NaN
    return from_mask("threshold", lambda x: jnp.where(passes(x), x, value), passes)
