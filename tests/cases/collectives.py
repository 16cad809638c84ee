"""Collectives: under vmap, whose axis stands for the devices; the references are of whole arrays, devices first.

An array that all devices hold alike is one array here, without that axis: in the arguments, in y, and in cotangents.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import manual_backprop as mb
from cases.case import Case, Draw, exactly, normal

N = 3  # devices
WHOLE, EACH = None, 0  # what vmap calls the two


def on(n: int, op: mb.Op, *arguments: int | None, y: int | None = EACH) -> mb.Op:
    """The op, whose arguments and y are of all n devices at once."""
    over = functools.partial(jax.vmap, axis_name="devices", axis_size=n)
    return dataclasses.replace(
        op,
        forward=functools.wraps(op.forward)(over(op.forward, in_axes=arguments, out_axes=(y, EACH))),
        backward=over(op.backward, in_axes=(EACH, y), out_axes=arguments),
    )


def parts(x, n: int, dim: int):
    """[n, …, a part, …] of x [..., whole, …]."""
    return jnp.stack(jnp.split(x, n, dim))


def joined(x, dim: int):
    """x [n, …, a part, …] → […, whole, …]."""
    return jnp.concatenate(list(x), dim)


def copied(x, n: int):
    return jnp.broadcast_to(x, (n, *x.shape))


def all_reduce(name: str, n: int, x, large: Draw | None = None) -> Case:
    return Case(
        name, on(n, mb.ops.all_reduce(axis="devices"), EACH, y=WHOLE), lambda x: jnp.sum(x, 0), normal((n, *x)), large
    )


def copy_to_devices(name: str, n: int, x, large: Draw | None = None) -> Case:
    op = on(n, mb.ops.copy_to_devices(axis="devices"), WHOLE)
    return Case(name, op, lambda x: copied(x, n), normal(x), large)


def all_gather(name: str, n: int, x, dim: int, large: Draw | None = None) -> Case:
    op = on(n, mb.ops.all_gather(axis="devices", dim=dim), EACH)
    return Case(name, op, lambda x: copied(joined(x, dim), n), normal((n, *x)), large)


def reduce_scatter(name: str, n: int, x, dim: int, large: Draw | None = None) -> Case:
    op = on(n, mb.ops.reduce_scatter(axis="devices", dim=dim), EACH)
    return Case(name, op, lambda x: parts(jnp.sum(x, 0), n, dim), normal((n, *x)), large)


def own_part(name: str, n: int, x, dim: int, large: Draw | None = None) -> Case:
    op = on(n, mb.ops.own_part(axis="devices", dim=dim), WHOLE)
    return Case(name, op, lambda x: parts(x, n, dim), normal(x), large)


def gather_parts(name: str, n: int, x, dim: int, large: Draw | None = None) -> Case:
    op = on(n, mb.ops.gather_parts(axis="devices", dim=dim), EACH, y=WHOLE)
    return Case(name, op, lambda x: joined(x, dim), normal((n, *x)), large)


def all_to_all(name: str, n: int, x, split: int, join: int, large: Draw | None = None) -> Case:
    op = on(n, mb.ops.all_to_all(axis="devices", split=split, join=join), EACH)
    return Case(
        name,
        op,
        lambda x: parts(joined(x, join), n, split) if split != join else exchanged(x, n, join),
        normal((n, *x)),
        large,
    )


def exchanged(x, n: int, dim: int):
    """x[e] cut in n along dim, part d to device d, joined there along the same dim."""
    cut = jnp.stack([parts(each, n, dim) for each in x])  # [from, to, …]
    return jnp.stack([joined(cut[:, d], dim) for d in range(n)])


def permute(name: str, n: int, x, pairs, large: Draw | None = None) -> Case:
    source = {target: source for source, target in pairs}
    reference = lambda x: jnp.stack([x[source[d]] if d in source else jnp.zeros_like(x[d]) for d in range(n)])
    return Case(
        name, on(n, mb.ops.collective_permute(axis="devices", pairs=pairs), EACH), reference, normal((n, *x)), large
    )


def parallel_embedding(name: str, n: int, ids, rows: int, features: int, large: Draw | None = None, **options) -> Case:
    padding = options.get("padding_id")

    def reference(ids, table):  # [n, rows, features] → [n, ..., features]
        n, rows, features = table.shape
        found = jnp.asarray(table).reshape(n * rows, features)[ids]
        if padding is not None:  # its row counts, and is not learned
            found = jnp.where((ids == padding)[..., None], jax.lax.stop_gradient(found), found)
        owner = ids // rows == jnp.arange(n).reshape(n, *[1] * ids.ndim)
        return jnp.where(owner[..., None], found, 0)

    op = on(n, mb.ops.parallel_embedding(axis="devices", **options), WHOLE, EACH)
    return Case(name, op, reference, looked_up(ids, n, rows, features), large)


def looked_up(ids, n: int, rows: int, features: int) -> Draw:
    return lambda rng: (rng.integers(0, n * rows, ids).astype("int32"), rng.standard_normal((n, rows, features)))


def cross_entropy(name: str, n: int, tokens, d: int, classes: int, large: Draw | None = None, **options) -> Case:
    """classes: of a device."""
    ignored, cap = options.get("ignored"), options.get("softcap")
    smoothing, z_loss = options.get("label_smoothing", 0), options.get("z_loss", 0)

    def reference(hidden, weight, labels):
        z = jnp.concatenate(list(jnp.einsum("n...d,nkd->n...k", hidden, weight)), -1)
        z = z if cap is None else cap * jnp.tanh(z / cap)
        t = jax.nn.one_hot(labels, z.shape[-1], dtype=z.dtype)
        t = (1 - smoothing) * t + smoothing / z.shape[-1]
        costs = -jnp.sum(t * jax.nn.log_softmax(z), -1) + z_loss * jax.nn.logsumexp(z, -1) ** 2
        counts = jnp.ones(labels.shape, z.dtype) if ignored is None else (labels != ignored).astype(z.dtype)
        total = jnp.sum(costs * counts)
        return total if options.get("reduction") == "sum" else total / jnp.maximum(jnp.sum(counts), 1)

    op = on(n, mb.ops.parallel_cross_entropy(axis="devices", **options), EACH, EACH, WHOLE, y=WHOLE)
    return Case(name, op, reference, with_labels(n, tokens, d, classes, ignored), large)


def with_labels(n: int, tokens, d: int, classes: int, ignored: int | None = None) -> Draw:
    def draw(rng):
        labels = rng.integers(0 if ignored is None else ignored, n * classes, tokens).astype("int32")
        return rng.standard_normal((n, *tokens, d)), rng.standard_normal((n, classes, d)), labels

    return draw


RING = tuple((d, (d + 1) % N) for d in range(N))

OPS = [
    all_reduce("all_reduce", N, (7, 5), normal((N, 768, 1024))),
    all_reduce("all_reduce, numbers", N, ()),
    copy_to_devices("copy_to_devices", N, (7, 5), normal((512, 1024))),
    all_gather("all_gather", N, (7, 5), 0, normal((N, 256, 1024))),
    all_gather("all_gather, last dim", N, (2, 7, 5), -1),
    reduce_scatter("reduce_scatter", N, (2 * N, 5), 0, normal((N, 768, 1024))),
    reduce_scatter("reduce_scatter, middle dim", N, (2, 5 * N, 7), -2),
    own_part("own_part", N, (2 * N, 5), 0, normal((513, 1024))),
    own_part("own_part, last dim", N, (7, 5 * N), -1),
    gather_parts("gather_parts", N, (7, 5), 0, normal((N, 256, 1024))),
    gather_parts("gather_parts, last dim", N, (2, 7, 5), -1),
    all_to_all("all_to_all", N, (2 * N, 5), 0, 1, normal((N, 768, 1024))),
    all_to_all("all_to_all, back", N, (2, 7, 5 * N), -1, 1),
    all_to_all("all_to_all, one dim", N, (2 * N, 5), 0, 0),
    permute("collective_permute", N, (7, 5), RING, normal((N, 768, 1024))),
    permute("collective_permute, not all send", 5, (7,), ((0, 1), (1, 4), (4, 2))),
    permute("collective_permute, nobody sends", N, (7, 5), ()),
    parallel_embedding("parallel_embedding", N, (2, 5), 7, 11, looked_up((64, 64), N, 1367, 256)),
    parallel_embedding("parallel_embedding, padding", N, (13,), 5, 2, padding_id=7),
    cross_entropy("parallel_cross_entropy", N, (2, 7), 5, 11, with_labels(N, (512,), 128, 1024)),
    cross_entropy("parallel_cross_entropy, in slices", N, (13,), 5, 2, chunk=5, label_smoothing=0.1, z_loss=0.01),
    cross_entropy("parallel_cross_entropy, capped", N, (7,), 5, 11, softcap=1.5, reduction="sum"),
    cross_entropy("parallel_cross_entropy, some ignored", N, (2, 7), 5, 3, ignored=-1, chunk=5),
]  # fmt: skip

LAYERS: list = []

EXTREMES = [
    all_reduce("all_reduce, large numbers", N, (2, 5))._replace(draw=exactly(np.array([[1e38, -3.0], [2e38, 1e-30], [-1e38, 3.0]]))),
    cross_entropy("parallel_cross_entropy, large logits", 2, (3,), 1, 2)._replace(
        draw=exactly(np.array([[[1e4], [-1e4], [0.0]]] * 2), np.array([[[1.0], [-1.0]], [[0.5], [0.0]]]), np.array([0, 1, 3]))
    ),
]  # fmt: skip

EMPTY = [
    all_reduce("all_reduce, no examples", N, (0, 5)),
    copy_to_devices("copy_to_devices, no examples", N, (0, 5)),
    all_gather("all_gather, no examples", N, (0, 5), 0),
    reduce_scatter("reduce_scatter, no examples", N, (0, 5), 0),
    own_part("own_part, no examples", N, (0, 5), 0),
    gather_parts("gather_parts, no examples", N, (0, 5), 0),
    all_to_all("all_to_all, no examples", N, (0, 2 * N), 1, 0),
    permute("collective_permute, no examples", N, (0, 5), RING),
    parallel_embedding("parallel_embedding, no examples", N, (0,), 5, 2),
]


@st.composite
def drawn(draw) -> Case:
    """Any op of this family, its options and its shapes."""
    n = draw(st.integers(1, 4))
    part = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    dim, other = (draw(st.integers(-len(part), len(part) - 1)) for _ in range(2))
    of_n = tuple(n * size if i == dim % len(part) else size for i, size in enumerate(part))
    sources, targets = draw(st.permutations(range(n))), draw(st.permutations(range(n)))
    pairs = tuple(zip(sources, targets, strict=True))[: draw(st.integers(0, n))]
    options = {"chunk": draw(st.integers(1, 9)), "label_smoothing": draw(st.sampled_from([0.0, 0.3]))}
    cases = [
        all_reduce("all_reduce", n, part),
        copy_to_devices("copy_to_devices", n, part),
        all_gather("all_gather", n, part, dim),
        reduce_scatter("reduce_scatter", n, of_n, dim),
        own_part("own_part", n, of_n, dim),
        gather_parts("gather_parts", n, part, dim),
        all_to_all("all_to_all", n, of_n, dim % len(part), other % len(part)),
        permute("collective_permute", n, part, pairs),
        parallel_embedding("parallel_embedding", n, part, draw(st.integers(1, 5)), 3),
        cross_entropy("parallel_cross_entropy", n, part, 3, draw(st.integers(1, 5)), **options),
    ]
    return draw(st.sampled_from(cases))


X = jnp.ones((7, 5))


def across(op: mb.Op, *arguments):
    return jax.vmap(op, axis_name="devices", in_axes=(EACH, *[WHOLE] * len(arguments)))(X, *arguments)


# What a user gets wrong, and the part of the one line that says so.
MISTAKES: dict = {
    "an axis that is not there": (
        lambda: mb.ops.all_reduce(axis="modell")(X),
        "all_reduce: axis 'modell' is unknown here; wants the name of an axis of jax.shard_map's mesh, or axis_name of",
    ),
    "another axis than there is": (
        lambda: jax.vmap(mb.ops.all_gather(axis="model"), axis_name="data")(X),
        "all_gather: axis 'model' is unknown here",
    ),
    "no axis": (lambda: mb.ops.all_reduce(), "all_reduce: got no axis; wants a string or a tuple (each a string)"),
    "an array's axis for a mesh's": (lambda: mb.ops.all_gather(axis=0), "all_gather: axis is 0; wants a string"),
    "a dim out of range": (
        lambda: across(mb.ops.all_gather(axis="devices", dim=1)),
        "all_gather: dim 1 is out of range; wants -1 … 0 for x of shape (5,)",
    ),
    "devices that do not divide": (
        lambda: across(mb.ops.reduce_scatter(axis="devices")),
        "reduce_scatter: x has shape (5,); the 7 devices of 'devices' do not divide dim 0",
    ),
    "devices that do not divide for parts": (
        lambda: across(mb.ops.own_part(axis="devices")),
        "own_part: x has shape (5,); the 7 devices of 'devices' do not divide dim 0",
    ),
    "devices that do not divide to exchange": (
        lambda: across(mb.ops.all_to_all(axis="devices")),
        "all_to_all: x has shape (5,); the 7 devices of 'devices' do not divide dim 0",
    ),
    "a sum of integers over devices": (
        lambda: jax.vmap(mb.ops.all_reduce(axis="devices"), axis_name="devices")(jnp.arange(3)),
        "all_reduce: x is int32; wants floating point",
    ),
    "a device twice": (
        lambda: mb.ops.collective_permute(axis="devices", pairs=((0, 1), (2, 1))),
        "collective_permute: pairs are ((0, 1), (2, 1)); wants each device at most once as a target",
    ),
    "a device that is not there": (
        lambda: across(mb.ops.collective_permute(axis="devices", pairs=((0, 7),))),
        "collective_permute: pairs are ((0, 7),); wants devices 0 … 6 of 'devices'",
    ),
    "float ids for a part of a table": (
        lambda: mb.ops.parallel_embedding(axis="devices")(X, X),
        "parallel_embedding: ids are float32; wants integers",
    ),
    "a table without features": (
        lambda: mb.ops.parallel_embedding(axis="devices")(jnp.arange(3), X[0]),
        "parallel_embedding: table has shape (5,); wants [rows, features]",
    ),
    "a head of another width": (
        lambda: mb.ops.parallel_cross_entropy(axis="devices")(X, X.T, jnp.arange(7)),
        "parallel_cross_entropy: hidden has shape (7, 5), weight (5, 7); hidden's last axis must be 7",
    ),
}  # fmt: skip
