"""The weighted input of a layer, z = w a + b, for any number of leading axes.

With x for the activations of the layer before, w stored [in, out] as is usual in JAX (the text's w_jk is w[k, j]):

    yⱼ = Σₖ xₖ wₖⱼ + bⱼ

∂yⱼ/∂xₖ = wₖⱼ: input k reaches C by a path through every j, so its derivative is a sum over them.
∂yⱼ/∂wₖⱼ = xₖ and ∂yⱼ/∂bⱼ = 1, for each example; examples add up.

    dx = dy wᵀ,    dw = Σ xᵀ dy,    db = Σ dy            (Σ over the leading axes)

Source: Rumelhart, Hinton & Williams 1986, "Learning representations by back-propagating errors", eqs. 5-7.
Saved: x and w, nothing new.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.contract import op
from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import Spec, spec, want_float, wide_dtype


class Residuals(NamedTuple):
    x: jax.Array  # [..., in]
    w: jax.Array  # [in, out]
    of_b: Spec | None  # [out]


@op
def dense(*, bias: bool = True):
    """y = x w + b: x [..., in], w [in, out], b [out] → y [..., out]; `bias=False` takes (x, w) alone.

    Products are summed in at least float32. Raises InputError when the inner sizes differ. Derivation: the module.
    """

    def forward(x, w, b):
        check(x, w, b)
        y = product(x, (-1,), w, (0,)) + b
        return y.astype(jnp.result_type(x, w, b)), Residuals(x, w, spec(b))

    def forward_without_bias(x, w):
        check(x, w)
        y = product(x, (-1,), w, (0,))
        return y.astype(jnp.result_type(x, w)), Residuals(x, w, None)

    def backward(residuals, dy):
        x, w, of_b = residuals
        dx = product(dy, (-1,), w, (1,)).astype(x.dtype)
        dw = product(rows(x), (0,), rows(dy), (0,)).astype(w.dtype)
        return (dx, dw, bias_gradient(dy, of_b)) if bias else (dx, dw)

    return (forward if bias else forward_without_bias), backward


def product(a, axes_of_a, b, axes_of_b) -> jax.Array:
    """Σ over pairs of axes of a and b, in at least float32; the axes of a that are left come first."""
    axes = tuple(axis % a.ndim for axis in axes_of_a), tuple(axis % b.ndim for axis in axes_of_b)
    wide = wide_dtype(jnp.result_type(a, b))
    return lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=wide)


def rows(x) -> jax.Array:
    """x with its leading axes as one: a sum over one axis, where one over several would be laid out anew first."""
    return x.reshape(-1, x.shape[-1])


def bias_gradient(dy, b) -> jax.Array:
    """db = Σ dy over all axes but the last."""
    return jnp.sum(dy, tuple(range(dy.ndim - 1)), dtype=wide_dtype(dy.dtype)).astype(b.dtype)


def check(x, w, b=None) -> None:
    want_float("dense", x=x, w=w)
    if w.ndim != 2:
        raise InputError(f"dense: w has shape {w.shape}; wants [in, out]")
    if x.ndim == 0 or x.shape[-1] != w.shape[0]:
        raise InputError(f"dense: x has shape {x.shape}, w {w.shape}; x's last axis must be {w.shape[0]}")
    if b is not None:
        want_float("dense", b=b)
        if b.shape != w.shape[1:]:
            raise InputError(f"dense: b has shape {b.shape}, w {w.shape}; b must be {w.shape[1:]}")
