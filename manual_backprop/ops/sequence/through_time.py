"""Backpropagation through time: what the recurrent ops share.

A recurrent net is a deep one, one layer a step, whose layers share their parameters: the chain rule runs from the last
step to the first, and copies of a parameter are paths, which add up. Source: Werbos 1990, "Backpropagation through
time: what it does and how to do it".

Only what needs the state must wait for it. A sequence is cut into chunks of STEPS. What needs no state is done for all
steps of a chunk at once, by large products: the part of x, in the backward pass the gates once more, and the gradients
of the weights. A scan inside the chunk does the rest. By chunks, and not for the whole sequence at once, so that gates
and their cotangents live for one chunk alone.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import want_axis, want_float, want_shape, wide_dtype

STEPS = 16  # of a chunk: enough for a large product, few enough for a small buffer


def in_chunks(body: Callable, carry, xs, reverse: bool):
    """`lax.scan` of body(carry, xs) → (carry, ys) over time, the leading axis, each call getting STEPS steps of it.

    Steps that are left over get a call of their own, of the last steps in time.
    """
    length = jax.tree.leaves(xs)[0].shape[0]
    cut = length - length % STEPS
    if 0 < length < STEPS:
        return body(carry, xs)
    chunks = jax.tree.map(lambda a: a[:cut].reshape(cut // STEPS, STEPS, *a.shape[1:]), xs)
    rest = jax.tree.map(lambda a: a[cut:], xs)
    if cut < length and reverse:
        carry, last = body(carry, rest)
    carry, ys = lax.scan(body, carry, chunks, reverse=reverse)
    ys = jax.tree.map(lambda a: a.reshape(cut, *a.shape[2:]), ys)
    if cut == length:
        return carry, ys
    if not reverse:
        carry, last = body(carry, rest)
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), ys, last)


def backward_in_chunks(body: Callable, dstate, params: tuple, xs, reverse: bool):
    """Goes back through time, `reverse` being the way forward.

    body(dstate, xs) → (dstate, dparams, dx) of one chunk  →  (dstate, dparams summed, dx) of the sequence.
    """

    def add(carry, xs):
        dstate, sums = carry
        dstate, dparams, dx = body(dstate, xs)
        return (dstate, jax.tree.map(jnp.add, sums, dparams)), dx

    like = jax.tree.leaves(xs)[0]  # the zeros are on the devices that hold it
    nothing = tuple(jnp.zeros_like(like, wide_dtype(p.dtype), p.shape) for p in params)
    (dstate, sums), dx = in_chunks(add, (dstate, nothing), xs, not reverse)
    return dstate, tuple(d.astype(p.dtype) for d, p in zip(sums, params, strict=True)), dx


def before(first, states, reverse: bool):
    """The state before each step, from the states after each: `first` is before the first."""
    if reverse:
        return jnp.concatenate([states[1:], first[None]])[: len(states)]
    return jnp.concatenate([first[None], states[:-1]])[: len(states)]


# ── products, in at least float32 ────────────────────────────────────────────────────────────────────────────────────


def times(a, w) -> jax.Array:
    """a [..., in] w [in, out]."""
    return jnp.matmul(a, w, preferred_element_type=wide_dtype(jnp.result_type(a, w)))


def outer(a, d) -> jax.Array:
    """Σ aᵀ d over the leading axes: the gradient of w in a w."""
    leading = tuple(range(a.ndim - 1))
    return jnp.tensordot(a, d, (leading, leading), preferred_element_type=wide_dtype(jnp.result_type(a, d)))


def total(d) -> jax.Array:
    """Σ d over the leading axes: the gradient of a bias."""
    return jnp.sum(d, tuple(range(d.ndim - 1)), dtype=wide_dtype(d.dtype))


# ── what does not fit ────────────────────────────────────────────────────────────────────────────────────────────────


def check(op: str, gates: int, x, states: dict, wx, wh, b, axis: int | None = None) -> None:
    """x [..., in], states [..., hidden], wx [in, gates · hidden], wh [hidden, gates · hidden], b [gates · hidden].

    axis: that of time in x, which the states lack; None: a single step.
    """
    want_float(op, x=x, **states, wx=wx, wh=wh, b=b)
    several = f"{gates} hidden" if gates > 1 else "hidden"
    if wh.ndim != 2 or wh.shape[1] != gates * wh.shape[0]:
        raise InputError(f"{op}: wh has shape {wh.shape}; wants [hidden, {several}]")
    hidden, outputs = wh.shape
    if wx.ndim != 2 or wx.shape[1] != outputs:
        raise InputError(f"{op}: wx has shape {wx.shape}, wh {wh.shape}; wx must be [in, {outputs}]")
    want_shape(op, (outputs,), f"[{several}]", b=b)
    if x.ndim < (1 if axis is None else 2):
        raise InputError(f"{op}: x has shape {x.shape}; wants {'[..., in]' if axis is None else '[time, ..., in]'}")
    if x.shape[-1] != wx.shape[0]:
        raise InputError(f"{op}: x has shape {x.shape}, wx {wx.shape}; x's last axis must be {wx.shape[0]}")
    batch = list(x.shape[:-1])
    if axis is not None:
        time = want_axis(op, axis, x.ndim)
        if time == x.ndim - 1:
            raise InputError(f"{op}: axis {axis} of x {x.shape} holds the features; wants that of time")
        del batch[time]
    want_shape(op, (*batch, hidden), f"from x {x.shape} and wh {wh.shape}", **states)
