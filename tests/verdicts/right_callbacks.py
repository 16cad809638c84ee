"""Right though numpy computes it: callbacks that JAX can neither trace nor differentiate."""

import jax
import jax.numpy as jnp
import numpy as np

from .right_case import Right, drawn, integers, normal, rule, uniform


def call(function, shapes, *args, how="sequential"):
    """numpy's work on the host, which overflows in silence as JAX does."""

    def host(*args):
        with np.errstate(all="ignore"):
            return function(*map(np.asarray, args))

    return jax.pure_callback(host, shapes, *args, vmap_method=how)


def tanh_dense_forward(x, w):
    like = jax.ShapeDtypeStruct((len(x), w.shape[1]), x.dtype)
    y = call(lambda x, w: np.tanh(x @ w), like, x, w)
    return y, (x, w, y)


def tanh_dense_backward(residuals, dy):
    def host(x, w, y, dy):
        dz = dy * (1 - y * y)
        return dz @ w.T, x.T @ dz

    return call(host, residuals[:2], *residuals, dy)


def growth_forward(a, b):
    return call(lambda a, b: np.multiply(a, np.exp(b)), a, a, b, how="expand_dims"), (a, b)


def growth_backward(residuals, dy):
    def host(a, b, dy):
        a, b, dy = np.broadcast_arrays(a, b, dy)  # what is not mapped comes with an axis of one
        return dy * np.exp(b), dy * a * np.exp(b)

    return call(host, residuals, *residuals, dy, how="expand_dims")


def cost_forward(x, labels):
    def host(x, labels):
        e = np.exp(x - x.max(-1, keepdims=True))
        p = e / e.sum(-1, keepdims=True)
        return -np.log(p[np.arange(len(x)), labels]).mean(dtype=x.dtype), p

    y, p = call(host, (jax.ShapeDtypeStruct((), x.dtype), x), x, labels)
    return y, (p, labels)


def cost_backward(residuals, dy):
    def host(p, labels, dy):
        g = p.copy()
        g[np.arange(len(p)), labels] -= 1
        return g * (dy / len(p)).astype(p.dtype)

    return call(host, residuals[0], *residuals, dy), None


def strict(function):
    """A kernel on the host that has been compiled for float32."""

    def host(*args):
        assert all(x.dtype == np.float32 for x in args)
        return function(*args)

    return lambda *args: call(host, jax.ShapeDtypeStruct(args[0].shape, np.float32), *args, how="broadcast_all")


def strict_forward(x):
    z = x.astype(jnp.float32)
    return strict(lambda x: x / np.sqrt(1 + x * x))(z).astype(x.dtype), z


def strict_backward(z, dy):
    slope = strict(lambda z, dy: dy * (1 + z * z) ** np.float32(-1.5))
    return (slope(z, dy.astype(jnp.float32)).astype(dy.dtype),)


@jax.custom_vjp
def host_sine(x):
    return call(np.sin, x, x, how="expand_dims")


host_sine.defvjp(lambda x: (host_sine(x), x), lambda x, dy: (dy * jnp.cos(x),))


def lookup_forward(table, ids):
    like = jax.ShapeDtypeStruct((*ids.shape, table.shape[1]), table.dtype)
    return call(lambda table, ids: table[ids], like, table, ids), (table, ids)


def lookup_backward(residuals, dy):
    def host(table, ids, dy):
        g = np.zeros_like(table)
        np.add.at(g, ids, dy)
        return g

    return call(host, residuals[0], *residuals, dy), None


def recurrence(a, x):
    return jax.lax.scan(lambda h, ax: (ax[0] * h + ax[1],) * 2, jnp.zeros_like(x[0]), (a, x))[1]


def recurrence_forward(a, x):
    def host(a, x):
        h = np.zeros_like(x)
        for t in range(len(x)):
            h[t] = a[t] * h[t - 1] + x[t] if t else x[t]
        return h

    h = call(host, x, a, x)
    return h, (a, h)


def recurrence_backward(residuals, dy):
    def host(a, h, dy):
        da, dx = np.zeros_like(a), np.array(dy)
        for t in range(len(a))[:0:-1]:
            da[t] = dx[t] * h[t - 1]
            dx[t - 1] += dx[t] * a[t]
        return da, dx

    return call(host, residuals, *residuals, dy)


CALLBACKS = [
    Right(
        "tanh of a dense layer, in numpy",
        (tanh_dense_forward, tanh_dense_backward),
        lambda x, w: jnp.tanh(x @ w),
        lambda: (normal(17, 4, 6), normal(18, 6, 3)),
        {"order": 1},
        "callbacks one by one; no second derivative",
    ),
    Right(
        "a exp(b), in numpy, axes expanded",
        rule(growth_forward, growth_backward),
        jax.vmap(lambda a, b: a * jnp.exp(b)),
        lambda: (normal(19, 4, 6), normal(20, 4, 6)),
        {"order": 1},
        "what is not mapped comes with an axis of one",
    ),
    Right(
        "cross-entropy, in numpy",
        (cost_forward, cost_backward),
        lambda x, labels: -jax.vmap(lambda r, i: r[i])(jax.nn.log_softmax(x), labels).mean(),
        **drawn(lambda seed: (normal(seed, 5, 4), integers(seed, 5, high=4)), order=1),
        why_hard="a label out of range raises IndexError",
    ),
    Right(
        "a float32 kernel on the host",
        (strict_forward, strict_backward),
        lambda x: x / jnp.sqrt(1 + x * x),
        **drawn(lambda seed: (normal(seed, 4, 6),), order=1),
        why_hard="asserts float32; everything is broadcast under vmap",
    ),
    Right(
        "sine in numpy, its slope in jax",
        host_sine,
        jnp.sin,
        lambda: (normal(21, 4, 6),),
        why_hard="the values cannot be differentiated, the rule can, twice",
    ),
    Right(
        "lookup in numpy",
        (lookup_forward, lookup_backward),
        lambda table, ids: table[ids],
        **drawn(lambda seed: (normal(seed, 5, 3), integers(seed, 7, high=5)), order=1),
        why_hard="an id out of range raises IndexError",
    ),
    Right(
        "recurrence in numpy, a Python loop",
        rule(recurrence_forward, recurrence_backward),
        recurrence,
        **drawn(lambda seed: (uniform(seed, 9, 3, low=-1), normal(seed + 1, 9, 3)), order=1),
        why_hard="slow, and the gradient is written in place",
    ),
]
