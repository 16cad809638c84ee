"""Right though no slope of the values (surrogates), and right though not linear in the cotangent."""

import jax
import jax.numpy as jnp

from .right_case import Right, drawn, integers, normal, rule

col = lambda x: x[..., None]
stop = jax.lax.stop_gradient
SURROGATE = {"surrogate": True}
CLIPPED = {"nonlinear_cotangent": True}


def binarised_backward(x, dy):
    return (jnp.where(jnp.abs(x) <= 1, dy, 0),)


def gumbel_softmax(x, key):
    noise = jax.random.gumbel(key, x.shape, jnp.float32).astype(x.dtype)
    return jax.nn.softmax((x + noise) / 0.5)


def hard(y):
    return jax.nn.one_hot(jnp.argmax(y, -1), y.shape[-1], dtype=y.dtype)


def gumbel_forward(x, key):
    y = gumbel_softmax(x, key)
    return hard(y), y


def gumbel_backward(y, dy):
    return 2 * y * (dy - (y * dy).sum(-1, keepdims=True)), None


def gumbel(x, key):
    y = gumbel_softmax(x, key)
    return y + stop(hard(y) - y)


def nearest(x, codes):
    return codes[jnp.argmin(((x[:, None] - codes) ** 2).sum(-1), -1)]


def fake_quantised(x, scale):
    v = jnp.clip(x / scale, -8, 7)
    return (v + stop(jnp.round(v) - v)) * scale


def fake_quantised_forward(x, scale):
    return jnp.clip(jnp.round(x / scale), -8, 7) * scale, (x, scale)


def fake_quantised_backward(residuals, dy):
    x, scale = residuals
    v = stop(x / scale)
    inside = (v > -8) & (v < 7)
    return jnp.where(inside, dy, 0), (dy * jnp.where(inside, jnp.round(v) - v, jnp.clip(v, -8, 7))).sum()


def spectral(w):
    """The largest singular value by power iteration, whose vectors are held fixed."""
    v = jnp.ones(w.shape[1], w.dtype)
    for _ in range(30):
        u = w @ v / jnp.linalg.norm(w @ v)
        v = w.T @ u / jnp.linalg.norm(w.T @ u)
    return stop(u), stop(v)


def spectral_forward(w):
    u, v = spectral(w)
    return u @ w @ v, (u, v)


def reinforced_backward(residuals, dy):
    x, index, reward = residuals
    gap = jax.nn.one_hot(index, x.shape[-1], dtype=x.dtype) - jax.nn.softmax(x)
    return col(dy * stop(reward)) * gap, None, jnp.zeros_like(reward)


def reinforced(x, index, reward):
    return stop(reward) * jax.vmap(lambda r, i: r[i])(jax.nn.log_softmax(x), index)


def with_cotangent(forward, change):
    """A reference whose own custom_vjp changes the cotangent before autodiff goes on."""
    gate = rule(lambda y: (y, None), lambda _, dy: (change(dy),))
    return lambda *args: gate(forward(*args))


def clipped_norm(dy):
    return dy * jnp.minimum(1, 0.5 / jnp.sqrt((dy * dy).sum() + 1e-12))


def row_normed(dy):
    return dy / jnp.sqrt((dy * dy).sum(-1, keepdims=True) + 1e-6)


def coarse(dy):
    return jax.lax.reduce_precision(dy, exponent_bits=8, mantissa_bits=7)


def dense_forward(x, w):
    return x @ w, (x, w)


def joint_backward(residuals, dy):
    """Both gradients, cut to a joint norm of one."""
    x, w = residuals
    dx, dw = dy @ w.T, x.T @ dy
    cut = jnp.minimum(1, 1 / jnp.sqrt((dx * dx).sum() + (dw * dw).sum() + 1e-12))
    return cut * dx, cut * dw


def joint_by_autodiff(residuals, dy):
    gradients = jax.vjp(jnp.dot, *residuals)[1](dy)
    norm = jnp.sqrt(sum((g * g).sum() for g in gradients) + 1e-12)
    return tuple(g / jnp.maximum(norm, 1) for g in gradients)


SURROGATES = [
    Right(
        "round, straight through",
        rule(lambda x: (jnp.round(x), None), lambda _, dy: (dy,)),
        lambda x: x + stop(jnp.round(x) - x),
        lambda: (normal(0, 4, 6, scale=3),),
        SURROGATE,
        "the values are flat",
    ),
    Right(
        "round, straight through, a pair",
        (lambda x: (jnp.round(x), None), lambda _, dy: (dy,)),
        lambda x: x + stop(jnp.round(x) - x),
        lambda: (normal(1, 4, 6, scale=3),),
        {"surrogate": True, "order": 1},
        "a pair's values have no rule for a second derivative",
    ),
    Right(
        "gradient reversal",
        rule(lambda x: (x, None), lambda _, dy: (-dy / 4,)),
        lambda x: stop(1.25 * x) - 0.25 * x,
        lambda: (normal(2, 4, 6),),
        SURROGATE,
        "the gradient points backwards",
    ),
    Right(
        "gradient reversal by a learnt factor, a pair",
        (lambda x, f: (x, f), lambda f, dy: (-f * dy, jnp.zeros_like(f))),
        lambda x, f: stop(x) - f * (x - stop(x)),
        lambda: (normal(3, 4, 6), jnp.float32(0.5)),
        {"surrogate": True, "order": 1},
        "the factor has no gradient on purpose",
    ),
    Right(
        "squared distance to a target that is held",
        rule(
            lambda x, t: (((x - t) ** 2).mean(), (x, t)),
            lambda r, dy: (2 * dy * (r[0] - stop(r[1])) / r[0].size, jnp.zeros_like(r[1])),
        ),
        lambda x, t: jax.vmap(lambda x, t: (x - stop(t)) ** 2)(x, t).mean(),
        lambda: (normal(4, 4, 6), normal(5, 4, 6)),
        SURROGATE,
        "the target moves the value and has no gradient",
    ),
    Right(
        "one of several by Gumbel, straight through",
        rule(gumbel_forward, gumbel_backward),
        gumbel,
        lambda: (normal(6, 5, 4), jax.random.key(3)),
        SURROGATE,
        "the value is one-hot, the gradient the softmax's",
    ),
    Right(
        "sign, straight through inside [-1, 1]",
        rule(lambda x: (jnp.sign(x), x), binarised_backward),
        lambda x: jnp.clip(x, -1, 1) + stop(jnp.sign(x) - jnp.clip(x, -1, 1)),
        lambda: (normal(7, 4, 6, scale=1.5),),
        SURROGATE,
        "a surrogate with kinks",
    ),
    Right(
        "nearest code, straight through",
        rule(lambda x, codes: (nearest(x, codes), codes), lambda codes, dy: (dy, jnp.zeros_like(codes))),
        lambda x, codes: x + stop(nearest(x, codes) - x),
        **drawn(lambda seed: (normal(seed, 6, 3), normal(seed + 1, 4, 3)), **SURROGATE),
        why_hard="the gradient passes a lookup by",
    ),
    Right(
        "four bits with a learnt step",
        rule(fake_quantised_forward, fake_quantised_backward),
        fake_quantised,
        **drawn(lambda seed: (normal(seed, 4, 9), jnp.float32(0.25)), **SURROGATE),
        why_hard="the step's gradient holds the rounding error",
    ),
    Right(
        "division by a norm that is held",
        rule(
            lambda x: (
                x / jnp.linalg.norm(x, axis=-1, keepdims=True),
                stop(jnp.linalg.norm(x, axis=-1, keepdims=True)),
            ),
            lambda n, dy: (dy / n,),
        ),
        lambda x: x / stop(jnp.linalg.norm(x, axis=-1, keepdims=True)),
        **drawn(lambda seed: (normal(seed, 4, 6),), **SURROGATE),
        why_hard="the gradient is not orthogonal to the value",
    ),
    Right(
        "spectral norm, its vectors held",
        rule(spectral_forward, lambda uv, dy: (dy * jnp.outer(*uv),)),
        lambda w: stop(spectral(w)[0]) @ w @ stop(spectral(w)[1]),
        **drawn(lambda seed: (normal(seed, 5, 4).at[0, 0].add(4),), **SURROGATE),
        why_hard="a value by iteration and the gradient of its last step",
    ),
    Right(
        "log-likelihood times a reward that is held",
        rule(lambda x, index, reward: (reinforced(x, index, reward), (x, index, reward)), reinforced_backward),
        reinforced,
        **drawn(lambda seed: (normal(seed, 5, 4), integers(seed, 5, high=4), normal(seed + 1, 5)), **SURROGATE),
        why_hard="the reward moves the value and has no gradient",
    ),
]

NONLINEAR = [
    Right(
        "cotangent clipped to 0.3",
        rule(lambda x: (x, None), lambda _, dy: (jnp.maximum(jnp.minimum(dy, 0.3), -0.3),)),
        with_cotangent(lambda x: x, lambda dy: jnp.clip(dy, -0.3, 0.3)),
        lambda: (normal(8, 4, 6),),
        CLIPPED,
        "not linear in the cotangent",
    ),
    Right(
        "sine, its cotangent clipped, a pair",
        (lambda x: (jnp.sin(x), x), lambda x, dy: (jnp.clip(dy, -0.3, 0.3) * jnp.cos(x),)),
        with_cotangent(jnp.sin, lambda dy: jnp.minimum(jnp.maximum(dy, -0.3), 0.3)),
        lambda: (normal(9, 4, 6),),
        {"nonlinear_cotangent": True, "order": 1},
        "not linear in the cotangent",
    ),
    Right(
        "cotangent of norm 0.5 at most",
        rule(lambda x: (x, None), lambda _, dy: (dy / jnp.maximum(2 * jnp.sqrt((dy * dy).sum() + 1e-12), 1),)),
        with_cotangent(lambda x: x, clipped_norm),
        lambda: (normal(10, 4, 6),),
        CLIPPED,
        "every entry depends on every cotangent",
    ),
    Right(
        "dense, both gradients cut to a joint norm",
        (dense_forward, joint_backward),
        rule(dense_forward, joint_by_autodiff),
        **drawn(lambda seed: (normal(seed, 4, 6), normal(seed + 1, 6, 3)), nonlinear_cotangent=True, order=1),
        why_hard="the gradient of one argument depends on the other's",
    ),
    Right(
        "tanh, its cotangent normed by rows",
        rule(
            lambda x: (jnp.tanh(x),) * 2,
            lambda y, dy: (dy * jax.lax.rsqrt((dy * dy).sum(-1, keepdims=True) + 1e-6) * (1 - y * y),),
        ),
        with_cotangent(jnp.tanh, row_normed),
        lambda: (normal(13, 4, 6),),
        {"nonlinear_cotangent": True, "order": 1},
        "of degree zero in the cotangent",
    ),
    Right(
        "signs of the cotangent",
        (lambda x: (x * x, x), lambda x, dy: (2 * x * jnp.sign(dy),)),
        with_cotangent(
            lambda x: x * x, lambda dy: jnp.where(dy > 0, 1.0, jnp.where(dy < 0, -1.0, 0.0)).astype(dy.dtype)
        ),
        lambda: (normal(14, 4, 6),),
        {"nonlinear_cotangent": True, "order": 1},
        "jumps at a cotangent of zero",
    ),
    Right(
        "cotangent rounded to bfloat16",
        (dense_forward, lambda r, dy: (coarse(dy) @ r[1].T, r[0].T @ coarse(dy))),
        with_cotangent(lambda x, w: x @ w, coarse),
        lambda: (normal(15, 4, 6), normal(16, 6, 3)),
        {"nonlinear_cotangent": True, "order": 1},
        "a staircase in the cotangent",
    ),
]
