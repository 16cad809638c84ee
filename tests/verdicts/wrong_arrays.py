"""Mistakes in reductions and in moving entries: max, variance, product, concatenate, sort, where, dropout, roll."""

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import nn

from .wrong_base import Op, normal, normals, positive, positives, without

# ── Reductions ───────────────────────────────────────────────────────────────────────────────────────────────────────

MEAN = Op(
    "mean",
    lambda x: jnp.mean(x, 1),
    lambda x: (x.sum(1) / x.shape[1], x),
    lambda x, dy: (jnp.broadcast_to(dy[:, None], x.shape) / x.shape[1],),
    normals((7, 5)),
)
SUM = Op(
    "sum",
    lambda x: jnp.einsum("ij->j", x),
    lambda x: (x.sum(0), x),
    lambda x, dy: (jnp.broadcast_to(dy, x.shape),),
    normals((7, 7)),
)


def max_backward(r, dy, best=jnp.argmax):
    x, _ = r
    return (dy[:, None] * nn.one_hot(best(x, 1), x.shape[1], dtype=x.dtype),)


MAX = Op(
    "max", lambda x: jnp.max(x, 1), lambda x: (jnp.sort(x, 1)[:, -1], (x, x.max(1))), max_backward, normals((7, 5))
)
VAR = Op(
    "variance",
    lambda x: jnp.mean((x - jnp.mean(x, 1, keepdims=True)) ** 2, 1),
    lambda x: (x.var(1), x),
    lambda x, dy: (2 * dy[:, None] * (x - x.mean(1, keepdims=True)) / x.shape[1],),
    normals((7, 5), shift=1.0),
)


def std_forward(x):
    y = jnp.sqrt(x.var(1) + 1e-3)
    return y, (x, y)


def std_backward(r, dy):
    x, y = r
    return (dy[:, None] * (x - x.mean(1, keepdims=True)) / y[:, None] / x.shape[1],)


STD = Op("deviation", lambda x: (jnp.var(x, 1) + 1e-3) ** 0.5, std_forward, std_backward, normals((7, 5)))


def product_of_others(x):
    """Of every entry of a row the product of all others, without a division."""
    before = jnp.cumprod(jnp.pad(x[:, :-1], ((0, 0), (1, 0)), constant_values=1), 1)
    after = jnp.cumprod(jnp.pad(x[:, :0:-1], ((0, 0), (1, 0)), constant_values=1), 1)
    return before * after[:, ::-1]


PROD = Op(
    "product",
    lambda x: reduce(jnp.multiply, x.T),
    lambda x: (x.prod(1), x),
    lambda x, dy: (dy[:, None] * product_of_others(x),),
    positives((7, 5)),
)
reductions = [
    MEAN.wrong("not divided by the count", lambda x, dy: (jnp.broadcast_to(dy[:, None], x.shape),), "factor"),
    MEAN.wrong(
        "divided by the other axis", lambda x, dy: (jnp.broadcast_to(dy[:, None], x.shape) / x.shape[0],), "factor"
    ),
    MEAN.wrong(
        "cotangent averaged over the rows",
        lambda x, dy: (jnp.full_like(x, dy.mean()) / x.shape[1],),
        "row ? sum average mean",
    ),
    MEAN.wrong("off by 1e-5", lambda x, dy: (MEAN.backward(x, dy)[0] * (1 + 1e-5),), "factor"),
    SUM.wrong(
        "broadcast along the wrong axis", lambda x, dy: (jnp.broadcast_to(dy[:, None], x.shape),), "transposed ax[ie]s"
    ),
    SUM.wrong("cotangent of the first column", lambda x, dy: (jnp.full_like(x, dy[0]),), "row ignored"),
    MAX.wrong("least entry", partial(max_backward, best=jnp.argmin), "mask row ? sign"),
    MAX.wrong("mask left out", lambda r, dy: (jnp.broadcast_to(dy[:, None], r[0].shape),), "mask"),
    MAX.wrong("largest of the whole batch", lambda r, dy: (dy[:, None] * (r[0] == r[0].max()),), "row mask ?"),
    MAX.wrong(
        "largest by magnitude", partial(max_backward, best=lambda x, axis: jnp.abs(x).argmax(axis)), "row mask ?"
    ),
    VAR.wrong("mean not subtracted", lambda x, dy: (2 * dy[:, None] * x / x.shape[1],), "term constant residual"),
    VAR.wrong("n - 1", lambda x, dy: (2 * dy[:, None] * (x - x.mean(1, keepdims=True)) / (x.shape[1] - 1),), "factor"),
    VAR.wrong("two left out", lambda x, dy: (dy[:, None] * (x - x.mean(1, keepdims=True)) / x.shape[1],), "factor"),
    STD.wrong(
        "derivative of the variance", lambda r, dy: (2 * std_backward(r, dy)[0] * r[1][:, None],), "row residual ?"
    ),
    STD.wrong("half of the root's derivative doubled", lambda r, dy: (2 * std_backward(r, dy)[0],), "factor"),
    STD.wrong("eps left out", lambda r, dy: (std_backward((r[0], r[0].std(1)), dy)[0],), "minute row"),
    PROD.wrong(
        "not divided by x", lambda x, dy: (dy[:, None] * x.prod(1, keepdims=True) * jnp.ones_like(x),), "residual row ?"
    ),
    PROD.wrong("times x", lambda x, dy: (dy[:, None] * x.prod(1, keepdims=True) * x,), "residual row ?"),
]

# ── Moving entries ───────────────────────────────────────────────────────────────────────────────────────────────────

CONCAT = Op(
    "concatenate",
    lambda a, b: jnp.pad(a, ((0, 0), (0, 5))) + jnp.pad(b, ((0, 0), (5, 0))),
    lambda a, b: (jnp.concatenate([a, b], 1), None),
    lambda _, dy: (dy[:, :5], dy[:, 5:]),
    normals((7, 5), (7, 5)),
)


def sort_forward(x):
    order = jnp.argsort(x, -1)
    return jnp.take_along_axis(x, order, -1), order


def sort_backward(order, dy, back=jnp.argsort):
    return (jnp.take_along_axis(dy, back(order), -1),)


SORT = Op("sort", lambda x: jnp.sort(x, -1), sort_forward, sort_backward, normals((7, 5)))
TOP = Op(
    "top-k values",
    lambda x: -jnp.sort(-x, -1)[:, :3],
    lambda x: (jax.lax.top_k(x, 3)[0], (x, jax.lax.top_k(x, 3)[1])),
    lambda r, dy: (jnp.zeros_like(r[0]).at[jnp.arange(len(dy))[:, None], r[1]].set(dy),),
    normals((7, 5)),
)
WHERE = Op(
    "where",
    lambda c, a, b: c * a + (1 - c) * b,
    lambda c, a, b: (jnp.where(c, a, b), c),
    lambda c, dy: (None, jnp.where(c, dy, 0), jnp.where(c, 0, dy)),
    lambda: (normal(9, 7, 5) > 0, normal(0, 7, 5), normal(1, 7, 5)),
)
PAD = Op(
    "pad",
    lambda x: jnp.concatenate([jnp.zeros_like(x[:2]), x, jnp.zeros_like(x[:1])]),
    lambda x: (jnp.pad(x, ((2, 1), (0, 0))), None),
    lambda _, dy: (dy[2:-1],),
    normals((7, 5)),
)
REFLECT = Op(
    "reflection pad",
    lambda x: x[jnp.asarray([2, 1, 0, 1, 2, 3, 4, 5, 6, 5, 4])],
    lambda x: (jnp.pad(x, ((2, 2), (0, 0)), "reflect"), None),
    lambda _, dy: (dy[2:-2].at[1:3].add(dy[1::-1]).at[-3:-1].add(dy[:-3:-1]),),
    normals((7, 5)),
)
ROLL = Op(
    "roll",
    lambda x: jnp.concatenate([x[-2:], x[:-2]]),
    lambda x: (jnp.roll(x, 2, 0), None),
    lambda _, dy: (jnp.roll(dy, -2, 0),),
    normals((7, 5)),
)
SHUFFLE = Op(
    "pixel shuffle",
    lambda x: x.reshape(-1, 5, 2, 3).swapaxes(1, 2).reshape(-1, 15),
    lambda x: (jnp.einsum("tpqr->tqpr", x.reshape(-1, 5, 2, 3)).reshape(-1, 15), None),
    lambda _, dy: (dy.reshape(-1, 2, 5, 3).transpose(0, 2, 1, 3).reshape(-1, 30),),
    normals((7, 30)),
)
moving = [
    CONCAT.wrong("split off by one", lambda _, dy: (dy[:, 1:6], jnp.roll(dy, -1, 1)[:, 5:]), "shift"),
    CONCAT.wrong("parts swapped", lambda _, dy: (dy[:, 5:], dy[:, :5]), "swapped"),
    CONCAT.wrong("first part twice", lambda _, dy: (dy[:, :5], dy[:, :5]), "swapped residual ?"),
    SORT.wrong(
        "sorted again, not put back", partial(sort_backward, back=lambda order: order), "swapped ? residual transposed"
    ),
    SORT.wrong("left in sorted order", lambda order, dy: (dy,), "swapped ?"),
    SORT.wrong("order descending", lambda order, dy: sort_backward(order, dy[:, ::-1]), "reversed ? swapped"),
    TOP.wrong("put at the front", lambda r, dy: (jnp.pad(dy, ((0, 0), (0, 2))),), "? swapped row"),
    TOP.wrong(
        "indices of the first row", lambda r, dy: (jnp.zeros_like(r[0]).at[:, r[1][0]].set(dy),), "row ? swapped"
    ),
    WHERE.wrong("branches exchanged", lambda c, dy: (None, jnp.where(c, 0, dy), jnp.where(c, dy, 0)), "swapped mask"),
    WHERE.wrong("both branches get all", lambda c, dy: (None, dy, dy), "mask"),
    WHERE.wrong("halves to both", lambda c, dy: (None, dy / 2, dy / 2), "mask ?"),
    PAD.wrong("widths of the two ends exchanged", lambda _, dy: (dy[1:-2],), "shift swapped"),
    REFLECT.wrong("reflected parts dropped", lambda _, dy: (dy[2:-2],), "term row sum"),
    REFLECT.wrong(
        "reflected parts in the wrong order",
        lambda _, dy: (dy[2:-2].at[1:3].add(dy[:2]).at[-3:-1].add(dy[-2:]),),
        "reversed row ?",
    ),
    REFLECT.wrong(
        "edge counted too", lambda _, dy: (dy[2:-2].at[0:2].add(dy[1::-1]).at[-2:].add(dy[:-3:-1]),), "shift row ?"
    ),
    ROLL.wrong("rolled on, not back", lambda _, dy: (jnp.roll(dy, 2, 0),), "shift reversed sign"),
    ROLL.wrong("shifted without wrapping", lambda _, dy: (jnp.pad(dy[2:], ((0, 2), (0, 0))),), "row term"),
    SHUFFLE.wrong(
        "axes in the order of the forward pass",
        lambda _, dy: (dy.reshape(-1, 5, 2, 3).swapaxes(1, 2).reshape(-1, 30),),
        "swapped ? transposed",
    ),
]

# ── Dropout: with a mask given, with a key given, with a key fixed ───────────────────────────────────────────────────

RATE = 0.3


def drop(x, mask):
    return jnp.where(mask, x, 0) / (1 - RATE)


def key_mask(key, x):
    return jax.random.bernoulli(key, 1 - RATE, x.shape)


DROPOUT = Op(
    "dropout",
    lambda x, mask: x * mask / (1 - RATE),
    lambda x, mask: (drop(x, mask), mask),
    lambda mask, dy: (drop(dy, mask), None),
    lambda: (normal(0, 7, 5), key_mask(jax.random.key(3), normal(0, 7, 5))),
)
KEYED = Op(
    "dropout by a key",
    lambda x, key: x * key_mask(key, x) / (1 - RATE),
    lambda x, key: (drop(x, key_mask(key, x)), key),
    lambda key, dy: (drop(dy, key_mask(key, dy)), None),
    lambda: (normal(0, 7, 5), jax.random.PRNGKey(3)),
)
FIXED = Op(
    "dropout by a fixed key",
    lambda x: x * key_mask(jax.random.key(5), x) / (1 - RATE),
    lambda x: (drop(x, key_mask(jax.random.key(5), x)), None),
    lambda _, dy: (drop(dy, key_mask(jax.random.key(5), dy)),),
    normals((31, 37)),
)
dropout = [
    DROPOUT.wrong("1 / (1 - p) left out", lambda mask, dy: (dy * mask, None), "factor"),
    DROPOUT.wrong("mask left out", lambda mask, dy: (dy / (1 - RATE), None), "mask"),
    DROPOUT.wrong("mask inverted", lambda mask, dy: (drop(dy, ~mask), None), "mask"),
    DROPOUT.wrong("divided by p", lambda mask, dy: (dy * mask / RATE, None), "factor"),
    DROPOUT.wrong(
        "scale on the kept and the dropped exchanged",
        lambda mask, dy: (jnp.where(mask, dy, dy / (1 - RATE)), None),
        "mask ?",
    ),
    KEYED.wrong(
        "another mask in the backward pass",
        lambda key, dy: (drop(dy, key_mask(jax.random.split(key)[0], dy)), None),
        "mask ?",
    ),
    KEYED.wrong("one mask for every row", lambda key, dy: (drop(dy, key_mask(key, dy)[:1]), None), "mask row ?"),
    FIXED.wrong(
        "mask off by one row",
        lambda _, dy: (drop(dy, jnp.roll(key_mask(jax.random.key(5), dy), 1, 0)),),
        "mask shift ?",
    ),
    FIXED.edit("last row dropped altogether", 0, lambda dx: without(dx, 0, -1), "row mask"),
]

# ── Pairs of points ──────────────────────────────────────────────────────────────────────────────────────────────────


def rbf_forward(x, z, width):
    k = jnp.exp(-((x[:, None] - z) ** 2).sum(-1) / (2 * width**2))
    return k, (x, z, width, k)


def rbf_backward(r, dy, power=3, half=1.0, sign=-1.0):
    x, z, width, k = r
    g, d = dy * k / width**2, x[:, None] - z
    dx = half * sign * jnp.einsum("ij,ijd->id", g, d)
    return dx, half * jnp.einsum("ij,ijd->jd", g, d), (dy * k * (d**2).sum(-1)).sum() / width**power


RBF = Op(
    "rbf kernel",
    lambda x, z, width: jnp.exp(-0.5 * jax.vmap(lambda u: jnp.sum(((u - z) / width) ** 2, 1))(x)),
    rbf_forward,
    rbf_backward,
    lambda: (normal(0, 7, 3), normal(1, 5, 3), positive(2)),
)
pairs = [
    RBF.wrong("sign of dx", partial(rbf_backward, sign=1.0), "sign"),
    RBF.wrong("width squared in dwidth", partial(rbf_backward, power=2), "factor"),
    RBF.wrong("two too many", partial(rbf_backward, half=2.0), "factor"),
]

OPS = [
    MEAN,
    SUM,
    MAX,
    VAR,
    STD,
    PROD,
    CONCAT,
    SORT,
    TOP,
    WHERE,
    PAD,
    REFLECT,
    ROLL,
    SHUFFLE,
    DROPOUT,
    KEYED,
    FIXED,
    RBF,
]
WRONG = reductions + moving + dropout + pairs
