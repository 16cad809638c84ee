"""Normalisations."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import manual_backprop as mb
from cases.case import Case, Draw, exactly, layer_case, normal
from manual_backprop.layers import Apply, BatchNorm, GroupNorm, InstanceNorm, LayerNorm, LayerScale, RMSNorm

# ── references: flax, with the statistics in two passes where it has the choice ──────────────────────────────────────


def flax_norm(module: type[nn.Module], eps: float = 1e-5, scale: bool = True, bias: bool = True, **options) -> Callable:
    """(x, and those of scale and bias that the options leave) → y."""
    names = [name for name, used in (("scale", scale), ("bias", bias)) if used]
    switches = {"use_scale": scale} if module is nn.RMSNorm else {"use_scale": scale, "use_bias": bias}
    layer = module(epsilon=eps, **switches, **{"use_fast_variance": False, **options})

    def reference(x, *parameters):
        variables = {"params": dict(zip(names, parameters, strict=True))}
        if module is nn.BatchNorm:
            variables["batch_stats"] = {"mean": jnp.zeros(x.shape[-1:]), "var": jnp.ones(x.shape[-1:])}
            return layer.apply(variables, x, mutable=["batch_stats"])[0]
        return layer.apply(variables, x)

    return reference


def flax_layer_norm(eps: float = 1e-5, axes: int = 1, **options) -> Callable:
    trailing = tuple(range(-axes, 0))
    return flax_norm(nn.LayerNorm, eps, reduction_axes=trailing, feature_axes=trailing, **options)


def flax_rms_norm(eps: float = 1e-6, axes: int = 1, **options) -> Callable:
    trailing = tuple(range(-axes, 0))
    return flax_norm(nn.RMSNorm, eps, bias=False, reduction_axes=trailing, feature_axes=trailing, **options)


def flax_group_norm(groups: int, eps: float = 1e-5, **options) -> Callable:
    return flax_norm(nn.GroupNorm, eps, num_groups=groups, **options)


def flax_instance_norm(eps: float = 1e-5, **options) -> Callable:
    return flax_norm(nn.InstanceNorm, eps, **options)


def flax_batch_norm(eps: float = 1e-5, **options) -> Callable:
    return flax_norm(nn.BatchNorm, eps, use_running_average=False, **options)


def flax_batch_norm_inference(eps: float = 1e-5, scale: bool = True, bias: bool = True) -> Callable:
    layer = nn.BatchNorm(use_running_average=True, epsilon=eps, use_scale=scale, use_bias=bias)
    names = [name for name, used in (("scale", scale), ("bias", bias)) if used]

    def reference(x, *arguments):
        *parameters, mean, var = arguments
        params = dict(zip(names, parameters, strict=True))
        return layer.apply({"params": params, "batch_stats": {"mean": mean, "var": var}}, x)

    return reference


def unit_vectors(axis=-1, eps: float = 1e-12) -> Callable:
    return lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=axis, keepdims=True), eps)


def unit_or_zero_vectors(x):
    """The same where x may be zero: the root has no slope there, and jax's is NaN."""
    squares = jnp.sum(jnp.square(x), -1, keepdims=True)
    length = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
    return x / jnp.maximum(length, 1e-12)


# ── arguments ────────────────────────────────────────────────────────────────────────────────────────────────────────


def with_parameters(*shape: int, axes: int = 1, parameters: int = 2) -> Draw:
    """x of this shape, and parameters shaped like its last axes."""
    return normal(shape, *[shape[-axes:]] * parameters)


def with_statistics(*shape: int, parameters: int = 2) -> Draw:
    def draw(rng):
        mean, variance = rng.standard_normal(shape[-1]), rng.uniform(0.5, 1.5, shape[-1])
        return *with_parameters(*shape, parameters=parameters)(rng), mean, variance

    return draw


OPS = [
    Case(
        "layer_norm",
        mb.ops.layer_norm(),
        flax_layer_norm(),
        with_parameters(2, 7, 5),
        large=with_parameters(2048, 1024),
    ),
    Case("layer_norm, large eps", mb.ops.layer_norm(eps=0.5), flax_layer_norm(0.5), with_parameters(7, 5)),
    Case("layer_norm, one vector", mb.ops.layer_norm(), flax_layer_norm(), with_parameters(5)),
    Case(
        "layer_norm, two axes",
        mb.ops.layer_norm(trailing_axes=2),
        flax_layer_norm(axes=2),
        with_parameters(2, 3, 5, axes=2),
    ),
    Case(
        "layer_norm, no bias",
        mb.ops.layer_norm(bias=False),
        flax_layer_norm(bias=False),
        with_parameters(7, 5, parameters=1),
    ),
    Case(
        "layer_norm, no scale",
        mb.ops.layer_norm(scale=False),
        flax_layer_norm(scale=False),
        with_parameters(7, 5, parameters=1),
    ),
    Case(
        "layer_norm, x alone",
        mb.ops.layer_norm(scale=False, bias=False),
        flax_layer_norm(scale=False, bias=False),
        normal((7, 5)),
    ),
    Case(
        "rms_norm",
        mb.ops.rms_norm(),
        flax_rms_norm(),
        with_parameters(2, 7, 5, parameters=1),
        large=with_parameters(2048, 1024, parameters=1),
    ),
    Case(
        "rms_norm, two axes",
        mb.ops.rms_norm(trailing_axes=2, eps=0.1),
        flax_rms_norm(0.1, axes=2),
        with_parameters(2, 3, 5, axes=2, parameters=1),
    ),
    Case("rms_norm, x alone", mb.ops.rms_norm(scale=False), flax_rms_norm(scale=False), normal((7, 5))),
    Case(
        "group_norm",
        mb.ops.group_norm(groups=4),
        flax_group_norm(4, use_fast_variance=True),
        with_parameters(3, 2, 5, 12),
        large=with_parameters(32, 32, 32, 64),
    ),
    Case("group_norm, vectors", mb.ops.group_norm(groups=2, eps=0.1), flax_group_norm(2, 0.1), with_parameters(7, 10)),
    Case(
        "group_norm, no scale",
        mb.ops.group_norm(groups=1, scale=False),
        flax_group_norm(1, scale=False),
        with_parameters(3, 5, 2, parameters=1),
    ),
    Case(
        "group_norm, no bias",
        mb.ops.group_norm(groups=3, bias=False),
        flax_group_norm(3, bias=False),
        with_parameters(2, 5, 6, parameters=1),
    ),
    Case(
        "instance_norm",
        mb.ops.instance_norm(),
        flax_instance_norm(use_fast_variance=True),
        with_parameters(2, 3, 7, 5),
        large=with_parameters(32, 32, 32, 64),
    ),
    Case(
        "instance_norm, x alone",
        mb.ops.instance_norm(scale=False, bias=False, eps=0.1),
        flax_instance_norm(0.1, scale=False, bias=False),
        normal((2, 7, 3)),
    ),
    Case(
        "batch_norm",
        mb.ops.batch_norm(),
        flax_batch_norm(use_fast_variance=True),
        with_parameters(2, 7, 5),
        large=with_parameters(32, 32, 32, 64),
    ),
    Case(
        "batch_norm, no bias",
        mb.ops.batch_norm(bias=False, eps=0.1),
        flax_batch_norm(0.1, bias=False),
        with_parameters(7, 5, parameters=1),
    ),
    Case(
        "batch_norm, no scale",
        mb.ops.batch_norm(scale=False),
        flax_batch_norm(scale=False),
        with_parameters(7, 5, parameters=1),
    ),
    Case(
        "batch_norm, x alone",
        mb.ops.batch_norm(scale=False, bias=False),
        flax_batch_norm(scale=False, bias=False),
        normal((7, 5)),
    ),
    Case(
        "batch_norm_inference",
        mb.ops.batch_norm_inference(),
        flax_batch_norm_inference(),
        with_statistics(2, 7, 5),
        large=with_statistics(32, 32, 32, 64),
    ),
    Case(
        "batch_norm_inference, no bias",
        mb.ops.batch_norm_inference(bias=False),
        flax_batch_norm_inference(bias=False),
        with_statistics(7, 5, parameters=1),
    ),
    Case(
        "batch_norm_inference, no scale",
        mb.ops.batch_norm_inference(scale=False, eps=0.1),
        flax_batch_norm_inference(0.1, scale=False),
        with_statistics(7, 5, parameters=1),
    ),
    Case(
        "batch_norm_inference, x alone",
        mb.ops.batch_norm_inference(scale=False, bias=False),
        flax_batch_norm_inference(scale=False, bias=False),
        with_statistics(7, 5, parameters=0),
    ),
    Case("l2_norm", mb.ops.l2_norm(), unit_vectors(), normal((2, 7, 5)), large=normal((2048, 1024))),
    Case("l2_norm, first axis", mb.ops.l2_norm(axis=0), unit_vectors(0), normal((7, 5))),
    Case("l2_norm, two axes", mb.ops.l2_norm(axis=(0, -1)), unit_vectors((0, -1)), normal((3, 2, 5))),
    Case("l2_norm, large eps", mb.ops.l2_norm(axis=None, eps=20.0), unit_vectors(None, 20.0), normal((7, 5))),
]


# ── layers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def repeated_batch_norm(p, x):
    for i in range(3):
        x = x + jnp.tanh(flax_batch_norm(0.1, scale=False)(x, p[0]["bias"][i]))
    return x


LAYERS: list[Case] = [
    layer_case("LayerNorm", LayerNorm(), lambda p, x: flax_layer_norm()(x, p["scale"], p["bias"]), normal((7, 5))),
    layer_case(
        "LayerNorm, two axes",
        LayerNorm(trailing_axes=2, bias=False),
        lambda p, x: flax_layer_norm(axes=2, bias=False)(x, p["scale"]),
        normal((7, 3, 5)),
    ),
    layer_case("RMSNorm", RMSNorm(), lambda p, x: flax_rms_norm()(x, p["scale"]), normal((7, 5))),
    layer_case("GroupNorm", GroupNorm(2), lambda p, x: flax_group_norm(2)(x, p["scale"], p["bias"]), normal((3, 5, 6))),
    layer_case(
        "InstanceNorm", InstanceNorm(), lambda p, x: flax_instance_norm()(x, p["scale"], p["bias"]), normal((2, 7, 3))
    ),
    layer_case("LayerScale", LayerScale(), lambda p, x: x * p["scale"], normal((7, 3, 5))),
    layer_case("BatchNorm", BatchNorm(), lambda p, x: flax_batch_norm()(x, p["scale"], p["bias"]), normal((7, 5))),
    layer_case(
        "BatchNorm, Repeat of Residual of Serial",
        mb.Repeat(mb.Residual(mb.Serial(BatchNorm(eps=0.1, scale=False), Apply(mb.ops.tanh()))), 3),
        repeated_batch_norm,
        normal((7, 5)),
    ),
]


# ── extremes ─────────────────────────────────────────────────────────────────────────────────────────────────────────

NOISE = np.array([[3.0, -2.0, 5.0, -6.0, 1.0], [1.0, 4.0, -3.0, 2.0, -5.0], [-2.0, 1.0, 4.0, -1.0, 3.0]])
SCALE, BIAS = np.array([1.5, -0.5, 2.0, 0.75, -1.25]), np.array([0.5, -1.0, 0.25, 2.0, -0.75])
ROWS = {
    "1e4": 1e4 * NOISE,
    "1e18": 1e18 * NOISE,
    "1e30": 1e30 * NOISE,
    "1e-4": 1e-4 * NOISE,
    "denormal": 1e-41 * NOISE,
    "far from zero": 1e4 + NOISE,  # E[x²] - E[x]² has no digit left of this in float32
    "constant": np.full((3, 5), 7.0),
    "zero": np.zeros((3, 5)),
}


def extreme(name: str, op: mb.Op, reference: Callable, x: np.ndarray) -> Case:
    parameters = {"scale": SCALE, "bias": BIAS, "mean": BIAS, "variance": SCALE**2}
    return Case(name, op, reference, exactly(x, *(parameters[name][: x.shape[-1]] for name in op.arguments[1:])))


def magnified(op: mb.Op, factor: float) -> Callable:
    """The op of factor · x, in at least float32: the same y where y is of length one, while x and dx stay near 1."""
    return lambda x: op(factor * x.astype(jnp.promote_types(x.dtype, jnp.float32))).astype(x.dtype)


# Judged in every precision: finite where the truth is, and right.
EXTREMES: list[Case] = [
    *(
        extreme(f"{op.name}, {what}", op, reference, x)
        for what, x in ROWS.items()
        for op, reference in (
            (mb.ops.layer_norm(), flax_layer_norm()),
            (mb.ops.rms_norm(), flax_rms_norm()),
            (mb.ops.batch_norm(), flax_batch_norm()),
            (mb.ops.l2_norm(), unit_or_zero_vectors),
        )
    ),
    *(
        extreme(f"{op.name}, {what}", op, reference, np.stack([ROWS[what]] * 2))
        for what in ("1e18", "1e30", "far from zero", "constant")
        for op, reference in (
            (mb.ops.group_norm(groups=1), flax_group_norm(1)),
            (mb.ops.instance_norm(), flax_instance_norm()),
            (mb.ops.batch_norm_inference(), flax_batch_norm_inference()),
        )
    ),
    extreme("layer_norm, one channel", mb.ops.layer_norm(), flax_layer_norm(), NOISE[:, :1]),
    extreme("rms_norm, one channel", mb.ops.rms_norm(), flax_rms_norm(), NOISE[:, :1]),
    extreme("group_norm, one channel", mb.ops.group_norm(groups=1), flax_group_norm(1), NOISE[:, :, None]),
    extreme("group_norm, one value", mb.ops.group_norm(groups=1), flax_group_norm(1), NOISE[:, :1]),
    extreme("batch_norm, one channel", mb.ops.batch_norm(), flax_batch_norm(), NOISE[:, :1]),
    *(
        Case(f"l2_norm, 2^{n} times", magnified(mb.ops.l2_norm(eps=0), 2.0**n), unit_vectors(), exactly(NOISE))
        for n in (-110, -70, 70, 100, 110)
    ),
    extreme("l2_norm, one channel", mb.ops.l2_norm(), unit_vectors(), NOISE[:, :1]),
    extreme("l2_norm, below eps", mb.ops.l2_norm(eps=0.1), unit_vectors(eps=0.1), 1e-3 * NOISE),
]


# No examples: cotangents of the right shapes, zeros where a sum has no terms.
def affine(x, scale, bias):
    return scale * x + bias  # no statistics: flax's of nothing are NaN


EMPTY: list[Case] = [
    Case("layer_norm, no examples", mb.ops.layer_norm(), flax_layer_norm(), with_parameters(0, 5)),
    Case("rms_norm, no examples", mb.ops.rms_norm(), flax_rms_norm(), with_parameters(2, 0, 5, parameters=1)),
    Case("group_norm, no examples", mb.ops.group_norm(groups=3), flax_group_norm(3), with_parameters(0, 5, 6)),
    Case("instance_norm, no examples", mb.ops.instance_norm(), flax_instance_norm(), with_parameters(0, 7, 5)),
    Case("batch_norm, no examples", mb.ops.batch_norm(), affine, with_parameters(0, 5)),
    Case(
        "batch_norm_inference, no examples",
        mb.ops.batch_norm_inference(),
        flax_batch_norm_inference(),
        with_statistics(0, 5),
    ),
    Case("l2_norm, no examples", mb.ops.l2_norm(), unit_vectors(), normal((0, 5))),
]


@st.composite
def drawn(draw) -> Case:
    """Any op of this family, its options and its shapes; at least three values a statistic: two leave almost no slope."""
    size, leading = st.integers(3, 6), st.lists(st.integers(1, 4), max_size=3).map(tuple)
    eps = draw(st.sampled_from([1e-6, 1e-5, 0.1]))
    scale, bias = draw(st.booleans()), draw(st.booleans())
    switches = {"eps": eps, "scale": scale, "bias": bias}
    match draw(st.sampled_from(["layer", "rms", "group", "instance", "batch", "inference", "l2"])):
        case "layer":
            axes = draw(st.integers(1, 3))
            shape = (*draw(leading), *(draw(size) for _ in range(axes)))
            op, reference = mb.ops.layer_norm(trailing_axes=axes, **switches), flax_layer_norm(axes=axes, **switches)
            return Case("layer_norm", op, reference, with_parameters(*shape, axes=axes, parameters=scale + bias))
        case "rms":
            axes = draw(st.integers(1, 2))
            shape = (*draw(leading), *(draw(size) for _ in range(axes)))
            op = mb.ops.rms_norm(trailing_axes=axes, eps=eps, scale=scale)
            reference = flax_rms_norm(eps, axes, scale=scale)
            return Case("rms_norm", op, reference, with_parameters(*shape, axes=axes, parameters=scale))
        case "group":
            groups, per_group = draw(st.integers(1, 4)), draw(size)
            shape = (draw(st.integers(1, 4)), *draw(leading), groups * per_group)
            op, reference = mb.ops.group_norm(groups=groups, **switches), flax_group_norm(groups, **switches)
        case "instance":
            shape = (draw(st.integers(1, 4)), draw(size), *draw(leading), draw(st.integers(1, 5)))
            op, reference = mb.ops.instance_norm(**switches), flax_instance_norm(**switches)
        case "batch":
            shape = (*draw(leading), draw(size), draw(st.integers(1, 5)))
            op, reference = mb.ops.batch_norm(**switches), flax_batch_norm(**switches)
        case "inference":
            shape = (*draw(leading), draw(st.integers(1, 5)))
            op, reference = mb.ops.batch_norm_inference(**switches), flax_batch_norm_inference(**switches)
            return Case("batch_norm_inference", op, reference, with_statistics(*shape, parameters=scale + bias))
        case _:
            shape = draw(st.lists(size, min_size=1, max_size=4).map(tuple))
            axis = draw(st.integers(-len(shape), len(shape) - 1))
            return Case("l2_norm", mb.ops.l2_norm(axis=axis, eps=eps), unit_vectors(axis, eps), normal(shape))
    return Case(op.name, op, reference, with_parameters(*shape, parameters=scale + bias))


# What a user gets wrong, and the part of the one line that says so.
X, C = jnp.ones((2, 3, 6)), jnp.ones(6)
MISTAKES: dict = {
    "layer_norm: too few axes": (
        lambda: mb.ops.layer_norm(trailing_axes=3)(X[0], X, X),
        "layer_norm: x has shape (3, 6); wants 3 trailing axes of at least one entry",
    ),
    "layer_norm: scale of the last axis alone": (
        lambda: mb.ops.layer_norm(trailing_axes=2)(X, C, X[0]),
        "layer_norm: scale has shape (6,), x (2, 3, 6); scale must be (3, 6)",
    ),
    "layer_norm: negative eps": (
        lambda: mb.ops.layer_norm(eps=-1e-5),
        "layer_norm: eps is -1e-05; wants at least 0",
    ),
    "layer_norm: no trailing axes": (
        lambda: mb.ops.layer_norm(trailing_axes=0),
        "layer_norm: trailing_axes is 0; wants a whole number, at least 1",
    ),
    "layer_norm: integer scale": (lambda: mb.ops.layer_norm()(X, C.astype(int), C), "layer_norm: scale is int32"),
    "rms_norm: integer x": (lambda: mb.ops.rms_norm()(X.astype(int), C), "rms_norm: x is int32; wants floating point"),
    "rms_norm: nothing to normalise": (
        lambda: mb.ops.rms_norm()(X[..., :0], C[:0]),
        "rms_norm: x has shape (2, 3, 0); wants a last axis of at least one entry",
    ),
    "rms_norm: eps is no number": (lambda: mb.ops.rms_norm(eps=None), "rms_norm: eps is None; wants a number"),
    "group_norm: groups that do not divide": (
        lambda: mb.ops.group_norm(groups=4)(X, C, C),
        "group_norm: x has 6 channels; wants a multiple of 4, the groups",
    ),
    "group_norm: zero groups": (lambda: mb.ops.group_norm(groups=0), "group_norm: groups is 0; wants a whole number"),
    "group_norm: no batch": (
        lambda: mb.ops.group_norm(groups=2)(C, C, C),
        "group_norm: x has shape (6,); wants [batch, *positions, channels], none but the batch empty",
    ),
    "group_norm: no positions": (lambda: mb.ops.group_norm(groups=2)(X[:, :0], C, C), "x has shape (2, 0, 6)"),
    "group_norm: bias of another size": (
        lambda: mb.ops.group_norm(groups=2)(X, C, C[:2]),
        "group_norm: bias has shape (2,), x (2, 3, 6); bias must be (6,)",
    ),
    "instance_norm: one position": (
        lambda: mb.ops.instance_norm()(X[:, :1], C, C),
        "instance_norm: x has shape (2, 1, 6), one position; a variance wants at least two",
    ),
    "batch_norm: one example": (
        lambda: mb.ops.batch_norm()(X[0, :1], C, C),
        "batch_norm: x has shape (1, 6), one value a channel; a variance wants at least two: a larger batch, or "
        "batch_norm_inference",
    ),
    "batch_norm: no channels": (
        lambda: mb.ops.batch_norm()(X[..., :0], C[:0], C[:0]),
        "batch_norm: x has shape (2, 3, 0); wants [..., channels], at least one channel",
    ),
    "batch_norm: negative eps": (lambda: mb.ops.batch_norm(eps=-1), "batch_norm: eps is -1; wants at least 0"),
    "batch_norm_inference: variance of another size": (
        lambda: mb.ops.batch_norm_inference()(X, C, C, C, C[:1]),
        "batch_norm_inference: variance has shape (1,), x (2, 3, 6); variance must be (6,)",
    ),
    "batch_norm_inference: integer mean": (
        lambda: mb.ops.batch_norm_inference(scale=False, bias=False)(X, C.astype(int), C),
        "batch_norm_inference: mean is int32",
    ),
    "l2_norm: axis out of range": (
        lambda: mb.ops.l2_norm(axis=3)(X),
        "l2_norm: axis 3 is out of range; wants -3 … 2 for 3 axes",
    ),
    "l2_norm: integer x": (lambda: mb.ops.l2_norm()(X.astype(int)), "l2_norm: x is int32; wants floating point"),
    "l2_norm: negative eps": (lambda: mb.ops.l2_norm(eps=-1e-12), "l2_norm: eps is -1e-12"),
    "BatchNorm: momentum": (lambda: BatchNorm(momentum=1.5), "BatchNorm: momentum is 1.5; wants a number in 0 … 1"),
    "LayerNorm: half an axis": (
        lambda: LayerNorm(trailing_axes=0.5).init(jax.random.key(0), X),
        "layer_norm: trailing_axes is 0.5; wants a whole number",
    ),
    "GroupNorm: groups that do not divide": (
        lambda: mb.Serial(GroupNorm(4)).init(jax.random.key(0), X),
        "Serial[0] GroupNorm(groups=4): group_norm: x has 6 channels; wants a multiple of 4",
    ),
    "BatchNorm: one example": (
        lambda: BatchNorm().forward({"scale": C, "bias": C}, {"mean": C, "variance": C}, X[0, :1]),
        "batch_norm: x has shape (1, 6), one value a channel",
    ),
}
