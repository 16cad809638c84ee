"""Linear maps."""

from __future__ import annotations

import dataclasses
from unittest import mock

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax import lax

import manual_backprop as mb
from cases.case import Case, Draw, exactly, layer_case, normal
from manual_backprop.layers import Bilinear, Conv, ConvTranspose, Dense, Embedding, LowRankDense, PositionalEmbedding
from manual_backprop.ops.linear import convolution


def flax_dense(x, w, b=None):
    params = {"kernel": w} if b is None else {"kernel": w, "bias": b}
    return nn.Dense(w.shape[-1], use_bias=b is not None).apply({"params": params}, x)


def affine(p, x):
    return x @ p["w"] + p["b"]


def low_rank(scale: float = 1.0, frozen: bool = False):
    def run(x, w, a, b):
        return x @ (lax.stop_gradient(w) if frozen else w) + scale * (x @ a @ b)

    return run


def bilinear(x1, x2, w, b=0.0):
    return jnp.einsum("...i,oij,...j->...o", x1, w, x2) + b


def einsum_case(subscripts: str, *shapes: tuple[int, ...], large: Draw | None = None) -> Case:
    reference = lambda a, b: jnp.einsum(subscripts, a, b)
    return Case(f"einsum, {subscripts}", mb.ops.einsum(subscripts=subscripts), reference, normal(*shapes), large)


def lookup(rows: int, features: int, *shape: int, dtype=np.int32) -> Draw:
    """Ids, each of which may come several times, and a table."""
    return lambda rng: (rng.integers(0, rows, shape).astype(dtype), rng.standard_normal((rows, features)))


def flax_embedding(ids, table):
    return nn.Embed(*table.shape).apply({"params": {"embedding": table}}, ids)


def padded_embedding(padding_id: int):
    def run(ids, table):
        row = jnp.arange(table.shape[0])[:, None] == padding_id
        return flax_embedding(ids, jnp.where(row, lax.stop_gradient(table), table))

    return run


def flax_conv(strides=1, padding="SAME", kernel_dilation=1, input_dilation=1, groups=1):
    def run(x, w, b=None):
        module = nn.Conv(
            w.shape[-1],
            w.shape[:-2],
            strides,
            padding,
            input_dilation,
            kernel_dilation,
            feature_group_count=groups,
            use_bias=b is not None,
        )
        return module.apply({"params": {"kernel": w} if b is None else {"kernel": w, "bias": b}}, x)

    return run


def flax_conv_transpose(strides=None, padding="SAME", kernel_dilation=None, transpose_kernel=False):
    def run(x, w, b=None):
        out = w.shape[-2] if transpose_kernel else w.shape[-1]
        module = nn.ConvTranspose(
            out,
            w.shape[:-2],
            strides,
            padding,
            kernel_dilation,
            use_bias=b is not None,
            transpose_kernel=transpose_kernel,
        )
        return module.apply({"params": {"kernel": w} if b is None else {"kernel": w, "bias": b}}, x)

    return run


def group_by_group(function, groups: int):
    """A convolution in groups as one for each group."""

    def run(x, w):
        xs, ws = (jnp.split(each.astype(jnp.result_type(x, w)), groups, -1) for each in (x, w))
        return jnp.concatenate([function(*each) for each in zip(xs, ws, strict=True)], -1)

    return run


def conv_case(name: str, *shapes, large: Draw | None = None, **options) -> Case:
    bias = len(shapes) == 3
    return Case(name, mb.ops.conv(bias=bias, **options), flax_conv(**options), normal(*shapes), large)


def conv_transpose_case(name: str, *shapes, large: Draw | None = None, **options) -> Case:
    bias = len(shapes) == 3
    op = mb.ops.conv_transpose(bias=bias, **options)
    return Case(name, op, flax_conv_transpose(**options), normal(*shapes), large)


def as_on_an_accelerator(case: Case) -> Case:
    """The same by the code that is for other machines than CPUs."""

    def there(function):
        def run(*args):
            with mock.patch.object(convolution, "on_cpu", lambda here, elsewhere, *args: elsewhere(*args)):
                return function(*args)

        return run

    op = dataclasses.replace(case.unit, forward=there(case.unit.forward), backward=there(case.unit.backward))
    return case._replace(name=f"{case.name}, as on an accelerator", unit=op)


GROUPED = conv_case("conv, in groups", (2, 3, 11, 4), (3, 2, 6), (6,), strides=3, padding=2, groups=2)
DEPTHWISE = conv_case("conv, depthwise", (2, 7, 5, 3), (3, 2, 1, 6), strides=(2, 1), padding="VALID", groups=3)

OPS = [
    Case("dense", mb.ops.dense(), flax_dense, normal((7, 5), (5, 3), (3,)), normal((640, 512), (512, 1024), (1024,))),
    Case("dense, one vector", mb.ops.dense(), flax_dense, normal((5,), (5, 3), (3,))),
    Case("dense, two leading axes", mb.ops.dense(), flax_dense, normal((2, 7, 5), (5, 3), (3,))),
    Case("dense, no bias", mb.ops.dense(bias=False), flax_dense, normal((7, 5), (5, 3))),
    Case(
        "low_rank_dense",
        mb.ops.low_rank_dense(scale=0.7),
        low_rank(0.7),
        normal((2, 7, 5), (5, 3), (5, 2), (2, 3)),
        normal((640, 512), (512, 1024), (512, 8), (8, 1024)),
    ),
    Case(
        "low_rank_dense, frozen",
        mb.ops.low_rank_dense(frozen=True),
        low_rank(frozen=True),
        normal((7, 5), (5, 3), (5, 2), (2, 3)),
    ),
    Case(
        "bilinear",
        mb.ops.bilinear(),
        bilinear,
        normal((7, 5), (7, 3), (11, 5, 3), (11,)),
        normal((512, 64), (512, 64), (64, 64, 64), (64,)),
    ),
    Case("bilinear, few outputs", mb.ops.bilinear(bias=False), bilinear, normal((2, 7, 5), (2, 7, 3), (2, 5, 3))),
    einsum_case("bqhd,bkhd->bhqk", (2, 5, 3, 7), (2, 11, 3, 7), large=normal((4, 256, 4, 64), (4, 256, 4, 64))),
    einsum_case("...ij, kj -> i...k", (2, 1, 7, 5), (3, 5)),
    einsum_case("i...,...j", (2, 1, 5), (7, 5, 3)),
    einsum_case("aij,jkc->ik", (2, 5, 3), (3, 7, 11)),
    einsum_case("ij,ij->", (1, 5), (3, 5)),
    Case("embedding", mb.ops.embedding(), flax_embedding, lookup(5, 3, 2, 7), lookup(8192, 512, 8, 512)),
    Case("embedding, padding", mb.ops.embedding(padding_id=2), padded_embedding(2), lookup(5, 3, 7, dtype=np.uint8)),
    Case(
        "positional_embedding",
        mb.ops.positional_embedding(),
        lambda x, table: x + table[: x.shape[-2]],
        normal((3, 5, 7), (11, 7)),
        normal((16, 256, 512), (512, 512)),
    ),
    conv_case("conv", (2, 7, 5, 3), (3, 2, 3, 5), large=normal((16, 32, 32, 32), (3, 3, 32, 32))),
    conv_case(
        "conv, strides and dilation",
        *((2, 11, 7, 3), (3, 2, 3, 5), (5,)),
        strides=(2, 3),
        padding=((2, 1), (0, 3)),
        kernel_dilation=(1, 2),
    ),
    GROUPED,
    DEPTHWISE,
    as_on_an_accelerator(GROUPED),
    as_on_an_accelerator(DEPTHWISE),
    conv_case("conv, depthwise, many taps", (2, 5, 3), (67, 1, 3), groups=3),
    conv_case("conv, first layer", (3, 7, 5, 2), (3, 2, 2, 13), (13,)),
    conv_case("conv, cropped", (5, 7, 3), (2, 3, 5), padding=((-1, 2),)),
    conv_case("conv, three axes", (2, 3, 5, 2, 3), (2, 3, 1, 3, 2), strides=(1, 2, 1)),
    Case(
        "conv, input dilation",
        mb.ops.conv(input_dilation=(2, 1), strides=(3, 1)),
        flax_conv(strides=(3, 1), input_dilation=(2, 1), padding=((0, 1), (0, 1))),  # of 9 and 5, to 3 and 5
        normal((2, 5, 5, 3), (2, 2, 3, 5)),
    ),
    conv_transpose_case(
        "conv_transpose",
        *((2, 5, 3, 3), (3, 2, 3, 5), (5,)),
        large=normal((8, 32, 32, 32), (3, 3, 32, 32), (32,)),
        strides=(2, 3),
    ),
    conv_transpose_case(
        "conv_transpose, valid", (2, 5, 3), (3, 3, 7), strides=(2,), padding="VALID", kernel_dilation=(2,)
    ),
    conv_transpose_case(
        "conv_transpose, its kernel transposed", (2, 5, 3), (3, 7, 3), padding=((1, 0),), transpose_kernel=True
    ),
    Case(
        "conv_transpose, in groups",
        mb.ops.conv_transpose(strides=2, padding=((1, 2),), groups=2, transpose_kernel=True),
        group_by_group(lambda x, w: lax.conv_transpose(x, w, (2,), ((1, 2),), transpose_kernel=True), 2),
        normal((2, 5, 6), (3, 2, 6)),
    ),
]


def conv_layer(**options):
    return lambda p, x: flax_conv(**options)(x, p["w"], p.get("b"))


LAYERS: list[Case] = [
    layer_case("Dense", Dense(3), affine, normal((7, 5))),
    layer_case("Dense, no bias", Dense(3, bias=False), lambda p, x: x @ p["w"], normal((7, 5))),
    layer_case("LowRankDense", LowRankDense(3, 2), lambda p, x: low_rank(frozen=True)(x, **p), normal((7, 5))),
    layer_case("Bilinear", Bilinear(2), lambda p, x: bilinear(*x, **p), normal((7, 5), (7, 3))),
    layer_case("Embedding", Embedding(5, 3), lambda p, x: p["table"][x], lambda rng: lookup(5, 3, 7)(rng)[:1]),
    layer_case("PositionalEmbedding", PositionalEmbedding(11), lambda p, x: x + p["table"][:5], normal((3, 5, 7))),
    layer_case("Conv", Conv(6, (3,), strides=2, groups=2), conv_layer(strides=2, groups=2), normal((3, 7, 4))),
    layer_case(
        "ConvTranspose",
        ConvTranspose(5, (3,), bias=False),
        lambda p, x: flax_conv_transpose()(x, p["w"]),
        normal((3, 7, 2)),
    ),
]


def large_and_small(*shape: int) -> np.ndarray:
    """±1e4, 1e-30 and zeros, which a sum must not mix up."""
    return np.resize(np.array([1e4, -1e4, 1e-30, 0.0, 3e-3, -2e3, 1e-8]), shape)


# Judged in every precision: finite where the truth is, and right.
EXTREMES: list[Case] = [
    Case(
        "dense, large and small", mb.ops.dense(), flax_dense,
        exactly(large_and_small(7, 5), large_and_small(5, 3) * 1e-4, large_and_small(3)),
    ),
    Case(
        "low_rank_dense, large and small", mb.ops.low_rank_dense(), low_rank(),
        exactly(large_and_small(7, 5), large_and_small(5, 3) * 1e-4, large_and_small(5, 2) * 1e-4, large_and_small(2, 3) * 1e-4),
    ),
    Case(
        "bilinear, large and small", mb.ops.bilinear(bias=False), bilinear,
        exactly(large_and_small(7, 5), large_and_small(7, 3) * 1e-4, large_and_small(2, 5, 3) * 1e-4),
    ),
    Case(
        "einsum, large and small", mb.ops.einsum(subscripts="ij,jk->ik"), lambda a, b: a @ b,
        exactly(large_and_small(7, 5), large_and_small(5, 3) * 1e-4),
    ),
    Case(
        "embedding, one id everywhere", mb.ops.embedding(), flax_embedding,
        exactly(np.full((301,), 2, np.int32), large_and_small(5, 3)),
    ),
    Case(
        "positional_embedding, large and small", mb.ops.positional_embedding(), lambda x, table: x + table[:5],
        exactly(large_and_small(301, 5, 3), large_and_small(7, 3)),
    ),
    Case(
        "conv, large and small", mb.ops.conv(), flax_conv(),
        exactly(large_and_small(2, 7, 5, 3), large_and_small(3, 3, 3, 2) * 1e-4),
    ),
    Case(
        "conv, a kernel beyond x", mb.ops.conv(padding=5), flax_conv(padding=5),
        exactly(large_and_small(2, 3, 2), large_and_small(7, 2, 3) * 1e-4),
    ),
    Case(
        "conv_transpose, large and small", mb.ops.conv_transpose(strides=(2,)), flax_conv_transpose((2,)),
        exactly(large_and_small(2, 7, 3), large_and_small(3, 3, 2) * 1e-4),
    ),
]  # fmt: skip

# No examples: cotangents of the right shapes, zeros where a sum has no terms.
EMPTY: list[Case] = [
    Case("dense, no examples", mb.ops.dense(), flax_dense, normal((0, 5), (5, 3), (3,))),
    Case("low_rank_dense, no examples", mb.ops.low_rank_dense(), low_rank(), normal((0, 5), (5, 3), (5, 2), (2, 3))),
    Case("bilinear, no examples", mb.ops.bilinear(), bilinear, normal((0, 5), (0, 3), (2, 5, 3), (2,))),
    Case(
        "bilinear, no examples, many outputs", mb.ops.bilinear(bias=False), bilinear, normal((0, 5), (0, 3), (7, 5, 3))
    ),
    einsum_case("ij,jk->ki", (0, 5), (5, 3)),
    Case("embedding, no ids", mb.ops.embedding(), flax_embedding, lookup(5, 3, 0)),
    Case(
        "positional_embedding, no examples",
        mb.ops.positional_embedding(),
        lambda x, table: x + table[:5],
        normal((0, 5, 3), (7, 3)),
    ),
    conv_case("conv, no examples", (0, 7, 5, 3), (3, 2, 3, 5), (5,)),
    conv_case("conv, no examples, in groups", (2, 0, 7, 4), (3, 2, 6), strides=2, groups=2),
    conv_case("conv, no examples, depthwise", (0, 7, 3), (3, 1, 3), groups=3),
    conv_transpose_case("conv_transpose, no examples", (0, 5, 3), (3, 3, 2), strides=(2,)),
]


@st.composite
def drawn(draw) -> Case:
    """Any op of this family, its options and its shapes."""
    size = lambda low=1, high=5: draw(st.integers(low, high))
    leading = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    names = "dense low_rank_dense bilinear einsum embedding positional_embedding conv conv_transpose"
    match draw(st.sampled_from(names.split())):
        case "dense":
            i, o = size(), size()
            return Case("dense", mb.ops.dense(), flax_dense, normal((*leading, i), (i, o), (o,)))
        case "low_rank_dense":
            (i, r, o), scale = (size(), size(), size()), draw(st.floats(-2, 2))
            shapes = (*leading, i), (i, o), (i, r), (r, o)
            return Case("low_rank_dense", mb.ops.low_rank_dense(scale=scale), low_rank(scale), normal(*shapes))
        case "bilinear":
            o, i, j = size(), size(), size()
            return Case("bilinear", mb.ops.bilinear(), bilinear, normal((*leading, i), (*leading, j), (o, i, j), (o,)))
        case "einsum":
            sizes = {i: size() for i in "ijkl"}
            terms = [draw(st.permutations("ijkl"))[: size(0, 4)] for _ in range(2)]
            result = draw(st.permutations(sorted({*terms[0], *terms[1]})))[: size(0, 4)]
            a, b = ([1 if size(1, 6) == 1 else sizes[i] for i in term] for term in terms)
            return einsum_case(f"{''.join(terms[0])},{''.join(terms[1])}->{''.join(result)}", a, b)
        case "positional_embedding":
            T, rows, d = size(), size(), size()
            shapes = (*leading, T, d), (T + rows, d)
            return Case("positional_embedding", mb.ops.positional_embedding(), lambda x, t: x + t[:T], normal(*shapes))
        case "embedding":
            return Case("embedding", mb.ops.embedding(), flax_embedding, lookup(size(), size(), *leading))
    # A convolution of one or two axes. Padding of a reach on both sides: the kernel fits in.
    axes = size(1, 2)
    each = lambda high: tuple(size(1, high) for _ in range(axes))
    spatial, kernel, strides, dilation, groups = each(5), each(3), each(3), each(2), size(1, 2)
    reach = [(K - 1) * d for K, d in zip(kernel, dilation, strict=True)]
    padding = draw(st.sampled_from(["SAME", tuple((size(0, most), most) for most in reach)]))
    inputs, outputs = size(1, 2), size(1, 2)
    x, w = (*leading, *spatial, groups * inputs), (*kernel, inputs, groups * outputs)
    if draw(st.booleans()):
        return conv_case("conv", x, w, strides=strides, padding=padding, kernel_dilation=dilation, groups=groups)
    padding = "SAME" if padding == "SAME" else tuple(zip(reach, reach, strict=True))
    if not leading:
        x = (1, *x)
    reference = lambda x, w: lax.conv_transpose(x.reshape(-1, *x.shape[-axes - 1 :]), w, strides, padding, dilation)
    op = mb.ops.conv_transpose(strides=strides, padding=padding, kernel_dilation=dilation, groups=groups)
    shaped = lambda x, w: (y := group_by_group(reference, groups)(x, w)).reshape(*x.shape[: -axes - 1], *y.shape[1:])
    return Case("conv_transpose", op, shaped, normal(x, w))


ONES, IDS, TABLE = jnp.ones, jnp.arange(4), jnp.ones((5, 3))
IMAGE, KERNEL = ONES((2, 7, 5, 3)), ONES((3, 3, 3, 2))

# What a user gets wrong, and the part of the one line that says so.
MISTAKES: dict = {
    "dense: a bias of integers": (
        lambda: mb.ops.dense()(ONES((7, 5)), ONES((5, 3)), jnp.arange(3)),
        "dense: b is int32; wants floating point",
    ),
    "low_rank_dense: x of another size": (
        lambda: mb.ops.low_rank_dense()(ONES((7, 4)), ONES((5, 3)), ONES((5, 2)), ONES((2, 3))),
        "low_rank_dense: x has shape (7, 4), w (5, 3); x's last axis must be 5",
    ),
    "low_rank_dense: a and b exchanged": (
        lambda: mb.ops.low_rank_dense()(ONES((7, 5)), ONES((5, 3)), ONES((2, 3)), ONES((5, 2))),
        "low_rank_dense: a has shape (2, 3), b (5, 2), w (5, 3); wants a (5, rank), b (rank, 3)",
    ),
    "low_rank_dense: a vector": (
        lambda: mb.ops.low_rank_dense()(ONES((7, 5)), ONES((5, 3)), ONES(5), ONES(3)),
        "low_rank_dense: w has shape (5, 3), a (5,), b (3,); wants [in, out], [in, rank], [rank, out]",
    ),
    "bilinear: batches that differ": (
        lambda: mb.ops.bilinear(bias=False)(ONES((7, 5)), ONES((6, 3)), ONES((2, 5, 3))),
        "bilinear: x1 has shape (7, 5), x2 (6, 3), w (2, 5, 3); wants x1 [..., 5] and x2 [..., 3], ... alike",
    ),
    "bilinear: a matrix": (
        lambda: mb.ops.bilinear(bias=False)(ONES((7, 5)), ONES((7, 3)), ONES((5, 3))),
        "bilinear: w has shape (5, 3); wants [out, in1, in2]",
    ),
    "bilinear: a bias of another size": (
        lambda: mb.ops.bilinear()(ONES((7, 5)), ONES((7, 3)), ONES((2, 5, 3)), ONES(3)),
        "bilinear: b has shape (3,), w (2, 5, 3); b must be (2,)",
    ),
    "Bilinear: one array": (
        lambda: Bilinear(2).init(None, ONES((7, 5))),
        "Bilinear: x is one array; wants a pair (x1, x2)",
    ),
    "einsum: one operand": (
        lambda: mb.ops.einsum(subscripts="ij->i"),
        "einsum: subscripts are 'ij->i'; wants two operands, as in 'ij,jk->ik'",
    ),
    "einsum: no letter": (lambda: mb.ops.einsum(subscripts="i1,j"), "wants letters, one comma, '...' and '->'"),
    "einsum: a dot": (
        lambda: mb.ops.einsum(subscripts=".ij,jk->.ik"),
        "einsum: subscripts are '.ij,jk->.ik'; wants letters, one comma, '...' and '->'",
    ),
    "einsum: a diagonal": (
        lambda: mb.ops.einsum(subscripts="ii,ij->j"),
        "einsum: subscripts 'ii,ij->j' have an index twice in 'ii'; wants each once in a term",
    ),
    "einsum: an index from nowhere": (
        lambda: mb.ops.einsum(subscripts="ij,jk->il"),
        "einsum: subscripts 'ij,jk->il' give 'il' an index that no operand has",
    ),
    "einsum: too many axes": (
        lambda: mb.ops.einsum(subscripts="ij,jk->ik")(ONES((2, 7, 5)), ONES((5, 3))),
        "einsum: a has shape (2, 7, 5), subscripts are 'ij,jk->ik'; wants 2 axes",
    ),
    "einsum: sizes that differ": (
        lambda: mb.ops.einsum(subscripts="ij,jk->ik")(ONES((7, 5)), ONES((3, 2))),
        "index 'j' of 'ij,jk->ik' is 5 in a and 3 in b; wants them alike, or one of them 1",
    ),
    "embedding: an id beyond the table": (
        lambda: mb.ops.embedding()(IDS + 2, TABLE),
        "embedding: id 5 is outside 0 … 4, the 5 rows of the table",
    ),
    "embedding: ids of floats": (
        lambda: mb.ops.embedding()(IDS.astype(float), TABLE),
        "embedding: ids are float32; wants integers: convert them with .astype(int)",
    ),
    "embedding: the arguments exchanged": (
        lambda: mb.ops.embedding()(TABLE, IDS),
        "embedding: table is int32; wants floating point",
    ),
    "embedding: padding beyond the table": (
        lambda: mb.ops.embedding(padding_id=5)(IDS, TABLE),
        "embedding: padding_id is 5, the table has 5 rows; wants 0 … 4",
    ),
    "embedding: negative padding": (
        lambda: mb.ops.embedding(padding_id=-1),
        "embedding: padding_id is -1; wants at least 0",
    ),
    "embedding: a vector": (lambda: mb.ops.embedding()(IDS, ONES(5)), "table has shape (5,); wants [rows, features]"),
    "positional_embedding: longer than the table": (
        lambda: mb.ops.positional_embedding()(ONES((2, 9, 3)), ONES((7, 3))),
        "positional_embedding: x has 9 positions, the table 7 rows; wants no more than it has",
    ),
    "positional_embedding: other features": (
        lambda: mb.ops.positional_embedding()(ONES((2, 5, 3)), ONES((7, 2))),
        "positional_embedding: x has shape (2, 5, 3), table (7, 2); wants [..., length, features] and [rows, features]",
    ),
    "conv: channels first": (
        lambda: mb.ops.conv()(ONES((2, 3, 7, 5)), KERNEL),
        "conv: x has shape (2, 3, 7, 5), w (3, 3, 3, 2), groups is 1; wants x [..., h, w, 3]",
    ),
    "conv: a stride of zero": (
        lambda: mb.ops.conv(strides=(1, 0)),
        "conv: strides is 0; wants a whole number, at least 1",
    ),
    "conv: three strides, two axes": (
        lambda: mb.ops.conv(strides=(1, 2, 3))(IMAGE, KERNEL),
        "conv: strides is (1, 2, 3), w has 2 spatial axes; wants 2 numbers, or one",
    ),
    "conv: an unknown padding": (
        lambda: mb.ops.conv(padding="same"),
        "conv: padding is 'same'; wants 'SAME', 'VALID', a whole number or a tuple (each a whole number or a tuple",
    ),
    "conv: groups that do not divide": (
        lambda: mb.ops.conv(groups=3)(IMAGE, ONES((3, 3, 1, 2))),
        "conv: w has shape (3, 3, 1, 2); wants a multiple of groups, 3, as its last axis",
    ),
    "conv: a kernel that does not fit": (
        lambda: mb.ops.conv(padding="VALID", kernel_dilation=3)(IMAGE, KERNEL),
        "conv: a kernel (3, 3) does not fit into x, (7, 5) with padding ((0, 0), (0, 0)), kernel_dilation (3, 3)",
    ),
    "conv: no spatial axes": (
        lambda: mb.ops.conv()(ONES((7, 5)), ONES((5, 3))),
        "conv: w has shape (5, 3); wants 1 to 3 spatial axes, then two of channels",
    ),
    "conv: an empty image": (
        lambda: mb.ops.conv()(ONES((2, 0, 5, 3)), KERNEL),
        "conv: x has shape (2, 0, 5, 3), w (3, 3, 3, 2); wants at least one entry along these axes",
    ),
    "conv: a bias of another size": (
        lambda: mb.ops.conv(bias=True)(IMAGE, KERNEL, ONES(3)),
        "conv: b has shape (3,); wants (2,), the channels out",
    ),
    "Conv: one number for a kernel": (
        lambda: Conv(3, 3),
        "Conv: kernel_size is 3; wants 1 to 3 numbers, one for each axis, as (3, 3)",
    ),
    "Conv: no groups": (lambda: Conv(4, (3,), groups=0), "groups is 0; wants a whole number, at least 1"),
    "Conv: groups that do not divide": (
        lambda: Conv(4, (3,), groups=2).init(None, ONES((2, 7, 3))),
        "Conv: x has shape (2, 7, 3), groups is 2; wants a multiple as x's last axis",
    ),
    "conv_transpose: images of integers": (
        lambda: mb.ops.conv_transpose()(jnp.ones((2, 5, 3), int), ONES((3, 3, 2))),
        "conv_transpose: x is int32; wants floating point",
    ),
}
