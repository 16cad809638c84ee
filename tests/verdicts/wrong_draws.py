"""Right at the arguments given, wrong in other draws: other indices, other sizes, other cotangents."""

from functools import partial

import jax.numpy as jnp
from jax import nn

from .wrong_arrays import MEAN
from .wrong_attention import (
    ATTENTION,
    PADDED,
    ROTARY,
    angles,
    attention_backward,
    probabilities,
    rotate,
)
from .wrong_base import integers, normal, normals
from .wrong_costs import (
    CROSS,
    LABELS,
    cross_entropy_backward,
)
from .wrong_linear import DENSE, dense_backward
from .wrong_norms import (
    LAYER,
)
from .wrong_sequence import CUMSUM, RNN
from .wrong_windows import EMBEDDING, SCATTER, TAKE


def regime(op, mistake, backward, **named):
    return op.wrong(mistake, backward, kind="regime", **named)


# ── Indices ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def ids_of(*ids):
    return lambda: (normal(0, 13, 5), jnp.asarray(ids, jnp.int32))


def short_one_hot(logits, labels, smooth):
    """The one-hot of all classes but the last."""
    hot = jnp.pad(nn.one_hot(labels, logits.shape[-1] - 1, dtype=logits.dtype), ((0, 0), (0, 1)))
    return (1 - smooth) * hot + smooth / logits.shape[-1]


def written(r, dy):
    return jnp.zeros_like(r[0]).at[r[1]].set(dy), None


indices = [
    # the last class
    regime(
        CROSS,
        "last class out of range",
        partial(cross_entropy_backward, pick=short_one_hot),
        args=lambda: (normal(0, 7, 5), jnp.asarray([3, 0, -100, 1, 2, 0, 1], jnp.int32)),
    ),
    # an ignored label
    regime(
        CROSS,
        "ignored label gets a gradient; none is ignored",
        partial(cross_entropy_backward, valid=lambda labels: labels == labels),
        args=lambda: (normal(0, 7, 5), jnp.asarray([3, 0, 4, 1, 2, 0, 1], jnp.int32)),
        sample=lambda seed: (normal(seed, 7, 5), jnp.roll(LABELS, seed)),
    ),
    # an id that repeats
    regime(
        EMBEDDING,
        "rows set, not added; no id repeats",
        written,
        args=ids_of(1, 4, 12, 0),
        sample=lambda seed: (normal(seed, 13, 5), integers(seed, 13, 11)),
    ),
    regime(
        SCATTER,
        "rows of repeated ids get nothing",
        lambda ids, dy: (dy, dy[ids] * (jnp.bincount(ids, length=dy.shape[0])[ids] == 1)[:, None], None),
        args=lambda: (normal(0, 7, 5), normal(1, 3, 5), jnp.asarray([4, 1, 6], jnp.int32)),
        sample=lambda seed: (normal(seed, 7, 5), normal(seed + 1, 11, 5), integers(seed, 7, 11)),
    ),
    regime(
        TAKE,
        "entries set, not added",
        lambda r, dy: (jnp.zeros_like(r[0]).at[jnp.arange(r[0].shape[0])[:, None], r[1]].set(dy), None),
        args=lambda: (normal(0, 7, 5), jnp.argsort(normal(1, 7, 5), 1)[:, :3].astype(jnp.int32)),
        sample=lambda seed: (normal(seed, 7, 5), integers(seed, 5, 7, 4)),
    ),
    # id 0; the last id
    regime(
        EMBEDDING,
        "id 0 taken for padding; no id is 0",
        lambda r, dy: (EMBEDDING.backward(r, dy)[0].at[0].set(0), None),
        args=ids_of(1, 4, 1, 7),
        sample=lambda seed: (normal(seed, 13, 5), integers(seed, 13, 31)),
    ),
    regime(
        EMBEDDING,
        "last id out of range",
        lambda r, dy: (EMBEDDING.backward(r, dy)[0].at[-1].set(0), None),
        args=ids_of(1, 4, 1, 7),
        sample=lambda seed: (normal(seed, 13, 5), integers(seed, 13, 31)),
    ),
    # all keys masked
    regime(
        PADDED,
        "nan where all keys are masked",
        lambda r, do: (
            *attention_backward(
                (*r[:3], probabilities(*r[:2], lambda q, k: jnp.where(r[3], 0, -jnp.inf).astype(q.dtype))), do
            ),
            None,
        ),
        sample=lambda seed: (*(normal(seed + i, 2, 7, 5) for i in range(3)), jnp.zeros(7, bool)),
    ),
]

# ── Sizes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def whole(array, axis, block=4):
    """The array with what is beyond the last whole block set to zero."""
    n = array.shape[axis]
    inside = jnp.arange(n) < n // block * block
    return jnp.where(jnp.expand_dims(inside, tuple(i for i in range(array.ndim) if i != axis)), array, 0)


def blocked_cumsum(_, dy, block=8):
    """Summed block by block, the carry between blocks forgotten."""
    n = dy.shape[0]
    padded = jnp.pad(dy, ((0, -n % block), (0, 0))).reshape(-1, block, dy.shape[1])
    return (jnp.cumsum(padded[:, ::-1], 1)[:, ::-1].reshape(-1, dy.shape[1])[:n],)


def sized(shapes):
    return lambda seed: normals(*shapes(5 + 2 * (seed % 4)), seed=seed + 1)()


sizes = [
    # a number of rows that is no multiple of the block
    regime(
        LAYER,
        "rows beyond the last block left out",
        lambda r, dy: (*LAYER.backward(r, dy)[:2], whole(LAYER.backward(r, dy)[2], 0)),
        args=normals((5,), (5,), (8, 5)),
        sample=sized(lambda n: ((5,), (5,), (n, 5))),
    ),
    regime(
        DENSE,
        "dw without what is beyond the last block",
        lambda r, dy: dense_backward((r[0], whole(r[1], 0)), dy),
        args=normals((5, 3), (3,), (8, 5)),
        sample=sized(lambda n: ((5, 3), (3,), (n, 5))),
    ),
    regime(
        ATTENTION,
        "keys beyond the last block left out",
        lambda r, do: (attention_backward(r, do)[0], *(whole(d, 1) for d in attention_backward(r, do)[1:])),
        args=normals((2, 8, 5), (2, 8, 5), (2, 8, 5)),
        sample=sized(lambda n: ((2, n, 5),) * 3),
    ),
    # more than one block
    regime(CUMSUM, "no carry from block to block", blocked_cumsum, sample=sized(lambda n: ((n + 4, 3),))),
    # another size
    regime(
        MEAN,
        "count written as a number",
        lambda x, dy: (jnp.broadcast_to(dy[:, None], x.shape) / 5,),
        sample=sized(lambda n: ((3, n + 1),)),
    ),
    regime(
        ATTENTION,
        "width written as a number",
        lambda r, do: attention_backward(r, do, scale=(r[0].shape[-1] / 5) ** 0.5),
        sample=sized(lambda n: ((2, 7, n + 2),) * 3),
    ),
    regime(
        ROTARY,
        "table of eight positions",
        lambda _, dy: (
            rotate(dy, -angles(dy) if dy.shape[-2] <= 8 else -jnp.resize(angles(dy)[:8], angles(dy).shape)),
        ),
        sample=sized(lambda n: ((2, n + 4, 6),)),
    ),
]

# ── Large and small cotangents ───────────────────────────────────────────────────────────────────────────────────────

cotangents = [
    # |dx| > 10
    DENSE.edit(
        "dx clipped at ten",
        2,
        lambda dx: jnp.clip(dx, -10, 10),
        kind="regime",
        args=normals((5, 3), (3,), (7, 5), scale=0.5),
    ),
    # |du| > 100
    RNN.edit("gradients beyond 100 set to zero", 1, lambda du: jnp.where(jnp.abs(du) > 100, 0, du), kind="regime"),
    # |dx| < 1e-6
    MEAN.edit(
        "gradients below 1e-6 flushed",
        0,
        lambda dx: jnp.where(jnp.abs(dx) < 1e-6, 0, dx),
        kind="regime",
        args=normals((7, 127)),
    ),
    # |dg| > 65504
    LAYER.edit(
        "dg saturates as float16 does",
        0,
        lambda dg: jnp.where(jnp.abs(dg) > 65504, jnp.inf, dg),
        kind="regime",
        args=normals((5,), (5,), (307, 5)),
    ),
]

WRONG = indices + sizes + cotangents
