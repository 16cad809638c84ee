"""Right for arguments of every kind: integers, keys, missing leaves, nothing at all, scalars, mixed types, large arrays."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.dtypes import float0
from jax.scipy.special import logsumexp

from .right_case import Right, dot, drawn, integers, normal, picked, rule, uniform, wide

col = lambda x: x[..., None]
zero = lambda x: np.zeros(np.shape(x), float0)


class Layer(NamedTuple):
    weight: jax.Array
    bias: jax.Array | None
    steps: jax.Array


def cost(logits, labels):
    """Mean cross-entropy; a label of -1 is left out."""
    kept = labels >= 0
    each = -picked(jax.nn.log_softmax(logits), jnp.maximum(labels, 0))
    return jnp.where(kept, each, 0).sum() / jnp.maximum(kept.sum(), 1)


def cost_forward(logits, labels):
    kept = labels >= 0
    each = logsumexp(logits, axis=-1) - picked(logits, jnp.maximum(labels, 0))
    count = jnp.maximum(kept.sum(), 1)
    return jnp.where(kept, each, 0).sum() / count, (logits, labels, count)


def cost_backward(residuals, dy):
    logits, labels, count = residuals
    gap = jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return gap * (col(labels >= 0) * dy / count), None


def labelled(seed):
    return normal(seed, 6, 5), integers(seed, 6, high=5).at[seed % 6].set(-1)


def dense_forward(params, x):
    y = x @ params["weight"]
    return y if params["bias"] is None else y + params["bias"], (params, x)


def dense_backward(residuals, dy):
    params, x = residuals
    bias = None if params["bias"] is None else dy.sum(0)
    return {"weight": x.T @ dy, "bias": bias}, dy @ params["weight"].T


def stack(tree, x):
    for layer in tree["layers"]:
        x = jnp.tanh(x @ layer.weight + (0 if layer.bias is None else layer.bias))
    return {"out": x * tree["scale"], "parts": (x.sum(), [x.mean(0)])}


def stack_forward(tree, x):
    seen = [x]
    for layer in tree["layers"]:
        x = jnp.tanh(x @ layer.weight + (0 if layer.bias is None else layer.bias))
        seen.append(x)
    return {"out": x * tree["scale"], "parts": (x.sum(), [x.mean(0)])}, (tree, seen)


def stack_backward(residuals, dy):
    tree, seen = residuals
    last = seen[-1]
    total, (mean,) = dy["parts"]
    g = dy["out"] * tree["scale"] + total + mean / len(last)
    layers = []
    for layer, x, y in reversed(list(zip(tree["layers"], seen, seen[1:], strict=False))):
        g = g * (1 - y * y)
        layers.append(Layer(x.T @ g, None if layer.bias is None else g.sum(0), zero(layer.steps)))
        g = g @ layer.weight.T
    return {"layers": layers[::-1], "scale": (dy["out"] * last).sum()}, g


def stack_arguments():
    layers = [
        Layer(normal(0, 3, 4), normal(1, 4), jnp.arange(3, dtype=jnp.int32)),
        Layer(normal(2, 4, 2), None, jnp.zeros((), jnp.int32)),
    ]
    return {"layers": layers, "scale": jnp.float32(1.5)}, normal(3, 5, 3)


def dropped(x, key, rate=0.25):
    kept = jax.random.uniform(key, x.shape, jnp.float32) >= rate
    return jnp.where(kept, x / (1 - rate), 0)


def dropout_forward(x, key):
    return dropped(x, key), dropped(jnp.ones_like(x), key) > 0


def noisy_forward(key, x, spread):
    noise = jax.random.normal(key, x.shape, jnp.float32).astype(x.dtype)
    return x + jnp.exp(spread) * noise, (key, spread)


def noisy_backward(residuals, dy):
    key, spread = residuals
    noise = jax.random.normal(key, dy.shape, jnp.float32).astype(dy.dtype)
    return zero(key), dy, (dy * noise).sum(0) * jnp.exp(spread)


def masked_mean(x, lengths):
    there = jnp.arange(x.shape[1]) < lengths[:, None]
    return jnp.where(col(there), x, 0).sum(1) / jnp.maximum(lengths, 1)[:, None]


def masked_mean_backward(residuals, dy):
    x, lengths = residuals
    there = jnp.arange(x.shape[1]) < lengths[:, None]
    share = dy / jnp.maximum(lengths, 1)[:, None]
    return jnp.where(col(there), share[:, None], 0).astype(x.dtype), None


def inference_norm(x, mean, var, gain):
    return (x - mean) * jax.lax.rsqrt(var + 1e-5) * gain


def inference_backward(residuals, dy):
    x, mean, var, gain = residuals
    rstd = jax.lax.rsqrt(var + 1e-5)
    frozen = jnp.zeros_like(mean)
    return dy * rstd * gain, frozen, frozen, (dy * (x - mean) * rstd).sum(0)


def statistics(seed):
    return normal(seed, 6, 4), normal(seed + 1, 4), uniform(seed + 2, 4, low=0.5, high=2), normal(seed + 3, 4)


def gate(x, k=2):
    """The softmax of the k largest, zero elsewhere."""
    low = jax.lax.top_k(x, k)[0][..., -1:]
    return jax.nn.softmax(jnp.where(x >= low, x, -jnp.inf))


def mixed_forward(x, w, b):
    return dot("nk,km->nm", x, w) + b, (x, w, b)


def mixed_backward(residuals, dy):
    x, w, b = residuals
    dx, dw = dot("nm,km->nk", dy, w), dot("nk,nm->km", x, dy)
    return dx.astype(x.dtype), dw.astype(w.dtype), dy.sum(0).astype(b.dtype)


def scaled_mean_forward(x, weight, power):
    return weight * (x * x).mean() + power * x.sum(), (x, weight, power)


def scaled_mean_backward(residuals, dy):
    x, weight, power = residuals
    return dy * (2 * weight * x / x.size + power), dy * (x * x).mean(), dy * x.sum()


def masked_square_backward(residuals, dy):
    x, mask = residuals
    return 2 * dy * x * mask, jnp.zeros_like(mask)  # mask * mask is mask: it is 0 or 1


def quantised_forward(x, q, scale):
    return x @ (q.astype(x.dtype) * scale), (x, q, scale)


def quantised_backward(residuals, dy):
    x, q, scale = residuals
    w = q.astype(x.dtype)
    return (dy * scale) @ w.T, None, ((x @ w) * dy).sum(0)


def swish_backward(x, dy):
    z, g = wide(x), wide(dy)
    s = jax.nn.sigmoid(z)
    return ((g * s * (1 + z * (1 - s))).astype(x.dtype),)


zeros = jnp.zeros_like
embed = rule(
    lambda table, ids: (table[ids], (table, ids)),
    lambda r, dy: (zeros(r[0]).at[r[1]].add(dy), zero(r[1])),
)

ARGUMENTS = [
    Right(
        "labels, one of them -1",
        (cost_forward, cost_backward),
        cost,
        **drawn(labelled),
        why_hard="a label outside of its range means: leave out",
    ),
    Right(
        "labels, all of them -1",
        rule(cost_forward, cost_backward),
        cost,
        lambda: (normal(1, 4, 5), jnp.full(4, -1, jnp.int32)),
        why_hard="the cost is constant: every gradient is zero",
    ),
    Right(
        "embedding, float0 for the ids",
        embed,
        lambda table, ids: jax.nn.one_hot(ids, len(table), dtype=table.dtype) @ table,
        **drawn(lambda seed: (normal(seed, 5, 3), integers(seed, 4, 2, high=5))),
        why_hard="float0 instead of None; rows that no id names",
    ),
    Right(
        "select by a bool",
        (lambda on, a, b: (jnp.where(on, a, b), on), lambda on, dy: (None, jnp.where(on, dy, 0), jnp.where(on, 0, dy))),
        jax.vmap(lambda on, a, b: on * a + (1 - on) * b),
        lambda: (normal(2, 4, 5) > 0, normal(3, 4, 5), normal(4, 4, 5)),
        why_hard="the first argument has no gradient",
    ),
    Right(
        "dropout, a typed key",
        (dropout_forward, lambda kept, dy: (jnp.where(kept, dy / 0.75, 0), None)),
        dropped,
        lambda: (normal(5, 6, 5), jax.random.key(7)),
        why_hard="random, but a function of its key",
    ),
    Right(
        "dropout, a raw key, recomputed",
        rule(lambda x, key: (dropped(x, key), key), lambda key, dy: (dropped(dy, key), None)),
        dropped,
        lambda: (normal(6, 6, 5), jnp.array([3, 4], jnp.uint32)),
        why_hard="the residual is a uint32 key",
    ),
    Right(
        "noise of a learnt spread, a typed key, float0",
        rule(noisy_forward, noisy_backward),
        lambda key, x, spread: noisy_forward(key, x, spread)[0],
        lambda: (jax.random.key(1), normal(7, 6, 3), normal(8, 3)),
        why_hard="the key comes first, and is a residual",
    ),
    Right(
        "dense with a bias that is None",
        (dense_forward, dense_backward),
        lambda params, x: jnp.dot(x, params["weight"]),
        lambda: ({"weight": normal(9, 4, 3), "bias": None}, normal(10, 5, 4)),
        why_hard="None is a leaf that is not there",
    ),
    Right(
        "layers in a dict of a list of named tuples",
        rule(stack_forward, stack_backward),
        stack,
        stack_arguments,
        why_hard="None, integers and a scalar among the parameters; a dict of a tuple of a list comes out",
    ),
    Right(
        "dense on no rows",
        (lambda x, w: (x @ w, (x, w)), lambda r, dy: (dy @ r[1].T, r[0].T @ dy)),
        lambda x, w: jnp.dot(x, w),
        lambda: (jnp.zeros((0, 4), jnp.float32), normal(11, 4, 3)),
        why_hard="an empty batch: the weight gradient is zero",
    ),
    Right(
        "concatenation with nothing",
        (
            lambda a, b: (jnp.concatenate([a, b], -1), (a, b)),
            lambda r, dy: (dy[..., : r[0].shape[-1]], dy[..., r[0].shape[-1] :]),
        ),
        lambda a, b: jnp.concatenate([a, b], -1),
        lambda: (normal(12, 4, 3), jnp.zeros((4, 0), jnp.float32)),
        why_hard="an empty argument, an empty gradient",
    ),
    Right(
        "Python floats",
        (scaled_mean_forward, scaled_mean_backward),
        lambda x, weight, power: weight * (x**2).sum() / x.size + (power * x).sum(),
        lambda: (normal(13, 4, 5), 0.5, -2.0),
        why_hard="two arguments are no arrays",
    ),
    Right(
        "arrays without axes",
        rule(lambda a, b: (a * jnp.sin(b), (a, b)), lambda r, dy: (dy * jnp.sin(r[1]), dy * r[0] * jnp.cos(r[1]))),
        lambda a, b: a * jnp.sin(b),
        lambda: (jnp.float32(0.7), jnp.float32(-1.2)),
        why_hard="no row, no batch",
    ),
    Right(
        "an integer among the factors",
        (lambda x, n: (x * n, n), lambda n, dy: (dy * n, None)),
        lambda x, n: x * n,
        lambda: (normal(14, 5, 2), 3),
        why_hard="a Python int",
    ),
    Right(
        "bfloat16 activations, float32 weights",
        (mixed_forward, mixed_backward),
        lambda x, w, b: x @ w + b,
        lambda: (normal(15, 6, 32, dtype=jnp.bfloat16), normal(16, 32, 4), normal(17, 4)),
        why_hard="each gradient has the type of its argument",
    ),
    Right(
        "float32 activations, float16 weights, bfloat16 bias",
        rule(mixed_forward, mixed_backward),
        lambda x, w, b: x @ w + b,
        lambda: (normal(18, 40, 16), normal(19, 16, 4, dtype=jnp.float16), normal(20, 4, dtype=jnp.bfloat16)),
        why_hard="three types",
    ),
    Right(
        "an unused argument, zeros",
        (lambda x, w: (jnp.sin(x), (x, w)), lambda r, dy: (dy * jnp.cos(r[0]), jnp.zeros_like(r[1]))),
        lambda x, w: jnp.sin(x),
        lambda: (normal(21, 4, 3), normal(22, 5)),
        why_hard="a gradient of zeros is right",
    ),
    Right(
        "an unused argument, None from a custom_vjp",
        rule(lambda x, w: (jnp.sin(x), x), lambda x, dy: (dy * jnp.cos(x), None)),
        lambda x, w: jnp.sin(x),
        lambda: (normal(23, 4, 3), normal(24, 5)),
        why_hard="JAX reads None as zeros",
    ),
    Right(
        "mean up to a length",
        (lambda x, n: (masked_mean(x, n), (x, n)), masked_mean_backward),
        masked_mean,
        **drawn(lambda seed: (normal(seed, 4, 6, 2), integers(seed, 4, high=7).at[0].set(0))),
        why_hard="a length of zero",
    ),
    Right(
        "frozen statistics",
        (lambda *args: (inference_norm(*args), args), inference_backward),
        inference_norm,
        **drawn(statistics, argnums=(0, 3)),
        why_hard="zeros on purpose, for arguments that are not judged",
    ),
    Right(
        "top-2 gate",
        rule(lambda x: (gate(x),) * 2, lambda y, dy: (y * (dy - (y * dy).sum(-1, keepdims=True)),)),
        gate,
        **drawn(lambda seed: (normal(seed, 5, 6),)),
        why_hard="jumps where the third overtakes the second",
    ),
    Right(
        "mask of zeros and ones, in floats",
        (lambda x, mask: (x * x * mask * mask, (x, mask)), masked_square_backward),
        lambda x, mask: x * x * mask,
        **drawn(lambda seed: (normal(seed, 4, 6), (normal(seed + 1, 4, 6) > 0).astype(jnp.float32)), argnums=0),
        why_hard="right for masks alone, and for the first argument",
    ),
    Right(
        "mask by a float compared",
        (lambda x, m: (jnp.where(m > 0.5, x, 0), m), lambda m, dy: (jnp.where(m > 0.5, dy, 0), jnp.zeros_like(m))),
        jax.vmap(lambda x, m: x * (m > 0.5)),
        lambda: (normal(25, 4, 6), (normal(26, 4, 6) > 0).astype(jnp.float32)),
        why_hard="a float that has a zero gradient",
    ),
    Right(
        "int8 weights with scales",
        (quantised_forward, quantised_backward),
        lambda x, q, scale: (x @ q.astype(x.dtype)) * scale,
        lambda: (normal(27, 5, 16), integers(28, 16, 3, low=-127, high=128, dtype=jnp.int8), uniform(29, 3, high=0.1)),
        why_hard="int8 has no gradient, its scale has",
    ),
    Right(
        "uint8 picture through a matrix",
        (
            lambda image, w: ((image.astype(w.dtype) / 255) @ w, image),
            lambda image, dy: (None, (image.astype(dy.dtype) / 255).T @ dy),
        ),
        lambda image, w: image.astype(w.dtype) @ w / 255,
        lambda: (integers(30, 6, 12, high=256, dtype=jnp.uint8), normal(31, 12, 3)),
        why_hard="the data has no gradient at all",
    ),
    Right(
        "swish of 2e5, bfloat16",
        (lambda x: (jax.nn.swish(wide(x)).astype(x.dtype), x), swish_backward),
        jax.nn.swish,
        lambda: (normal(32, 400, 500, dtype=jnp.bfloat16),),
        why_hard="large: an oracle that loops takes forever",
    ),
    Right(
        "mean square of 1e6",
        (lambda x: ((x * x).mean(), x), lambda x, dy: (2 * x / x.size * dy,)),
        lambda x: (x * x).sum() / x.size,
        lambda: (normal(33, 1_000_000),),
        why_hard="gradients of a millionth",
    ),
    Right(
        "embedding out of 4e5 numbers",
        embed,
        lambda table, ids: jnp.take(table, ids, 0),
        **drawn(lambda seed: (normal(34, 50_000, 8), integers(seed, 30, high=50_000))),
        why_hard="all but thirty rows have no gradient",
    ),
]
