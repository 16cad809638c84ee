"""Mistakes against the contract: cotangents of another structure or shape, passes that are not linear in dy."""

import jax.numpy as jnp
from jax import lax

from .wrong_activations import LEAKY, RELU, SILU, TANH
from .wrong_arrays import SUM
from .wrong_attention import ATTENTION, attention_backward
from .wrong_base import Op, normal
from .wrong_costs import MSE, SOFTMAX, through_softmax
from .wrong_linear import ADD, DENSE, MUL, dense_backward
from .wrong_norms import LAYER, NORM, RMS, layer_norm_backward, rms_norm_backward
from .wrong_sequence import LSTM, RNN, lstm_backward
from .wrong_windows import CONV, EMBEDDING

# ── Structure ────────────────────────────────────────────────────────────────────────────────────────────────────────

TREE = Op(
    "dense of a dict",
    lambda p, x: jnp.einsum("ni,ij->nj", x, p["w"]) + p["b"],
    lambda p, x: (x @ p["w"] + p["b"], (p["w"], x)),
    lambda r, dy: ({"b": dy.sum(0), "w": r[1].T @ dy}, dy @ r[0].T),
    lambda: ({"w": normal(0, 5, 3), "b": normal(1, 3)}, normal(2, 7, 5)),
)
SQUARE_TREE = lambda: ({"w": normal(0, 5, 5), "b": normal(1, 5)}, normal(2, 7, 5))
PARTS = Op(
    "sum of a list",
    lambda xs: xs[0] * xs[1] + xs[2],
    lambda xs: (sum((xs[0] * xs[1], xs[2])), xs),
    lambda xs, dy: ([dy * xs[1], dy * xs[0], dy],),
    lambda: ([normal(i, 7, 5) for i in range(3)],),
)
SCALE = Op(
    "scale by a scalar",
    lambda s, x: jnp.multiply(s, x),
    lambda s, x: (s * x, (s, x)),
    lambda r, dy: ((dy * r[1]).sum(), dy * r[0]),
    lambda: (jnp.float32(0.7), normal(1, 7, 5)),
)


def structure(op, mistake, backward, **named):
    return op.wrong(mistake, backward, kind="structure", **named)


structures = [
    structure(DENSE, "db missing", lambda r, dy: (r[1].T @ dy, dy @ r[0].T)),
    structure(DENSE, "db missing, as jax.custom_vjp", lambda r, dy: (r[1].T @ dy, dy @ r[0].T), function=True),
    structure(DENSE, "a cotangent too many", lambda r, dy: (*dense_backward(r, dy), dy)),
    structure(DENSE, "None for db", lambda r, dy: (r[1].T @ dy, None, dy @ r[0].T)),
    structure(DENSE, "None for dx, as jax.custom_vjp", lambda r, dy: (*dense_backward(r, dy)[:2], None), function=True),
    structure(DENSE, "dw transposed, of another shape", lambda r, dy: (dy.T @ r[1], dy.sum(0), dy @ r[0].T)),
    structure(DENSE, "dw flattened", lambda r, dy: ((r[1].T @ dy).ravel(), dy.sum(0), dy @ r[0].T)),
    structure(DENSE, "order of x, w, b", lambda r, dy: (dy @ r[0].T, r[1].T @ dy, dy.sum(0))),
    structure(
        DENSE, "dw for every row of the batch", lambda r, dy: (r[1][:, :, None] * dy[:, None], dy.sum(0), dy @ r[0].T)
    ),
    structure(DENSE, "keepdims left in db", lambda r, dy: (r[1].T @ dy, dy.sum(0, keepdims=True), dy @ r[0].T)),
    structure(ADD, "db not summed", lambda _, dy: (dy, dy)),
    structure(ADD, "db not summed, as jax.custom_vjp", lambda _, dy: (dy, dy), function=True),
    structure(MUL, "ds summed over one axis", lambda r, dy: (dy * r[1], (dy * r[0]).sum(0))),
    structure(LAYER, "dg not summed", lambda r, dy: (dy * r[2], *layer_norm_backward(r, dy)[1:])),
    structure(SOFTMAX, "an array, not a tuple", lambda r, dy: through_softmax(r[1], dy)),
    structure(SUM, "dx not broadcast", lambda x, dy: (dy,)),
    structure(SCALE, "ds of shape (1,)", lambda r, dy: ((dy * r[1]).sum().reshape(1), dy * r[0])),
    structure(SCALE, "ds not summed", lambda r, dy: (dy * r[1], dy * r[0])),
    structure(EMBEDDING, "a sparse pair for dtable", lambda r, dy: ((dy, r[1]), None)),
    structure(EMBEDDING, "gradient of the rows looked up", lambda r, dy: (dy, None)),
    structure(
        CONV,
        "dw with channels first",
        lambda r, dy: (CONV.backward(r, dy)[0].transpose(3, 2, 0, 1), CONV.backward(r, dy)[1]),
    ),
    structure(LSTM, "dc missing", lambda r, dy: lstm_backward(r, dy)[:5]),
    structure(TREE, "a tuple for a dict", lambda r, dy: ((r[1].T @ dy, dy.sum(0)), dy @ r[0].T)),
    structure(TREE, "a key missing", lambda r, dy: ({"w": r[1].T @ dy}, dy @ r[0].T)),
    structure(TREE, "another name", lambda r, dy: ({"kernel": r[1].T @ dy, "b": dy.sum(0)}, dy @ r[0].T)),
    structure(TREE, "w and b exchanged", lambda r, dy: ({"b": r[1].T @ dy, "w": dy.sum(0)}, dy @ r[0].T)),
    structure(PARTS, "a stack for a list", lambda xs, dy: (jnp.stack([dy * xs[1], dy * xs[0], dy]),)),
    structure(PARTS, "a tuple for a list", lambda xs, dy: ((dy * xs[1], dy * xs[0], dy),)),
    structure(PARTS, "the list unpacked", lambda xs, dy: (dy * xs[1], dy * xs[0], dy)),
]
trees = [
    TREE.wrong(
        "dw averaged over the batch", lambda r, dy: ({"b": dy.sum(0), "w": r[1].T @ dy / 7}, dy @ r[0].T), "factor"
    ),
    TREE.wrong(
        "dw transposed", lambda r, dy: ({"b": dy.sum(0), "w": dy.T @ r[1]}, dy @ r[0].T), "transposed", args=SQUARE_TREE
    ),
    PARTS.wrong(
        "cotangents of the factors swapped", lambda xs, dy: ([dy * xs[0], dy * xs[1], dy],), "swapped residual"
    ),
    PARTS.wrong(
        "last part forgotten", lambda xs, dy: ([dy * xs[1], dy * xs[0], 0 * dy],), "zero ignored constant term"
    ),
    SCALE.wrong("ds averaged", lambda r, dy: ((dy * r[1]).mean(), dy * r[0]), "factor"),
]

# ── Not linear in the cotangent ──────────────────────────────────────────────────────────────────────────────────────


def unit(dy):
    return dy * lax.rsqrt((dy**2).sum() + 1e-12)


def of_cotangent(op, mistake, change, **named):
    """The correct pass of another cotangent."""
    return op.wrong(mistake, lambda r, dy: op.backward(r, change(dy)), "nonlinear", kind="nonlinear", **named)


def shrunk(d, limit=1.0):
    return d * jnp.minimum(1, limit / jnp.maximum(jnp.sqrt((d**2).sum()), 1e-12))


nonlinear = [
    of_cotangent(RELU, "guided: negative cotangents dropped", lambda dy: jnp.maximum(dy, 0)),
    of_cotangent(TANH, "sign of the cotangent", jnp.sign),
    of_cotangent(SILU, "modulus of the cotangent", jnp.abs),
    of_cotangent(DENSE, "cotangent clipped at one", lambda dy: jnp.clip(dy, -1, 1)),
    of_cotangent(ATTENTION, "cotangent normalised", unit),
    of_cotangent(SOFTMAX, "cotangent squashed by tanh", jnp.tanh),
    of_cotangent(RMS, "cotangent rounded to eighths", lambda dy: jnp.round(dy * 8) / 8),
    of_cotangent(LEAKY, "dead zone", lambda dy: jnp.where(jnp.abs(dy) < 0.1, 0, dy)),
    of_cotangent(NORM, "cotangent squared", lambda dy: dy * jnp.abs(dy)),
    of_cotangent(MSE, "cotangent ignored", jnp.ones_like),
    DENSE.wrong(
        "weight decay inside",
        lambda r, dy: (r[1].T @ dy + 0.01 * r[0], dy.sum(0), dy @ r[0].T),
        "nonlinear term",
        kind="nonlinear",
    ),
    DENSE.edit("dw clipped by its norm", 0, shrunk, "nonlinear", kind="nonlinear"),
    LAYER.edit(
        "dx centred and scaled to unit variance",
        2,
        lambda dx: dx / (dx.std(-1, keepdims=True) + 1e-6),
        "nonlinear",
        kind="nonlinear",
    ),
    RNN.edit("du clipped at a half", 1, lambda du: jnp.clip(du, -0.5, 0.5), "nonlinear", kind="nonlinear"),
    ATTENTION.wrong(
        "the largest half of the cotangents kept",
        lambda r, do: attention_backward(r, jnp.where(jnp.abs(do) >= jnp.median(jnp.abs(do)), do, 0)),
        "nonlinear row ?",
        kind="nonlinear",
    ),
    RMS.wrong(
        "the cotangent used twice",
        lambda r, dy: rms_norm_backward(r, dy * (1 + 0.1 * dy)),
        "nonlinear",
        kind="nonlinear",
        function=True,
    ),
]

OPS = [TREE, PARTS, SCALE]
WRONG = structures + trees + nonlinear
