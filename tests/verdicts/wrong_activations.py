"""Mistakes in activations and gated units: one derivative each, with another residual, constant, sign or mask."""

from functools import partial

import jax.numpy as jnp
from jax import lax, nn, scipy

from .wrong_base import Op, normals

X = normals((7, 5))
SIGNED = "row mask term sign ? factor"  # an error on one side of zero alone: several true accounts


def pointwise(name, reference, function, slope, args=X):
    """y = function(x), dx = dy slope(x, y)."""

    def forward(x):
        y = function(x)
        return y, (x, y)

    return Op(name, reference, forward, passed(slope), args)


def passed(slope):
    return lambda r, dy: (dy * slope(*r),)


def spoilt(op, mistakes):
    """From {mistake: (slope, cause)}."""
    return [op.wrong(mistake, passed(slope), cause) for mistake, (slope, cause) in mistakes.items()]


# ── gelu, exact and by tanh ──────────────────────────────────────────────────────────────────────────────────────────

ROOT = (2 / jnp.pi) ** 0.5


def gelu_tanh(x, c=0.044715):
    return 0.5 * x * (1 + jnp.tanh(ROOT * (x + c * x**3)))


def gelu_tanh_slope(x, y=None, root=ROOT, c=0.044715, three=3.0, inner=1.0):
    t = jnp.tanh(root * (x + c * x**3))
    return 0.5 * (1 + t) + inner * 0.5 * x * (1 - t**2) * root * (1 + three * c * x**2)


def gelu_slope(x, y=None, density=1.0):
    return scipy.stats.norm.cdf(x) + density * x * scipy.stats.norm.pdf(x)


GELU_TANH = pointwise("gelu by tanh", partial(nn.gelu, approximate=True), gelu_tanh, gelu_tanh_slope)
GELU = pointwise("gelu", partial(nn.gelu, approximate=False), lambda x: x * (1 + lax.erf(x / 2**0.5)) / 2, gelu_slope)
gelu = [
    *spoilt(
        GELU_TANH,
        {
            "0.0447 in the backward pass": (partial(gelu_tanh_slope, c=0.0447), "minute"),
            "0.7978 for the root of 2/pi": (partial(gelu_tanh_slope, root=0.7978), "minute"),
            "three of the cube's derivative left out": (partial(gelu_tanh_slope, three=1.0), "term ?"),
            "inner derivative left out": (partial(gelu_tanh_slope, inner=0.0), "term"),
            "derivative of the exact gelu": (gelu_slope, "? approximat|small"),
        },
    ),
    *spoilt(
        GELU,
        {
            "density's term left out": (partial(gelu_slope, density=0.0), "term"),
            "density's term with the wrong sign": (partial(gelu_slope, density=-1.0), "term sign"),
            "derivative of the tanh form": (gelu_tanh_slope, "? approximat|small"),
            "density without 1 / sqrt(2 pi)": (partial(gelu_slope, density=(2 * jnp.pi) ** 0.5), "term ?"),
            "derivative of y, not of x": (lambda x, y: gelu_slope(y), "residual ?"),
            "sigmoid form of the derivative": (
                lambda x, y: nn.sigmoid(1.702 * x) * (1 + 1.702 * x * nn.sigmoid(-1.702 * x)),
                "? approximat|small",
            ),
        },
    ),
]

# ── sigmoid and its kin ──────────────────────────────────────────────────────────────────────────────────────────────

s = nn.sigmoid
SIGMOID = pointwise("sigmoid", nn.sigmoid, lambda x: 0.5 * (1 + jnp.tanh(x / 2)), lambda x, y: y * (1 - y))
TANH = pointwise("tanh", jnp.tanh, jnp.tanh, lambda x, y: 1 - y**2)
SILU = pointwise("silu", nn.silu, lambda x: x * s(x), lambda x, y: s(x) * (1 + x * s(-x)))
SOFTPLUS = pointwise("softplus", nn.softplus, lambda x: jnp.logaddexp(x, 0), lambda x, y: s(x))
LOG_SIGMOID = pointwise("log_sigmoid", nn.log_sigmoid, lambda x: -jnp.logaddexp(-x, 0), lambda x, y: s(-x))


def mish_slope(x, y=None, term=1.0):
    t = jnp.tanh(nn.softplus(x))
    return t + term * x * s(x) * (1 - t**2)


MISH = pointwise("mish", nn.mish, lambda x: x * jnp.tanh(nn.softplus(x)), mish_slope)
sigmoids = [
    *spoilt(
        SIGMOID,
        {
            "x for y": (lambda x, y: x * (1 - x), "residual ?"),
            "y (1 + y)": (lambda x, y: y * (1 + y), "sign term ?"),
            "1 - y alone": (lambda x, y: 1 - y, "residual term ?"),
            "cotangent passed through": (lambda x, y: 1.0, "residual term ?"),
        },
    ),
    *spoilt(
        TANH,
        {
            "x for y": (lambda x, y: 1 - x**2, "residual ?"),
            "y not squared": (lambda x, y: 1 - y, "? term residual"),
            "tanh of y": (lambda x, y: 1 - jnp.tanh(y) ** 2, "residual ?"),
            "derivative of sigmoid": (lambda x, y: s(x) * s(-x), "? residual"),
        },
    ),
    *spoilt(
        SILU,
        {
            "x's term left out": (lambda x, y: s(x), "term"),
            "x's term with the wrong sign": (lambda x, y: s(x) * (1 - x * s(-x)), "term sign"),
            "y (1 - y) for the sigmoid's derivative": (lambda x, y: s(x) + x * y * (1 - y), "residual ? term"),
            "first term left out": (lambda x, y: x * s(x) * s(-x), "term"),
        },
    ),
    *spoilt(
        SOFTPLUS,
        {
            "1 - s(x)": (lambda x, y: s(-x), "sign ? term"),
            "sigmoid of y": (lambda x, y: s(y), "residual ?"),
        },
    ),
    *spoilt(LOG_SIGMOID, {"s(x)": (lambda x, y: s(x), "sign ?"), "sign": (lambda x, y: -s(-x), "sign")}),
    *spoilt(
        MISH,
        {
            "x's term left out": (partial(mish_slope, term=0), "term"),
            "sigmoid left out of x's term": (lambda x, y: mish_slope(x, term=1 / s(x)), "term ?"),
        },
    ),
]

# ── Kinks ────────────────────────────────────────────────────────────────────────────────────────────────────────────

RELU = pointwise("relu", nn.relu, lambda x: jnp.maximum(x, 0), lambda x, y: jnp.where(x > 0, 1.0, 0.0).astype(x.dtype))
LEAKY = pointwise(
    "leaky relu",
    partial(nn.leaky_relu, negative_slope=0.1),
    lambda x: jnp.where(x > 0, x, 0.1 * x),
    lambda x, y: jnp.where(x > 0, 1.0, 0.1).astype(x.dtype),
)
CLIP = pointwise(
    "clip",
    lambda x: jnp.clip(x, -0.7, 0.4),
    lambda x: jnp.maximum(jnp.minimum(x, 0.4), -0.7),
    lambda x, y: ((x > -0.7) & (x < 0.4)).astype(x.dtype),
)
ELU = pointwise(
    "elu", nn.elu, lambda x: jnp.where(x > 0, x, jnp.expm1(jnp.minimum(x, 0))), lambda x, y: jnp.where(x > 0, 1, y + 1)
)
HARD_SWISH = pointwise(
    "hard swish",
    lambda x: x * nn.relu6(x + 3) / 6,
    lambda x: x * jnp.clip(x + 3, 0, 6) / 6,
    lambda x, y: jnp.where(x >= 3, 1, jnp.where(x <= -3, 0, (2 * x + 3) / 6)),
    normals((7, 5), scale=3.0),
)
RELU2 = pointwise(
    "squared relu", lambda x: nn.relu(x) ** 2, lambda x: jnp.maximum(x, 0) ** 2, lambda x, y: 2 * nn.relu(x)
)
kinks = [
    *spoilt(
        RELU,
        {
            "mask of x < 0": (lambda x, y: (x < 0).astype(x.dtype), "mask sign"),
            "mask left out": (lambda x, y: 1.0, "mask term"),
            "y for its mask": (lambda x, y: y, "residual ?"),
        },
    ),
    *spoilt(
        LEAKY,
        {
            "slope left out below zero": (lambda x, y: jnp.where(x > 0, 1, 0).astype(x.dtype), SIGNED),
            "slope squared": (lambda x, y: jnp.where(x > 0, 1, 0.01), SIGNED),
            "slope on the wrong side": (lambda x, y: jnp.where(x > 0, 0.1, 1), SIGNED),
        },
    ),
    *spoilt(
        CLIP,
        {
            "mask left out": (lambda x, y: 1.0, "mask term"),
            "lower bound forgotten": (lambda x, y: (x < 0.4).astype(x.dtype), "mask term row"),
        },
    ),
    *spoilt(
        ELU,
        {
            "one of y + 1 forgotten": (lambda x, y: jnp.where(x > 0, 1, y), SIGNED),
            "exp of y": (lambda x, y: jnp.where(x > 0, 1, jnp.exp(y)), "residual " + SIGNED),
        },
    ),
    *spoilt(
        HARD_SWISH,
        {"two of 2 x + 3 left out": (lambda x, y: jnp.where(x >= 3, 1, jnp.where(x <= -3, 0, (x + 3) / 6)), "term ?")},
    ),
    *spoilt(RELU2, {"two left out": (lambda x, y: nn.relu(x), "factor")}),
]

# ── Gated units ──────────────────────────────────────────────────────────────────────────────────────────────────────


def swiglu_backward(r, dy):
    a, b = r
    return dy * b * s(a) * (1 + a * s(-a)), dy * a * s(a)


SWIGLU = Op(
    "swiglu", lambda a, b: nn.silu(a) * b, lambda a, b: (a * s(a) * b, (a, b)), swiglu_backward, normals((7, 5), (7, 5))
)
GLU = Op(
    "glu",
    lambda x: nn.glu(x),
    lambda x: (x[:, :3] * s(x[:, 3:]), x),
    lambda x, dy: (jnp.concatenate([dy * s(x[:, 3:]), dy * x[:, :3] * s(x[:, 3:]) * s(-x[:, 3:])], 1),),
    normals((7, 6)),
)
PRELU = Op(
    "prelu",
    lambda a, x: jnp.where(x >= 0, x, a * x),
    lambda a, x: (jnp.maximum(x, 0) + a * jnp.minimum(x, 0), (a, x)),
    lambda r, dy: ((dy * jnp.minimum(r[1], 0)).sum(0), dy * jnp.where(r[1] >= 0, 1, r[0])),
    normals((5,), (7, 5)),
)
gated = [
    SWIGLU.wrong("da and db swapped", lambda r, dy: swiglu_backward(r, dy)[::-1], "swapped"),
    SWIGLU.wrong(
        "silu taken for its own derivative",
        lambda r, dy: (dy * r[1] * r[0] * s(r[0]), swiglu_backward(r, dy)[1]),
        "residual ?",
    ),
    SWIGLU.wrong("a for silu(a) in db", lambda r, dy: (swiglu_backward(r, dy)[0], dy * r[0]), "residual ?"),
    SWIGLU.wrong(
        "silu' of b",
        lambda r, dy: (dy * r[0] * s(r[1]) * (1 + r[1] * s(-r[1])), dy * r[0] * s(r[0])),
        "swapped residual ?",
    ),
    SWIGLU.wrong("x's term of silu' left out", lambda r, dy: (dy * r[1] * s(r[0]), swiglu_backward(r, dy)[1]), "term"),
    GLU.wrong("halves exchanged", lambda x, dy: (jnp.roll(GLU.backward(x, dy)[0], 3, 1),), "swapped shift halves ?"),
    GLU.wrong(
        "1 - s left out of the gate's half",
        lambda x, dy: (jnp.concatenate([dy * s(x[:, 3:]), dy * x[:, :3] * s(x[:, 3:])], 1),),
        "term row ?",
    ),
    PRELU.wrong(
        "da from the positive part",
        lambda r, dy: ((dy * jnp.maximum(r[1], 0)).sum(0), PRELU.backward(r, dy)[1]),
        "mask residual sign ?",
    ),
    PRELU.wrong(
        "da of the last row", lambda r, dy: ((dy * jnp.minimum(r[1], 0))[-1], PRELU.backward(r, dy)[1]), "sum row"
    ),
    PRELU.wrong("mask left out of da", lambda r, dy: ((dy * r[1]).sum(0), PRELU.backward(r, dy)[1]), "mask term ?"),
]

OPS = [
    GELU_TANH,
    GELU,
    SIGMOID,
    TANH,
    SILU,
    SOFTPLUS,
    LOG_SIGMOID,
    MISH,
    RELU,
    LEAKY,
    CLIP,
    ELU,
    HARD_SWISH,
    RELU2,
    SWIGLU,
    GLU,
    PRELU,
]
WRONG = gelu + sigmoids + kinks + gated
