"""Right at a kink, by either convention: another subgradient than the reference's is no mistake."""

import jax
import jax.numpy as jnp

from .right_case import Right, drawn, integers, normal, rule, steps, uniform


def elementwise(value, slope):
    """A pair out of a function and its slope."""
    return lambda x: (value(x), x), lambda x, dy: (dy * slope(x),)


def where(condition, a, b, x):
    return jnp.where(condition, a, b).astype(x.dtype)


def max_with(share):
    """The maximum of the last axis; share distributes its gradient over the entries that reach it."""

    def backward(x, dy):
        return (dy[..., None] * share(x == x.max(-1, keepdims=True), x.dtype),)

    return lambda x: (x.max(-1), x), backward


def last(reached, dtype):
    return jax.nn.one_hot(reached.shape[-1] - 1 - jnp.argmax(reached[..., ::-1], -1), reached.shape[-1], dtype=dtype)


def first(reached, dtype):
    return jax.nn.one_hot(jnp.argmax(reached, -1), reached.shape[-1], dtype=dtype)


def even(reached, dtype):
    return reached.astype(dtype) / reached.sum(-1, keepdims=True).astype(dtype)


def gathered_max(x):
    return jnp.take_along_axis(x, jnp.argmax(x, -1, keepdims=True), -1)[..., 0]


def larger(share):
    """The larger of two; share is what the first has of the gradient where they are equal."""

    def backward(residuals, dy):
        a, b = residuals
        left = jnp.where(a == b, share, jnp.where(a > b, 1, 0)).astype(dy.dtype)
        return dy * left, dy * (1 - left)

    return lambda a, b: (jnp.maximum(a, b), (a, b)), backward


def sort_forward(x):
    order = x.shape[-1] - 1 - jnp.argsort(x[..., ::-1], -1, stable=True)  # of equals the last comes first
    return jnp.take_along_axis(x, order, -1), order


def sort_backward(order, dy):
    return (jnp.take_along_axis(dy, jnp.argsort(order, -1), -1),)


def windows(x):
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4).reshape(n, h // 2, w // 2, c, 4)


def pool_with(share):
    def backward(w, dy):
        n, h, v, c = dy.shape
        spread = dy[..., None] * share(w == w.max(-1, keepdims=True), dy.dtype)
        return (spread.reshape(n, h, v, c, 2, 2).transpose(0, 1, 4, 2, 5, 3).reshape(n, 2 * h, 2 * v, c),)

    return lambda x: (windows(x).max(-1), windows(x)), backward


def max_pool(x):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def hinge_forward(scores, signs):
    return jnp.maximum(0, 1 - scores * signs), (scores, signs)


def hinge_backward(residuals, dy):
    scores, signs = residuals
    return -jnp.where(scores * signs <= 1, dy * signs, 0), -jnp.where(scores * signs <= 1, dy * scores, 0)


def huber(x):
    return jnp.where(jnp.abs(x) <= 1, x * x / 2, jnp.abs(x) - 0.5)


def median_forward(x):
    order = jnp.argsort(x, -1)[..., x.shape[-1] // 2]
    return jnp.take_along_axis(x, order[..., None], -1)[..., 0], (order, x)


def median_backward(residuals, dy):
    order, x = residuals
    return (dy[..., None] * jax.nn.one_hot(order, x.shape[-1], dtype=dy.dtype),)


def cancelling_relu(x, w):
    return jax.nn.relu(x @ w)


def cancelling_forward(x, w):
    half = x.shape[-1] // 2
    z = x[:, half:] @ w[half:] + x[:, :half] @ w[:half]
    return jnp.maximum(z, 0), (x, w, z > 0)


def cancelling_backward(residuals, dy):
    x, w, mask = residuals
    dz = dy * mask
    return dz @ w.T, x.T @ dz


def cancelling(seed):
    """Every sum is zero, but for the rounding: the two halves of x are equal and those of w opposite."""
    x, w = uniform(seed, 3, 8), uniform(seed + 1, 8, 4)
    return jnp.concatenate([x, x[:, ::-1]], 1), jnp.concatenate([w, -w[::-1]])


def constant_rows(seed):
    return (jnp.broadcast_to(uniform(seed, 4, 1, low=1, high=9), (4, 7)),)


def centred_relu(x):
    return jax.nn.relu(x - x.mean(-1, keepdims=True))


def centred_forward(x):
    z = x - (x / x.shape[-1]).sum(-1, keepdims=True)
    return jnp.where(z >= 0, z, 0), z >= 0


def centred_backward(mask, dy):
    dz = dy * mask
    return (dz - dz.mean(-1, keepdims=True),)


def top_two_forward(x):
    reached = jnp.argsort(-x[..., ::-1], -1, stable=True)[..., :2]
    index = x.shape[-1] - 1 - reached
    return jnp.take_along_axis(x, index, -1), (index, x)


def top_two_backward(residuals, dy):
    index, x = residuals
    return ((dy[..., None] * jax.nn.one_hot(index, x.shape[-1], dtype=dy.dtype)).sum(-2),)


def triplet(a, b, c):
    return jnp.maximum(((a - b) ** 2).sum(-1) - ((a - c) ** 2).sum(-1) + 1, 0)


def triplet_forward(a, b, c):
    y = triplet(a, b, c)
    return y, (a, b, c, y > 0)


def triplet_backward(residuals, dy):
    a, b, c, on = residuals
    g = 2 * jnp.where(on, dy, 0)[..., None]
    return g * (c - b), g * (b - a), g * (a - c)


def whole(seed):
    return tuple(steps(seed + i, 6, 3, high=1) for i in range(3))


RELU = lambda x: jnp.maximum(x, 0)

KINKS = [
    Right(
        "relu, slope 1 at zero",
        elementwise(RELU, lambda x: (x >= 0).astype(x.dtype)),
        jax.nn.relu,
        lambda: (steps(0, 4, 9),),
        why_hard="the reference has slope 0 there",
    ),
    Right(
        "relu, slope 1/2 at zero",
        elementwise(RELU, lambda x: where(x == 0, 0.5, x > 0, x)),
        jax.nn.relu,
        lambda: (steps(1, 4, 9),),
        why_hard="neither one-sided slope, but between them",
    ),
    Right(
        "relu by maximum, bfloat16",
        RELU,
        jax.nn.relu,
        lambda: (steps(2, 4, 9, dtype=jnp.bfloat16),),
        why_hard="autodiff of maximum has slope 1/2 at zero",
    ),
    Right(
        "abs, slope -1 at zero",
        rule(*elementwise(jnp.abs, lambda x: where(x > 0, 1, -1, x))),
        jnp.abs,
        lambda: (steps(3, 4, 9),),
        why_hard="another convention than the reference's",
    ),
    Right(
        "abs, slope 0 at zero",
        rule(lambda x: (jnp.abs(x), jnp.sign(x)), lambda s, dy: (dy * s,)),
        lambda x: jnp.maximum(x, -x),
        lambda: (steps(4, 4, 9),),
        why_hard="the middle of the subdifferential",
    ),
    Right(
        "clip, slope 1 at its bounds",
        elementwise(lambda x: jnp.clip(x, -1, 2), lambda x: ((x >= -1) & (x <= 2)).astype(x.dtype)),
        lambda x: jnp.clip(x, -1, 2),
        lambda: (steps(5, 4, 9),),
        why_hard="whole numbers lie on the bounds",
    ),
    Right(
        "clip, slope 0 at its bounds",
        elementwise(lambda x: jnp.clip(x, -1, 2), lambda x: ((x > -1) & (x < 2)).astype(x.dtype)),
        lambda x: jnp.where(x < -1, -1, jnp.where(x > 2, 2, x)),
        lambda: (steps(6, 4, 9),),
        why_hard="whole numbers lie on the bounds",
    ),
    Right(
        "leaky relu, slope 1 at zero",
        elementwise(lambda x: jnp.where(x > 0, x, x / 4), lambda x: where(x >= 0, 1, 0.25, x)),
        lambda x: jnp.where(x > 0, x, x / 4),
        lambda: (steps(7, 4, 9),),
        why_hard="the reference has the slope below",
    ),
    Right(
        "hard sigmoid, slope 1/6 at both kinks",
        elementwise(lambda x: jnp.clip(x / 6 + 0.5, 0, 1), lambda x: where(jnp.abs(x) <= 3, 1 / 6, 0, x)),
        lambda x: jax.nn.relu6(x + 3) / 6,
        lambda: (steps(8, 4, 9, high=4),),
        why_hard="the candidate's x / 6 + 0.5 rounds next to the kink",
    ),
    Right(
        "hard tanh of halves, float16",
        elementwise(lambda x: jnp.clip(x, -1, 1), lambda x: where(jnp.abs(x) == 1, 0.5, jnp.abs(x) < 1, x)),
        jax.nn.hard_tanh,
        lambda: (steps(9, 4, 9, dtype=jnp.float16) / 2,),
        why_hard="slope 1/2 at both bounds",
    ),
    Right("max, the first wins", max_with(first), lambda x: x.max(-1), lambda: (steps(10, 5, 8, high=2),)),
    Right("max, the last wins", max_with(last), gathered_max, lambda: (steps(11, 5, 8, high=2),)),
    Right("max, evenly split", max_with(even), gathered_max, lambda: (steps(12, 5, 8, high=2),)),
    Right(
        "max of constant rows, bfloat16, the last wins",
        max_with(last),
        lambda x: x.max(-1),
        lambda: (jnp.ones((3, 12), jnp.bfloat16),),
        why_hard="twelve equals, of which the reference gives each a twelfth",
    ),
    Right(
        "maximum of two, to the first", larger(1.0), jax.vmap(jnp.maximum), lambda: (steps(13, 4, 9), steps(14, 4, 9))
    ),
    Right(
        "maximum of two, to the second",
        rule(*larger(0.0)),
        jax.vmap(lambda a, b: b + jax.nn.relu(a - b)),
        lambda: (steps(15, 4, 9), steps(16, 4, 9)),
        why_hard="ties",
    ),
    Right(
        "sort, equals backwards",
        (sort_forward, sort_backward),
        lambda x: jnp.sort(x, -1),
        lambda: (steps(17, 4, 9, high=2),),
        why_hard="equal entries may come in any order",
    ),
    Right(
        "median of ties",
        (median_forward, median_backward),
        lambda x: jnp.sort(x, -1)[..., x.shape[-1] // 2],
        lambda: (steps(18, 6, 7, high=1),),
        why_hard="the reference may have picked another of the equals",
    ),
    Right(
        "two largest, of equals the last",
        (top_two_forward, top_two_backward),
        lambda x: jax.lax.top_k(x, 2)[0],
        lambda: (steps(19, 5, 6, high=2),),
        why_hard="ties within the two and across their border",
    ),
    Right("max pool, the last wins", pool_with(last), max_pool, lambda: (steps(20, 2, 6, 4, 2, high=1),)),
    Right("max pool, evenly split", pool_with(even), max_pool, lambda: (steps(21, 2, 4, 6, 2, high=1),)),
    Right(
        "max pool of zeros, the last wins",
        rule(*pool_with(last)),
        max_pool,
        lambda: (jnp.zeros((1, 4, 4, 2), jnp.float32),),
        why_hard="every window is a tie",
    ),
    Right(
        "hinge at the margin, slope -1",
        (hinge_forward, hinge_backward),
        jax.vmap(lambda s, t: jax.nn.relu(1 - s * t)),
        lambda: (steps(22, 12, high=2), jnp.sign(normal(23, 12))),
        why_hard="scores of exactly one",
    ),
    Right(
        "huber at its corner",
        elementwise(huber, lambda x: jnp.clip(x, -1, 1)),
        lambda x: jnp.where(jnp.abs(x) < 1, x * x / 2, jnp.abs(x) - 0.5),
        lambda: (steps(24, 4, 9),),
        why_hard="a kink in the slope: the second derivative has two values",
    ),
    Right(
        "squared relu at zero",
        elementwise(lambda x: RELU(x) ** 2, lambda x: 2 * RELU(x)),
        lambda x: jnp.where(x >= 0, x * x, 0),
        lambda: (steps(25, 4, 9),),
        why_hard="a kink in the slope: the second derivative is 0, 1 or 2",
    ),
    Right(
        "where with equal branches",
        (lambda x: (x, None), lambda _, dy: (dy,)),
        lambda x: jnp.where(x > 0, x, x),
        lambda: (steps(26, 4, 9),),
        why_hard="a kink of the formula and none of the function",
    ),
    Right(
        "sum of absolute differences of equals",
        rule(lambda a, b: (jnp.abs(a - b).sum(-1), a > b), lambda s, dy: (g := (2 * s - 1) * dy[:, None], -g)),
        jax.vmap(lambda a, b: jnp.abs(a - b).sum()),
        lambda: (steps(27, 4, 6, high=1), steps(28, 4, 6, high=1)),
        why_hard="slope -1 at zero, out of a bool",
    ),
    Right(
        "triplet loss at its margin",
        (triplet_forward, triplet_backward),
        lambda a, b, c: jax.nn.relu(1 + ((a - b) ** 2 - (a - c) ** 2).sum(-1)),
        **drawn(whole),
        why_hard="whole numbers: a third of the rows at the kink",
    ),
    Right(
        "relu of sums that cancel",
        (cancelling_forward, cancelling_backward),
        cancelling_relu,
        **drawn(cancelling),
        why_hard="whether a unit is on is decided by rounding noise",
    ),
    Right(
        "relu of centred constant rows",
        (centred_forward, centred_backward),
        centred_relu,
        **drawn(constant_rows),
        why_hard="whether a unit is on is decided by the rounding of the mean",
    ),
    Right(
        "floor, round, sign: no slope",
        rule(lambda x: (jnp.floor(x) + jnp.round(x) + jnp.sign(x), x), lambda x, dy: (jnp.zeros_like(x),)),
        lambda x: jnp.floor(x) + jnp.round(x) + jnp.sign(x),
        lambda: (normal(30, 4, 9, scale=3),),
        why_hard="zero is right, though the values move",
    ),
    Right(
        "sawtooth",
        (lambda x: (x - jnp.floor(x), None), lambda _, dy: (dy,)),
        lambda x: x % 1,
        lambda: (normal(31, 4, 9, scale=3),),
        why_hard="jumps, and slope 1 on both sides of them",
    ),
    Right(
        "maximum over segments of ties",
        (
            lambda x, ids: (jax.ops.segment_max(x, ids, 3), (x, ids, jax.ops.segment_max(x, ids, 3))),
            lambda r, dy: (
                jnp.where(r[0] == r[2][r[1]], (dy / jax.ops.segment_sum((r[0] == r[2][r[1]]) * 1.0, r[1], 3))[r[1]], 0),
                None,
            ),
        ),
        lambda x, ids: jax.vmap(lambda i: jnp.where(ids == i, x, -jnp.inf).max())(jnp.arange(3)),
        lambda: (steps(32, 20, high=1), jnp.sort(integers(33, 20, high=3))),
        why_hard="ties, evenly split over a segment",
    ),
]
