"""Right with several outputs, through branches and loops, and without a reference."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.dtypes import float0
from jax.scipy.special import logsumexp

from .right_case import Right, drawn, integers, normal, rule, steps

col = lambda x: x[..., None]


class Moments(NamedTuple):
    mean: jax.Array
    var: jax.Array


def moments(x):
    gap = x - x.mean(0)
    return Moments(x.mean(0), (gap * gap).mean(0)), gap


def moments_backward(gap, dy):
    return ((dy.mean + 2 * dy.var * gap) / len(gap),)


def split_backward(_, dy):
    return (jnp.concatenate([dy["low"], dy["none"], dy["high"]], -1),)


def largest_forward(x):
    values, index = jax.lax.top_k(x, 3)
    return (values, index), (index, x)


def largest_backward(residuals, dy):
    index, x = residuals
    return ((dy[0][..., None] * jax.nn.one_hot(index, x.shape[-1], dtype=x.dtype)).sum(-2),)


def peak_forward(x):
    index = jnp.argmax(x, -1)
    return {"index": index, "value": x.max(-1)}, (index, x)


def peak_backward(residuals, dy):
    index, x = residuals
    assert dy["index"].dtype == float0, "an integer has no cotangent"
    return (col(dy["value"]) * jax.nn.one_hot(index, x.shape[-1], dtype=x.dtype),)


def branch(x, w):
    return jax.lax.cond(x.sum() > 0, lambda z: jnp.sin(z) @ w, lambda z: jnp.cos(z) @ w, x)


def branched_backward(residuals, dy):
    x, w = residuals
    inner, slope = jax.lax.cond(x.sum() > 0, lambda x: (jnp.sin(x), jnp.cos(x)), lambda x: (jnp.cos(x), -jnp.sin(x)), x)
    return (dy @ w.T) * slope, inner.T @ dy


def looped(x, w):
    return jax.lax.fori_loop(0, 4, lambda _, h: jnp.tanh(h @ w), x)


def looped_forward(x, w):
    last, seen = jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), h), x, length=4)
    return last, (w, jnp.concatenate([seen, last[None]]))


def looped_backward(residuals, dy):
    w, seen = residuals

    def step(carry, pair):
        g, dw = carry
        before, after = pair
        g = g * (1 - after * after)
        return (g @ w.T, dw + before.T @ g), None

    return jax.lax.scan(step, (dy, jnp.zeros_like(w)), (seen[:-1], seen[1:]), reverse=True)[0]


def mapped(x):
    return jax.lax.map(lambda row: jnp.cumsum(row) * row[0], x)


def mapped_backward(x, dy):
    def row(pair):
        x, dy = pair
        g = jnp.flip(jnp.cumsum(jnp.flip(dy))) * x[0]
        return g.at[0].add((dy * jnp.cumsum(x)).sum())

    return (jax.lax.map(row, (x, dy)),)


def switched(x, which):
    return jax.lax.switch(which, [jnp.sin, jnp.cos, lambda x: x * x], x)


def switched_backward(residuals, dy):
    x, which = residuals
    return dy * jnp.stack([jnp.cos(x), -jnp.sin(x), 2 * x])[which], np.zeros((), float0)


def plain_norm(x, gain):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-3) * gain


@jax.custom_vjp
def own_norm(x, gain):
    return plain_norm(x, gain)


def own_norm_forward(x, gain):
    centred = x - x.mean(-1, keepdims=True)
    rstd = 1 / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-3)
    return own_norm(x, gain), (centred * rstd, rstd, gain)


def own_norm_backward(residuals, dy):
    unit, rstd, gain = residuals
    g = dy * gain
    dx = rstd * (g - g.mean(-1, keepdims=True) - unit * (g * unit).mean(-1, keepdims=True))
    return dx, (dy * unit).sum(0)


own_norm.defvjp(own_norm_forward, own_norm_backward)

own_softmax = rule(lambda x: (jax.nn.softmax(x),) * 2, lambda y, dy: (y * (dy - (y * dy).sum(-1, keepdims=True)),))

own_relu = rule(lambda x: (jnp.maximum(x, 0), x > 0), lambda on, dy: (dy * on,))

own_cost = rule(
    lambda x, t: ((logsumexp(x, axis=-1) - (x * t).sum(-1)).mean(), (x, t)),
    lambda r, dy: ((jax.nn.softmax(r[0]) - r[1]) * dy / len(r[0]), -r[0] * dy / len(r[0])),
)

narrow = rule(
    lambda x: (jnp.arctan(x.astype(jnp.float32)).astype(x.dtype), x),
    lambda x, dy: ((dy.astype(jnp.float32) / (1 + x.astype(jnp.float32) ** 2)).astype(x.dtype),),
)


OUTPUTS = [
    Right(
        "mean and variance, a named tuple",
        (moments, moments_backward),
        lambda x: Moments(x.mean(0), x.var(0)),
        lambda: (normal(12, 9, 3),),
        why_hard="the cotangent is a named tuple",
    ),
    Right(
        "split in three, one of them empty",
        (lambda x: ({"low": x[:, :2], "none": x[:, 2:2], "high": x[:, 2:]}, None), split_backward),
        lambda x: {"low": x[:, :2], "none": x[:, 2:2], "high": x[:, 2:]},
        lambda: (normal(13, 4, 5),),
        why_hard="an output without entries",
    ),
    Right(
        "the three largest and where they are",
        (largest_forward, largest_backward),
        lambda x: jax.lax.top_k(x, 3),
        lambda: (normal(14, 5, 7),),
        why_hard="an integer output, without cotangent",
    ),
    Right(
        "the peak and where it is",
        rule(peak_forward, peak_backward),
        lambda x: {"index": jnp.argmax(x, -1), "value": x.max(-1)},
        lambda: (normal(15, 5, 7),),
        why_hard="an integer output first, float0 for its cotangent",
    ),
    Right(
        "a branch by the sum",
        (lambda x, w: (branch(x, w), (x, w)), branched_backward),
        lambda x, w: jnp.where(x.sum() > 0, jnp.sin(x), jnp.cos(x)) @ w,
        **drawn(lambda seed: (normal(seed, 4, 5, shift=(-1) ** seed), normal(seed + 1, 5, 3))),
        why_hard="cond, which vmap turns into select",
    ),
    Right(
        "four steps of a loop",
        looped,
        lambda x, w: looped_forward(x, w)[0],
        lambda: (normal(16, 3, 4), normal(17, 4, 4)),
    ),
    Right(
        "four steps of a loop, a scan backwards",
        rule(looped_forward, looped_backward),
        looped,
        lambda: (normal(18, 3, 4), normal(19, 4, 4)),
        why_hard="the residual is a stack of states",
    ),
    Right(
        "rows by lax.map",
        (lambda x: (mapped(x), x), mapped_backward),
        jax.vmap(lambda r: jnp.cumsum(r) * r[0]),
        lambda: (normal(20, 4, 6),),
    ),
    Right(
        "a switch by an integer",
        (lambda x, which: (switched(x, which), (x, which)), switched_backward),
        lambda x, which: jnp.stack([jnp.sin(x), jnp.cos(x), x * x])[which],
        **drawn(lambda seed: (normal(seed, 4, 5), integers(seed, high=3))),
        why_hard="the integer must stay in range",
    ),
    Right(
        "layer norm, no reference",
        own_norm,
        None,
        **drawn(lambda seed: (normal(seed, 5, 8), normal(seed + 1, 8))),
        why_hard="its own primal",
    ),
    Right("softmax, no reference", own_softmax, None, lambda: (normal(23, 4, 7),), why_hard="its own primal"),
    Right("relu, no reference, zeros", own_relu, None, lambda: (steps(24, 4, 7),), why_hard="autodiff has 1/2 at zero"),
    Right(
        "cross-entropy of soft labels, no reference",
        own_cost,
        None,
        lambda: (normal(25, 4, 5), jax.nn.softmax(normal(26, 4, 5))),
        why_hard="labels have a gradient too",
    ),
    Right(
        "arctan in float32, no reference", narrow, None, lambda: (normal(27, 4, 5),), why_hard="the primal is float32"
    ),
    Right(
        "pair without a reference",
        (lambda x: (jnp.log1p(x * x), x), lambda x, dy: (2 * dy * x / (1 + x * x),)),
        None,
        lambda: (normal(28, 4, 5),),
        why_hard="the primal is the pair's forward",
    ),
    Right(
        "function without a rule nor a reference", jax.nn.silu, None, lambda: (normal(29, 4, 5),), why_hard="trivial"
    ),
]
