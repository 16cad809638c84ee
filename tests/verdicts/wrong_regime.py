"""Right at the arguments given, wrong elsewhere: each by the regime in which it goes wrong."""

from functools import partial

import jax.numpy as jnp
from jax import lax, nn

from .wrong_activations import CLIP, ELU, LEAKY, MISH, SIGMOID, SILU, SOFTPLUS, TANH, passed, pointwise
from .wrong_arrays import MAX, PROD, STD, std_backward
from .wrong_attention import (
    ATTENTION,
    GATE,
    attention_backward,
)
from .wrong_base import Op, normal, normals, positive, positives
from .wrong_costs import (
    CROSS,
    DELTA,
    HUBER,
    LOGSUMEXP,
    SOFTMAX,
    huber_from,
    stable_softmax,
    targets,
    through_softmax,
)
from .wrong_linear import DENSE
from .wrong_norms import (
    COSINE,
    L2,
    LAYER,
    NORM,
    batch_norm_backward,
    batch_norm_forward,
    cosine_backward,
    cosine_forward,
    cosine_reference,
    l2_forward,
    layer_norm_backward,
    layer_norm_forward,
    layer_norm_reference,
    rstd_without_eps,
)
from .wrong_sequence import CUMPROD, RNN, rnn_backward
from .wrong_windows import MAX_POOL, spread

TINY = 1e-12  # an eps that ordinary arguments do not feel

# ── Ops that appear here alone ───────────────────────────────────────────────────────────────────────────────────────

ABS = pointwise("abs", jnp.abs, lambda x: jnp.maximum(x, -x), lambda x, y: jnp.sign(x), positives((7, 5)))
CUBE = pointwise("cube", lambda x: x**3, lambda x: x * x * x, lambda x, y: 3 * x**2, positives((7, 5)))
SINC = pointwise(
    "sinc",
    jnp.sinc,
    jnp.sinc,
    lambda x, y: jnp.where(
        jnp.abs(x) < 1e-3, -(jnp.pi**2) * x / 3, (jnp.cos(jnp.pi * x) - y) / jnp.where(x == 0, 1, x)
    ),
)
DIVIDE = Op(
    "divide",
    jnp.divide,
    lambda x, y: (x / y, (x, y)),
    lambda r, dy: (dy / r[1], -dy * r[0] / r[1] ** 2),
    positives((7, 5), (7, 5)),
)


def safe_ratio(x, y):
    return jnp.where(y == 0, 0, x / jnp.where(y == 0, 1, y))


SAFE = Op(
    "divide, zero by zero",
    safe_ratio,
    lambda x, y: (safe_ratio(x, y), (x, y)),
    lambda r, dy: (safe_ratio(dy, r[1]), -safe_ratio(dy * r[0], r[1] ** 2)),
    positives((7, 5), (7, 5)),
)


def safe_root(x):
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)


ROOT = pointwise(
    "root of the positive part",
    safe_root,
    safe_root,
    lambda x, y: jnp.where(x > 0, 0.5 / jnp.where(x > 0, y, 1), 0),
    positives((7, 5)),
)
LOGADDEXP = Op(
    "logaddexp",
    jnp.logaddexp,
    lambda a, b: (jnp.maximum(a, b) + nn.softplus(-jnp.abs(a - b)), (a, b)),
    lambda r, dy: (dy * nn.sigmoid(r[0] - r[1]), dy * nn.sigmoid(r[1] - r[0])),
    normals((7, 5), (7, 5)),
)
MAXIMUM = Op(
    "maximum",
    jnp.maximum,
    lambda a, b: (jnp.where(a > b, a, b), (a, b)),
    lambda r, dy: (dy * jnp.heaviside(r[0] - r[1], 0.5), dy * jnp.heaviside(r[1] - r[0], 0.5)),
    normals((7, 5), (7, 5)),
)
MODULUS = Op(
    "modulus",
    jnp.abs,
    lambda z: (jnp.abs(z), z),
    lambda z, dy: (dy * jnp.conj(jnp.where(z == 0, 0, z / jnp.where(z == 0, 1, jnp.abs(z)))),),
    lambda: (normal(0, 7, 5) + 1j * normal(1, 7, 5),),
)
BATCH_TINY = Op(
    "batch_norm",
    lambda g, b, x: layer_norm_reference(g[:, None], b[:, None], x.T, TINY).T,
    partial(batch_norm_forward, eps=TINY),
    batch_norm_backward,
    normals((5,), (5,), (7, 5)),
)
LAYER_TINY = Op(
    "layer_norm",
    partial(layer_norm_reference, eps=TINY),
    partial(layer_norm_forward, eps=TINY),
    layer_norm_backward,
    LAYER.args,
)
COSINE_TINY = Op(
    "cosine similarity",
    partial(cosine_reference, eps=TINY),
    partial(cosine_forward, eps=TINY),
    cosine_backward,
    COSINE.args,
)
STD_TINY = Op(
    "deviation",
    lambda x: (jnp.var(x, 1) + TINY) ** 0.5,
    lambda x: (jnp.sqrt(x.var(1) + TINY), (x, jnp.sqrt(x.var(1) + TINY))),
    std_backward,
    STD.args,
)
L2_TINY = Op(
    "l2 normalise",
    lambda x: x * lax.rsqrt(jnp.sum(jnp.square(x), -1, keepdims=True) + TINY),
    partial(l2_forward, eps=TINY),
    L2.backward,
    L2.args,
)


def regime(op, mistake, backward, **named):
    return op.wrong(mistake, backward, kind="regime", **named)


def slope(op, mistake, derivative, **named):
    return regime(op, mistake, passed(derivative), **named)


# ── Sign ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

signs = [
    # x < 0
    slope(ABS, "slope of one everywhere", lambda x, y: 1.0),
    slope(
        LEAKY, "slope left out below zero; none is below", lambda x, y: (x > 0).astype(x.dtype), args=positives((7, 5))
    ),
    slope(CUBE, "by the logarithm", lambda x, y: 3 * jnp.exp(2 * jnp.log(x))),
    slope(ELU, "slope of one everywhere", lambda x, y: 1.0, args=positives((7, 5))),
    ROOT.plain("nan where the root is not taken", lambda x: jnp.where(x > 0, jnp.sqrt(x), 0), kind="regime"),
    # y < 0
    regime(
        DIVIDE, "y times its modulus for its square", lambda r, dy: (dy / r[1], -dy * r[0] / (r[1] * jnp.abs(r[1])))
    ),
    # x < t
    regime(
        HUBER,
        "clipped above alone",
        huber_from(lambda e: jnp.minimum(e, DELTA)),
        args=lambda: (positive(0, 7, 5, low=1, high=3), positive(1, 7, 5, low=0.1, high=0.9)),
    ),
    # x below the lower bound
    slope(
        CLIP,
        "lower bound forgotten; none is below",
        lambda x, y: (x < 0.4).astype(x.dtype),
        args=positives((7, 5), low=-0.6),
    ),
]

# ── Large arguments ──────────────────────────────────────────────────────────────────────────────────────────────────


def naive_softmax(x, axis=-1):
    return jnp.exp(x) / jnp.exp(x).sum(axis, keepdims=True)


def naive_tanh(x):
    return (jnp.exp(2 * x) - 1) / (jnp.exp(2 * x) + 1)


def naive_mish(x, y):
    e = (1 + jnp.exp(x)) ** 2
    t = (e - 1) / (e + 1)
    return t + x * nn.sigmoid(x) * (1 - t**2)


def naive_scores(r, do):
    q, k, v, _ = r
    return attention_backward((q, k, v, naive_softmax(q @ k.mT / q.shape[-1] ** 0.5)), do)


large = [
    # exp overflows
    slope(SOFTPLUS, "exp(x) / (1 + exp(x))", lambda x, y: jnp.exp(x) / (1 + jnp.exp(x))),
    slope(SIGMOID, "exp(-x) / (1 + exp(-x)) squared", lambda x, y: jnp.exp(-x) / (1 + jnp.exp(-x)) ** 2),
    slope(TANH, "by exponentials", lambda x, y: 1 - naive_tanh(x) ** 2),
    slope(MISH, "by exponentials", naive_mish),
    regime(SOFTMAX, "computed again without its maximum", lambda r, dy: (through_softmax(naive_softmax(r[0]), dy),)),
    regime(LOGSUMEXP, "exp(x) over its sum", lambda x, dy: (dy[:, None] * naive_softmax(x),)),
    regime(
        CROSS,
        "softmax without its maximum",
        lambda r, dy: (
            dy
            * (r[1] >= 0)[:, None]
            * (naive_softmax(r[0]) - targets(r[0], jnp.maximum(r[1], 0)))
            / (r[1] >= 0).sum().astype(r[0].dtype),
            None,
        ),
    ),
    regime(
        LOGADDEXP,
        "exponentials of both",
        lambda r, dy: (
            dy * jnp.exp(r[0]) / (jnp.exp(r[0]) + jnp.exp(r[1])),
            dy * jnp.exp(r[1]) / (jnp.exp(r[0]) + jnp.exp(r[1])),
        ),
    ),
    regime(ATTENTION, "scores without their maximum", naive_scores),
    # x > 20
    slope(SOFTPLUS, "zero beyond the threshold", lambda x, y: jnp.where(x > 20, 0, nn.sigmoid(x))),
    # |x| > 4
    slope(TANH, "x clamped to the range of a table", lambda x, y: 1 - jnp.tanh(jnp.clip(x, -4, 4)) ** 2),
]

# ── Zeros ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def cosine_without_eps(r, dy):
    x, z, *_ = r
    return cosine_backward((x, z, *(jnp.sqrt((u**2).sum(-1, keepdims=True)) for u in (x, z))), dy)


def l2_without_eps(r, dy):
    x = r[0]
    n = jnp.sqrt((x**2).sum(-1, keepdims=True))
    return ((dy - x / n * (dy * x / n).sum(-1, keepdims=True)) / n,)


zeros = [
    # an entry of zero
    slope(SILU, "y / x for the sigmoid", lambda x, y: y / x + y * (1 - y / x)),
    slope(SINC, "divided by zero", lambda x, y: (jnp.cos(jnp.pi * x) - y) / x),
    regime(PROD, "divided by x", lambda x, dy: (dy[:, None] * x.prod(1, keepdims=True) / x,)),
    regime(CUMPROD, "divided by x", lambda x, dy: (jnp.cumsum((dy * jnp.cumprod(x, 0))[::-1], 0)[::-1] / x,)),
    regime(SAFE, "divided by zero", lambda r, dy: (dy / r[1], -dy * r[0] / r[1] ** 2)),
    regime(MODULUS, "divided by zero", lambda z, dy: (dy * jnp.conj(z) / jnp.abs(z),)),
    # a row of zeros
    regime(NORM, "divided by zero", lambda r, dy: (dy[:, None] * r[0] / r[1][:, None],)),
    regime(L2_TINY, "a tiny eps left out of the backward pass", l2_without_eps),
    regime(COSINE_TINY, "a tiny eps left out of the backward pass", cosine_without_eps),
]

# ── Constant rows, a batch of one ────────────────────────────────────────────────────────────────────────────────────


def difference_of_squares(r):
    x = r[1]
    return lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) - jnp.mean(x, -1, keepdims=True) ** 2 + 1e-5)


def rnn_squeezed(r, dy):
    *grads, dh = rnn_backward(r, dy)
    return *grads, jnp.squeeze(dh)


constant = [
    # a constant row
    regime(LAYER_TINY, "a tiny eps left out of the backward pass", partial(layer_norm_backward, rstd=rstd_without_eps)),
    regime(LAYER, "variance as a difference of squares", partial(layer_norm_backward, rstd=difference_of_squares)),
    regime(
        STD_TINY, "a tiny eps left out of the backward pass", lambda r, dy: std_backward((r[0], jnp.std(r[0], 1)), dy)
    ),
    # a batch of one
    regime(
        BATCH_TINY,
        "a tiny eps left out of the backward pass",
        lambda r, dy: batch_norm_backward((*r[:3], lax.rsqrt(r[1].var(0, keepdims=True))), dy),
    ),
    regime(
        DENSE,
        "db of a squeezed cotangent",
        lambda r, dy: (r[1].T @ dy, jnp.broadcast_to(jnp.squeeze(dy).sum(0), dy.shape[1:]), dy @ r[0].T),
    ),
    regime(
        RNN,
        "dh squeezed",
        rnn_squeezed,
        sample=lambda seed: normals((3, 5), (5, 5), (7, 1 + seed % 2, 3), (1 + seed % 2, 5), seed=seed, scale=0.6)(),
    ),
]

# ── Ties ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def every_best(windows, axis):
    return windows == windows.max(axis, keepdims=True)


def threshold_gate(r, dy):
    x = r[2]
    y = stable_softmax(jnp.where(x >= lax.top_k(x, 2)[0][..., -1:], x, -jnp.inf))
    return (through_softmax(y, dy),)


ties = [
    # equal entries of a row
    regime(MAX, "all to every tied entry", lambda r, dy: (dy[:, None] * every_best(r[0], 1),)),
    regime(MAX_POOL, "all to every tied entry", lambda r, dy: spread(r[0], dy[:, :, None] * every_best(r[1], 2))),
    regime(GATE, "more than k kept where the last are tied", threshold_gate),
    # a = b
    regime(MAXIMUM, "all to both", lambda r, dy: (dy * (r[0] >= r[1]), dy * (r[1] >= r[0]))),
]

OPS = [
    ABS,
    CUBE,
    SINC,
    DIVIDE,
    SAFE,
    ROOT,
    LOGADDEXP,
    MAXIMUM,
    MODULUS,
    BATCH_TINY,
    LAYER_TINY,
    COSINE_TINY,
    STD_TINY,
    L2_TINY,
]
WRONG = signs + large + zeros + constant + ties
