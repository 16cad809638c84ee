"""Routing: the references are jax.lax.top_k, jnp.take, `x.at[…]`, jax.random.bernoulli and jax.lax.stop_gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import manual_backprop as mb
from cases.case import Case, Draw, exactly, key_from, normal
from manual_backprop.layers import Dense, Dropout, GaussianSample, StochasticDepth

# Ops whose dx is, on purpose, not the derivative of their y: central differences say nothing about them.
BY_DECREE = {"straight_through_round", "stop_gradient", "reverse_gradient"}

KEY = jax.random.key(0)
X, INDICES = jnp.ones((7, 5)), jnp.arange(3)


def gate(k: int, renormalise: bool = True):
    def reference(logits):
        logits = jnp.asarray(logits)
        p, (values, indices) = jax.nn.softmax(logits), jax.lax.top_k(logits, k)
        picked = jax.nn.one_hot(indices, logits.shape[-1], dtype=logits.dtype)  # [..., k, experts]
        weights = jax.nn.softmax(values) if renormalise else jnp.take_along_axis(p, indices, -1)
        f, P = (jnp.mean(a.reshape(-1, logits.shape[-1]), 0) for a in (picked, p))
        return jnp.einsum("...k,...ke->...e", weights, picked), logits.shape[-1] * jnp.sum(f * P)

    return reference


def indexed(x: tuple[int, ...], indices: tuple[int, ...], axis: int, *updates: tuple[int, ...], dtype=np.int32) -> Draw:
    """x, indices along the axis, some of them negative and some twice, and updates."""
    size = x[axis]
    return lambda rng: (
        rng.standard_normal(x),
        rng.integers(-size if np.issubdtype(dtype, np.signedinteger) else 0, size, indices).astype(dtype),
        *(rng.standard_normal(shape) for shape in updates),
    )


def take(axis: int):
    return lambda x, indices: jnp.take(x, indices, axis)


def take_along(axis: int):
    return lambda x, indices: jnp.take_along_axis(x, indices, axis)


def added(x, indices, updates):
    return jnp.asarray(x).at[indices].add(updates)


def written(x, indices, updates):
    return jnp.asarray(x).at[indices].set(updates)


def with_key(*shape: int) -> Draw:
    return lambda rng: (rng.standard_normal(shape), key_from(rng))


def with_old_key(*shape: int) -> Draw:
    """A key of jax.random.PRNGKey: two numbers."""
    return lambda rng: (rng.standard_normal(shape), rng.integers(0, 2**32, 2, dtype=np.uint32))


def dropped(keep: float, *shared: int):
    """Draws in float32 also where x is in float64: the mask is to be the same."""

    def reference(x, key):
        shape = [1 if axis in shared else n for axis, n in enumerate(x.shape)]
        return x * jax.random.bernoulli(key, jnp.float32(keep), shape) / keep

    return reference


def gaussian(rng):
    """A mean, the logarithm of a variance, and a key."""
    return (*normal((7, 5), (7, 5))(rng), key_from(rng))


def sampled(mean, log_variance, key):
    """The noise in float32 also where the mean is in float64: it is to be the same."""
    return mean + jnp.sqrt(jnp.exp(log_variance)) * jax.random.normal(key, mean.shape, jnp.float32)


def quantised(step: float, low: float = -np.inf, high: float = np.inf):
    def reference(x):
        inside = jnp.clip(x, low, high)
        return inside + jax.lax.stop_gradient(jnp.clip(jnp.round(x / step) * step, low, high) - inside)

    return reference


def reversed_gradient(scale: float):
    return lambda x: jax.lax.stop_gradient(x * (1 + scale)) - scale * x


def pinned(x):
    """Rounded and clipped in y alone."""
    return x + jax.lax.stop_gradient(jnp.clip(jnp.round(2 * x) / 2, -1, 1) - x)


OPS = [
    Case("top_k_gate", mb.ops.top_k_gate(k=2), gate(2), normal((3, 7, 5)), normal((16384, 8))),
    Case("top_k_gate, softmax over all", mb.ops.top_k_gate(k=2, renormalise=False), gate(2, False), normal((7, 5))),
    Case("top_k_gate, one", mb.ops.top_k_gate(k=1, renormalise=False), gate(1, False), normal((7, 5))),
    Case("gather", mb.ops.gather(), take(0), indexed((7, 5), (3, 11), 0), indexed((4099, 512), (4096,), 0)),
    Case("gather, last axis", mb.ops.gather(axis=-1), take(-1), indexed((2, 5, 7), (11,), -1, dtype=np.int8)),
    Case("gather_along", mb.ops.gather_along(), take_along(-1), indexed((7, 5), (7, 11), -1), indexed((4096, 64), (4096, 8), -1)),
    Case("gather_along, axis 0", mb.ops.gather_along(axis=0), take_along(0), indexed((7, 1, 5), (11, 3, 1), 0, dtype=np.uint8)),
    Case("scatter_add", mb.ops.scatter_add(), added, indexed((7, 5), (2, 11), 0, (2, 11, 5)), indexed((4099, 512), (4096,), 0, (4096, 512))),
    Case("scatter_add, middle axis", mb.ops.scatter_add(axis=-2), lambda x, i, u: added(x, np.s_[:, i], u), indexed((2, 7, 5), (11,), 1, (2, 11, 5), dtype=np.int8)),
    Case("scatter", mb.ops.scatter(), written, indexed((7, 5), (2, 5), 0, (2, 5, 5)), indexed((4099, 512), (4096,), 0, (4096, 512))),
    Case("scatter, middle axis", mb.ops.scatter(axis=1), lambda x, i, u: written(x, np.s_[:, i], u), indexed((2, 7, 5), (11,), 1, (2, 11, 5))),
    Case("dropout", mb.ops.dropout(keep_probability=0.7), dropped(0.7), with_key(7, 5), with_key(2048, 512)),
    Case("dropout, whole channels", mb.ops.dropout(keep_probability=0.5, broadcast_axes=(1, -2)), dropped(0.5, 1, 2), with_old_key(7, 2, 3, 5)),
    Case("dropout, all kept", mb.ops.dropout(keep_probability=1), lambda x, key: x, with_key(7, 5)),
    Case("stochastic_depth", mb.ops.stochastic_depth(keep_probability=0.6), dropped(0.6, 1, 2), with_key(11, 3, 5), with_key(64, 128, 256)),
    Case("gaussian_sample", mb.ops.gaussian_sample(), sampled, gaussian, lambda rng: (*normal((2048, 512), (2048, 512))(rng), key_from(rng))),
    Case("gaussian_sample, one number", mb.ops.gaussian_sample(), sampled, lambda rng: (*normal((), ())(rng), key_from(rng))),
    Case("straight_through_round", mb.ops.straight_through_round(step=0.25, low=-1, high=0.75), quantised(0.25, -1, 0.75), normal((7, 5)), normal((2048, 1024))),
    Case("straight_through_round, no ends", mb.ops.straight_through_round(), quantised(1), normal((7, 5))),
    Case("straight_through_round, all pass", mb.ops.straight_through_round(step=0.5, low=-1, high=1, clip_gradient=False), pinned, normal((7, 5))),
    Case("stop_gradient", mb.ops.stop_gradient(), jax.lax.stop_gradient, normal((7, 5)), normal((2048, 1024))),
    Case("reverse_gradient", mb.ops.reverse_gradient(scale=0.3), reversed_gradient(0.3), normal((7, 5)), normal((2048, 1024))),
]  # fmt: skip


def layer_with_key(name: str, layer: mb.Layer, reference, *shape: int) -> Case:
    """reference(x, key) is y."""
    return Case(
        name, layer, lambda params, state, x, key: reference(x, key), lambda rng: ({}, (), *with_key(*shape)(rng))
    )


LAYERS: list[Case] = [
    layer_with_key("Dropout", Dropout(0.7), dropped(0.7), 7, 5),
    layer_with_key("StochasticDepth", StochasticDepth(0.6), dropped(0.6, 1), 11, 5),
    Case(
        "GaussianSample",
        GaussianSample(),
        lambda params, state, x, key: sampled(*x, key),
        lambda rng: ({}, (), normal((7, 5), (7, 5))(rng), key_from(rng)),
    ),
]

# Judged in every precision: finite where the truth is, and right.
FAR = np.float32([[1e4, -1e4, 0, 1e4, 3], [-1e4, -1e4, -1e4, -1e4, 1e4], [0, 1e-38, -1e-38, 1e-44, 0]])
LOGITS = np.float32([*FAR[:2], [0, 3, 1e-44, 2, -1e-38]])
EXTREMES: list[Case] = [
    Case("top_k_gate, far apart", mb.ops.top_k_gate(k=2), gate(2), exactly(LOGITS)),
    Case("top_k_gate, softmax over all, far apart", mb.ops.top_k_gate(k=2, renormalise=False), gate(2, False), exactly(LOGITS)),
    Case("top_k_gate, all equal", mb.ops.top_k_gate(k=3), gate(3), exactly(np.full((7, 5), 2.0))),
    Case("top_k_gate, one expert", mb.ops.top_k_gate(k=1), gate(1), exactly(FAR[:, :1])),
    Case("gather, of large and small", mb.ops.gather(axis=1), take(1), exactly(FAR, np.int32([0, 0, 2, 4, 0]))),
    Case("scatter_add, large numbers", mb.ops.scatter_add(axis=1), lambda x, i, u: added(x, np.s_[:, i], u), exactly(FAR, np.int32([0, 0]), FAR[:, :2])),
    Case("scatter, infinite where it is overwritten", mb.ops.scatter(), written, exactly(np.float32([np.inf, 1, 2]), np.int32([0, 0]), np.float32([np.inf, 3]))),
    Case("dropout, large numbers", mb.ops.dropout(keep_probability=0.5), dropped(0.5), lambda rng: (FAR, key_from(rng))),
    Case("gaussian_sample, far and almost sure", mb.ops.gaussian_sample(), sampled, lambda rng: (FAR, np.float32([[-40, -40, -200, 20, 1e-30]] * 3), key_from(rng))),
    Case("straight_through_round, far outside", mb.ops.straight_through_round(low=-1, high=1), quantised(1, -1, 1), exactly(FAR[:2])),
]  # fmt: skip

# No examples: cotangents of the right shapes, zeros where a sum has no terms.
EMPTY: list[Case] = [
    Case("gather, no indices", mb.ops.gather(), take(0), indexed((7, 5), (0,), 0)),
    Case("gather_along, no examples", mb.ops.gather_along(), take_along(-1), indexed((0, 5), (0, 3), -1)),
    Case("scatter_add, no updates", mb.ops.scatter_add(), added, indexed((7, 5), (0,), 0, (0, 5))),
    Case("scatter, no updates", mb.ops.scatter(), written, indexed((7, 5), (0,), 0, (0, 5))),
    Case("scatter, no columns", mb.ops.scatter(), written, indexed((7, 0), (3,), 0, (3, 0))),
    Case("dropout, no examples", mb.ops.dropout(keep_probability=0.5), dropped(0.5), with_key(0, 5)),
    Case("stochastic_depth, no examples", mb.ops.stochastic_depth(keep_probability=0.5), dropped(0.5, 1), with_key(0, 5)),
    Case("gaussian_sample, no examples", mb.ops.gaussian_sample(), sampled, lambda rng: (*normal((0, 5), (0, 5))(rng), key_from(rng))),
    Case("straight_through_round, no examples", mb.ops.straight_through_round(), quantised(1), normal((0, 5))),
]  # fmt: skip


@st.composite
def drawn(draw) -> Case:
    """Any op of this family, its options and its shapes."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    before, after = shape[: axis % len(shape)], shape[axis % len(shape) + 1 :]
    many = tuple(draw(st.lists(st.integers(1, 4), max_size=2)))
    k, renormalise = draw(st.integers(1, shape[-1])), draw(st.booleans())
    keep, shared = draw(st.sampled_from([0.2, 0.5, 0.9])), draw(st.sets(st.integers(0, len(shape) - 1)))
    index = (*[slice(None)] * len(before),)
    lined = (*before, draw(st.integers(1, 6)), *after)
    return draw(
        st.sampled_from(
            [
                Case("gate", mb.ops.top_k_gate(k=k, renormalise=renormalise), gate(k, renormalise), normal(shape)),
                Case("gather", mb.ops.gather(axis=axis), take(axis), indexed(shape, many, axis)),
                Case("gather_along", mb.ops.gather_along(axis=axis), take_along(axis), indexed(shape, lined, axis)),
                Case("scatter_add", mb.ops.scatter_add(axis=axis), lambda x, i, u: x.at[*index, i].add(u), indexed(shape, many, axis, (*before, *many, *after))),
                Case("scatter", mb.ops.scatter(axis=axis), lambda x, i, u: x.at[*index, i].set(u), indexed(shape, many, axis, (*before, *many, *after))),
                Case("dropout", mb.ops.dropout(keep_probability=keep, broadcast_axes=tuple(shared)), dropped(keep, *shared), with_key(*shape)),
                Case("gaussian_sample", mb.ops.gaussian_sample(), sampled, lambda rng: (*normal(shape, shape)(rng), key_from(rng))),
                Case("round", mb.ops.straight_through_round(step=keep, low=-1), quantised(keep, -1), normal(shape)),
            ]
        )
    )  # fmt: skip


# What a user gets wrong, and the part of the one line that says so.
MISTAKES: dict = {
    "more choices than experts": (
        lambda: mb.ops.top_k_gate(k=6)(X),
        "top_k_gate: logits have shape (7, 5); wants a last axis of at least k = 6 experts",
    ),
    "no choice": (lambda: mb.ops.top_k_gate(k=0), "top_k_gate: k is 0; wants a whole number, at least 1"),
    "a gate of no tokens": (lambda: mb.ops.top_k_gate(k=2)(X[:0]), "top_k_gate: the batch is empty, shape (0, 5)"),
    "integer logits for a gate": (lambda: mb.ops.top_k_gate(k=2)(X.astype(int)), "top_k_gate: logits is int32"),
    "float indices": (
        lambda: mb.ops.gather()(X, jnp.ones(3)),
        "gather: indices are float32; wants integers: convert them with .astype(int)",
    ),
    "an index too large": (
        lambda: mb.ops.gather()(X, INDICES + 5),
        "gather: index 7 is out of range; wants -7 … 6, an axis of 7",
    ),
    "an index too far from the end": (lambda: mb.ops.gather_along()(X, -6 * jnp.ones((7, 1), int)), "index -6 is out of range"),
    "an axis too far to gather along": (lambda: mb.ops.gather(axis=2)(X, INDICES), "gather: axis 2 is out of range; wants -2 … 1"),
    "lines that do not fit the indices": (
        lambda: mb.ops.gather_along()(X, jnp.zeros((3, 2), int)),
        "gather_along: x has shape (7, 5), indices (3, 2); wants them alike but for axis -1",
    ),
    "indices of another rank": (lambda: mb.ops.gather_along()(X, INDICES), "gather_along: x has shape (7, 5), indices (3,); wants"),
    "an axis of nothing": (lambda: mb.ops.gather()(X[:0], INDICES), "gather: index 0 is out of range"),
    "updates that do not fit": (
        lambda: mb.ops.scatter_add()(X, INDICES, jnp.ones((5, 3))),
        "scatter_add: x has shape (7, 5), indices (3,), updates (5, 3); updates must be (3, 5)",
    ),
    "updates along another axis": (
        lambda: mb.ops.scatter(axis=1)(X, INDICES, jnp.ones((3, 5))),
        "scatter: x has shape (7, 5), indices (3,), updates (3, 5); updates must be (7, 3)",
    ),
    "integer updates": (lambda: mb.ops.scatter()(X, INDICES, jnp.ones((3, 5), int)), "scatter: updates is int32"),
    "nothing kept": (lambda: mb.ops.dropout(keep_probability=0), "dropout: keep_probability is 0; wants above 0, at most 1"),
    "a rate in per cent": (lambda: Dropout(90), "dropout: keep_probability is 90; wants above 0, at most 1"),
    "dropout without a key": (
        lambda: mb.Serial(Dense(3), Dropout(0.9)).forward(*mb.Serial(Dense(3), Dropout(0.9)).init(KEY, X), X),
        "Serial[1] Dropout(0.9): Dropout: got no key; wants one",
    ),
    "a seed for a key": (
        lambda: mb.ops.dropout(keep_probability=0.9)(X, 0),
        "dropout: key is int32[]; wants one key, such as jax.random.key(0)",
    ),
    "several keys": (lambda: mb.ops.dropout(keep_probability=0.9)(X, jax.random.split(KEY)), "dropout: key is key<fry>[2]"),
    "a shared axis that is not there": (
        lambda: mb.ops.dropout(keep_probability=0.9, broadcast_axes=(2,))(X, KEY),
        "dropout: axis 2 is out of range",
    ),
    "depth without examples": (
        lambda: mb.ops.stochastic_depth(keep_probability=0.9)(1.0, KEY),
        "stochastic_depth: x has shape (); wants at least one axis",
    ),
    "a log variance of another shape": (
        lambda: mb.ops.gaussian_sample()(X, X[0], KEY),
        "gaussian_sample: log_variance has shape (5,); wants (7, 5), as mean",
    ),
    "a sample without a key": (lambda: mb.ops.gaussian_sample()(X, X, 0), "gaussian_sample: key is int32[]; wants one key"),
    "an integer mean": (lambda: mb.ops.gaussian_sample()(INDICES, INDICES, KEY), "gaussian_sample: mean is int32"),
    "a mean alone": (
        lambda: GaussianSample().apply({}, (), X),
        "GaussianSample: got one array; wants a pair (mean, log_variance)",
    ),
    "a sampling layer without a key": (lambda: GaussianSample().forward({}, (), (X, X)), "GaussianSample: got no key; wants one"),
    "no step": (
        lambda: mb.ops.straight_through_round(step=0),
        "straight_through_round: step is 0, low -inf, high inf; wants a step above 0, and low ≤ high",
    ),
    "ends the wrong way round": (lambda: mb.ops.straight_through_round(low=1, high=-1), "low 1, high -1; wants"),
    "integers to round": (lambda: mb.ops.straight_through_round()(INDICES), "straight_through_round: x is int32"),
    "integers to stop": (lambda: mb.ops.stop_gradient()(INDICES), "stop_gradient: x is int32"),
    "integers to reverse": (lambda: mb.ops.reverse_gradient()(INDICES), "reverse_gradient: x is int32"),
}  # fmt: skip
