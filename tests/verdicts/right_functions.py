"""Right as functions of every make: custom_jvp, jit, nested rules, implicit derivatives, callables."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from .right_case import Right, drawn, normal, rule, uniform


@jax.custom_jvp
def log1pexp(x):
    return jnp.logaddexp(x, 0)


log1pexp.defjvps(lambda t, y, x: t * jax.nn.sigmoid(x))


@jax.custom_jvp
def safe_norm(x):
    return jnp.sqrt((x * x).sum(-1))


@safe_norm.defjvp
def safe_norm_jvp(primals, tangents):
    (x,), (t,) = primals, tangents
    y = safe_norm(x)
    return y, (x * t).sum(-1) / jnp.where(y > 0, y, 1)


jitted = jax.jit(rule(lambda x: (jnp.tanh(x),) * 2, lambda y, dy: (dy * (1 - y * y),)))


@jax.custom_vjp
def sine(x):
    return jnp.sin(x)


@jax.custom_vjp
def cosine(x):
    return jnp.cos(x)


sine.defvjp(lambda x: (sine(x), x), lambda x, dy: (dy * cosine(x),))

cosine.defvjp(lambda x: (cosine(x), x), lambda x, dy: (-dy * sine(x),))


@jax.custom_vjp
def product(a, b):
    return a @ b


product.defvjp(lambda a, b: (product(a, b), (a, b)), lambda r, dy: (product(dy, r[1].T), product(r[0].T, dy)))


@jax.custom_vjp
def newton_root(x):
    """A square root by a while loop, which JAX cannot transpose; the rule calls itself."""
    step = lambda state: ((state[0] + x / state[0]) / 2, state[1] + 1)
    start = jnp.maximum(x, 1), jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(lambda state: state[1] < 40, step, start)[0]


def newton_root_forward(x):
    y = newton_root(x)
    return y, y


newton_root.defvjp(newton_root_forward, lambda y, dy: (dy / (2 * y),))


@jax.custom_vjp
def settled(w, x):
    """The z with z = tanh(z w) / 2 + x, by iteration."""
    return jax.lax.while_loop(
        lambda state: state[1] < 60,
        lambda state: (jnp.tanh(state[0] @ w) / 2 + x, state[1] + 1),
        (x, jnp.zeros((), jnp.int32)),
    )[0]


def settled_forward(w, x):
    z = settled(w, x)
    return z, (w, z)


def settled_backward(residuals, dy):
    """Of g = dy + (g s) w^T, s the slope, solved for g row by row."""
    w, z = residuals
    slope = (1 - jnp.tanh(z @ w) ** 2) / 2
    eye = jnp.eye(len(w), dtype=w.dtype)
    g = jax.vmap(lambda s, d: jnp.linalg.solve(eye - w * s, d))(slope, dy)
    return z.T @ (g * slope), g


settled.defvjp(settled_forward, settled_backward)


def unrolled(w, x):
    z = x
    for _ in range(60):
        z = jnp.tanh(z @ w) / 2 + x
    return z


def settled_arguments(seed):
    return normal(seed, 4, 4, scale=0.2), normal(seed + 1, 3, 4)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def power(n, x):
    return x**n


power.defvjp(lambda n, x: (power(n, x), x), lambda n, x, dy: (n * dy * x ** (n - 1),))


@jax.custom_vjp
def lazy(x, w):
    return jnp.sin(x), x * w


def lazy_forward(x, w):
    return lazy(x.value, w.value), (x.value, w.value)


def lazy_backward(residuals, dys):
    x, w = residuals
    first, second = (jnp.zeros_like(x) if type(dy) is SymbolicZero else dy for dy in dys)
    return first * jnp.cos(x) + second * w, (second * x).sum(0)


lazy.defvjp(lazy_forward, lazy_backward, symbolic_zeros=True)


class Scaled:
    """A callable object."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x, *, shift=0.5):
        return self.factor * sine(x + shift)


constant = normal(99, 5, 3)


FUNCTIONS = [
    Right("softplus by custom_jvp", log1pexp, jax.nn.softplus, lambda: (normal(0, 4, 8, scale=20),)),
    Right(
        "norm by custom_jvp",
        safe_norm,
        lambda x: jnp.linalg.norm(x, axis=-1),
        **drawn(lambda seed: (normal(seed, 4, 5),)),
        why_hard="a rule for tangents, transposed",
    ),
    Right("tanh, its rule inside a jit", jitted, jnp.tanh, lambda: (normal(1, 4, 8),), why_hard="a jitted custom_vjp"),
    Right(
        "sine, whose slope has a rule of its own", sine, jnp.sin, lambda: (normal(2, 4, 8),), why_hard="rules of rules"
    ),
    Right(
        "matmul that is its own backward",
        product,
        jnp.dot,
        lambda: (normal(3, 4, 6), normal(4, 6, 3)),
        why_hard="the backward calls the rule, without end",
    ),
    Right(
        "root by a while loop",
        newton_root,
        jnp.sqrt,
        **drawn(lambda seed: (uniform(seed, 4, 5, low=0.01, high=100),)),
        why_hard="the loop has no derivative; the second one goes through the rule again",
    ),
    Right(
        "fixed point by a while loop",
        settled,
        unrolled,
        **drawn(settled_arguments),
        why_hard="an implicit derivative, twice",
    ),
    Right("cube by nondiff_argnums", partial(power, 3), lambda x: x * x * x, lambda: (normal(5, 4, 5),)),
    Right(
        "two outputs, symbolic zeros",
        lazy,
        lambda x, w: (jnp.sin(x), x * w),
        lambda: (normal(6, 4, 5), normal(7, 5)),
        why_hard="cotangents may be SymbolicZero objects",
    ),
    Right("a callable object", Scaled(2.0), lambda x: 2 * jnp.sin(x + 0.5), lambda: (normal(8, 4, 5),)),
    Right(
        "a rule under vmap",
        jax.vmap(product, (0, None)),
        lambda a, b: jnp.stack([jnp.dot(one, b) for one in a]),
        lambda: (normal(9, 2, 3, 4), normal(10, 4, 3)),
        why_hard="the rule has been batched before it is judged",
    ),
    Right(
        "a plain function with a constant",
        lambda x: jnp.sin(x @ constant).sum(-1),
        lambda x: sum(jnp.sin((x * constant[:, i]).sum(-1)) for i in range(3)),
        lambda: (normal(11, 4, 5),),
        why_hard="no rule at all; a float32 constant in a closure",
    ),
]
