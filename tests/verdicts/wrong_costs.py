"""Mistakes in softmax and the costs: cross-entropy, divergences, regression, contrast."""

from functools import partial

import jax.numpy as jnp
from jax import lax, nn, scipy

from .wrong_base import Op, normal, normals, without

# ── Softmax, its logarithm, its denominator ──────────────────────────────────────────────────────────────────────────


def stable_softmax(x, axis=-1):
    e = jnp.exp(x - lax.stop_gradient(x.max(axis, keepdims=True)))
    return e / e.sum(axis, keepdims=True)


def through_softmax(y, dy, axis=-1):
    return y * (dy - (dy * y).sum(axis, keepdims=True))


def keep(function):
    """A forward pass that keeps its input and its output."""

    def forward(x):
        y = function(x)
        return y, (x, y)

    return forward


SOFTMAX = Op(
    "softmax", nn.softmax, keep(stable_softmax), lambda r, dy: (through_softmax(r[1], dy),), normals((7, 5), scale=2.0)
)
SQUARE = normals((7, 7), scale=2.0)
WIDE = normals((11, 257), scale=2.0)
softmax = [
    SOFTMAX.wrong("diagonal of the Jacobian alone", lambda r, dy: (r[1] * (1 - r[1]) * dy,), "term"),
    SOFTMAX.wrong("sum of dy y left out", lambda r, dy: (r[1] * dy,), "term sum constant"),
    SOFTMAX.wrong(
        "mean for the sum of dy y", lambda r, dy: (r[1] * (dy - (dy * r[1]).mean(-1, keepdims=True)),), "term factor"
    ),
    SOFTMAX.wrong("sum over the batch", lambda r, dy: (through_softmax(r[1], dy, 0),), "transposed term ax[ie]s"),
    SOFTMAX.wrong("softmax of y, not of x", lambda r, dy: (through_softmax(stable_softmax(r[1]), dy),), "residual ?"),
    SOFTMAX.wrong(
        "last class left out of the sum",
        lambda r, dy: (r[1] * (dy - (dy * r[1])[:, :-1].sum(-1, keepdims=True)),),
        "term row",
        args=WIDE,
    ),
    SOFTMAX.wrong("y without the factor y", lambda r, dy: (dy - (dy * r[1]).sum(-1, keepdims=True),), "residual term"),
    SOFTMAX.wrong(
        "y rounded to three digits", lambda r, dy: (through_softmax(jnp.round(r[1], 3), dy),), "? small|round"
    ),
    SOFTMAX.plain(
        "denominator under stop_gradient",
        lambda x: (
            jnp.exp(x - x.max(-1, keepdims=True))
            / lax.stop_gradient(jnp.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
        ),
        "term constant",
    ),
]
TEMPERED = Op(
    "softmax at temperature 0.5",
    lambda x: nn.softmax(x / 0.5),
    keep(lambda x: stable_softmax(2 * x)),
    lambda r, dy: (2 * through_softmax(r[1], dy),),
    normals((7, 5)),
)
LOG_SOFTMAX = Op(
    "log_softmax",
    nn.log_softmax,
    keep(lambda x: x - scipy.special.logsumexp(x, -1, keepdims=True)),
    lambda r, dy: (dy - jnp.exp(r[1]) * dy.sum(-1, keepdims=True),),
    normals((7, 5), scale=2.0),
)
LOGSUMEXP = Op(
    "logsumexp",
    lambda x: scipy.special.logsumexp(x, -1),
    lambda x: (scipy.special.logsumexp(x, -1), x),
    lambda x, dy: (dy[:, None] * stable_softmax(x),),
    normals((7, 5)),
)
logs = [
    TEMPERED.wrong("temperature left out", lambda r, dy: (through_softmax(r[1], dy),), "factor"),
    TEMPERED.wrong("temperature squared", lambda r, dy: (4 * through_softmax(r[1], dy),), "factor"),
    LOG_SOFTMAX.wrong(
        "dy - p, the sum of dy left out", lambda r, dy: (dy - jnp.exp(r[1]),), "term sum ignored affine|linear"
    ),
    LOG_SOFTMAX.wrong("cotangent passed through", lambda r, dy: (dy,), "term constant"),
    LOG_SOFTMAX.wrong("backward pass of softmax", lambda r, dy: (through_softmax(jnp.exp(r[1]), dy),), "? residual"),
    LOG_SOFTMAX.wrong("y for exp(y)", lambda r, dy: (dy - r[1] * dy.sum(-1, keepdims=True),), "residual ?"),
    LOGSUMEXP.plain(
        "maximum under stop_gradient on one side alone",
        lambda x: x.max(-1) + jnp.log(jnp.exp(x - lax.stop_gradient(x.max(-1, keepdims=True))).sum(-1)),
        "term row",
    ),
    LOGSUMEXP.wrong("softmax over all entries", lambda x, dy: (dy[:, None] * stable_softmax(x, (0, 1)),), "row ?"),
    LOGSUMEXP.wrong(
        "cotangent ignored", lambda x, dy: (stable_softmax(x) * jnp.ones_like(dy)[:, None],), "ignored linear"
    ),
    LOGSUMEXP.wrong("last class left out", lambda x, dy: (dy[:, None] * without(stable_softmax(x), 1, -1),), "row"),
    LOGSUMEXP.wrong(
        "softmax over the wrong axis",
        lambda x, dy: (dy[:, None] * stable_softmax(x, 0),),
        "transposed ax[ie]s ?",
        args=SQUARE,
    ),
]

# ── Cross-entropy with labels, smoothing, an ignored label ───────────────────────────────────────────────────────────

SMOOTH, IGNORE = 0.1, -100


def targets(logits, labels, smooth=SMOOTH):
    classes = logits.shape[-1]
    return (1 - smooth) * nn.one_hot(labels, classes, dtype=logits.dtype) + smooth / classes


def cross_entropy_reference(logits, labels):
    logp = nn.log_softmax(logits)
    picked = jnp.take_along_axis(logp, jnp.clip(labels, 0, logits.shape[-1] - 1)[:, None], 1)[:, 0]
    each = -(1 - SMOOTH) * picked - SMOOTH * logp.mean(-1)
    valid = labels != IGNORE
    return jnp.where(valid, each, 0).sum() / jnp.maximum(valid.sum(), 1).astype(logits.dtype)


def cross_entropy_forward(logits, labels):
    return cross_entropy_reference(logits, labels), (logits, labels)


def cross_entropy_backward(r, dy, smooth=SMOOTH, valid=lambda labels: labels != IGNORE, count=None, pick=targets):
    logits, labels = r
    kept = valid(labels).astype(logits.dtype)
    n = jnp.maximum((labels != IGNORE).sum(), 1).astype(logits.dtype) if count is None else count
    t = pick(logits, jnp.clip(labels, 0, logits.shape[-1] - 1), smooth)
    return dy * kept[:, None] * (stable_softmax(logits) - t) / n, None


LABELS = jnp.asarray([3, 0, IGNORE, 4, 2, 0, 1], jnp.int32)
CROSS = Op(
    "cross-entropy",
    cross_entropy_reference,
    cross_entropy_forward,
    cross_entropy_backward,
    lambda: (normal(0, 7, 5, scale=2.0), LABELS),
)


def all_but_last(logits, labels, smooth):
    """Smoothing spread over the other classes: the right class gets none of it."""
    rest = (1 - nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)) * smooth / (logits.shape[-1] - 1)
    return (1 - smooth) * nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype) + rest


cross = [
    CROSS.wrong("label not subtracted", partial(cross_entropy_backward, pick=lambda *_: 0.0), "term constant"),
    CROSS.wrong("smoothing left out", partial(cross_entropy_backward, smooth=0.0), "term ?"),
    CROSS.wrong("smoothing over the other classes alone", partial(cross_entropy_backward, pick=all_but_last), "term ?"),
    CROSS.wrong(
        "ignored label gets a gradient",
        partial(cross_entropy_backward, valid=lambda labels: labels == labels),
        "mask row",
    ),
    CROSS.wrong("mean over all rows, ignored ones too", partial(cross_entropy_backward, count=7.0), "factor"),
    CROSS.wrong("sum, not mean", partial(cross_entropy_backward, count=1.0), "factor"),
    CROSS.wrong(
        "class 0 taken for ignored", partial(cross_entropy_backward, valid=lambda labels: labels > 0), "mask row"
    ),
    CROSS.wrong("cotangent ignored", lambda r, dy: cross_entropy_backward(r, jnp.ones_like(dy)), "ignored linear"),
    CROSS.wrong(
        "labels off by one",
        partial(cross_entropy_backward, pick=lambda logits, labels, s: targets(logits, (labels + 1) % 5, s)),
        "shift ? term",
    ),
    CROSS.wrong(
        "labels of the row before",
        partial(cross_entropy_backward, pick=lambda logits, labels, s: targets(logits, jnp.roll(labels, 1), s)),
        "shift ? term",
    ),
    CROSS.edit("sign of the gradient", 0, jnp.negative, "sign"),
]


def z_loss_backward(r, dy, factor=2.0):
    x, z = r
    return (dy * factor * z[:, None] * stable_softmax(x),)


def z_loss_forward(x):
    z = scipy.special.logsumexp(x, -1)
    return (z**2).sum(), (x, z)


ZLOSS = Op(
    "z-loss",
    lambda x: jnp.sum((x.max(-1) + jnp.log(jnp.exp(x - x.max(-1, keepdims=True)).sum(-1))) ** 2),
    z_loss_forward,
    z_loss_backward,
    normals((7, 5)),
)
BCE = Op(
    "binary cross-entropy on logits",
    lambda x, t: -jnp.mean(t * nn.log_sigmoid(x) + (1 - t) * nn.log_sigmoid(-x)),
    lambda x, t: (jnp.mean(nn.softplus(x) - t * x), (x, t)),
    lambda r, dy: (dy * (nn.sigmoid(r[0]) - r[1]) / r[0].size, -dy * r[0] / r[0].size),
    lambda: (normal(0, 7, 5), nn.sigmoid(normal(1, 7, 5))),
)
small_costs = [
    ZLOSS.wrong("factor two of the square left out", partial(z_loss_backward, factor=1.0), "factor"),
    ZLOSS.wrong("derivative of logsumexp alone", lambda r, dy: (dy * stable_softmax(r[0]),), "row residual term"),
    BCE.wrong("mean over the rows alone", lambda r, dy: tuple(5 * g for g in BCE.backward(r, dy)), "factor"),
    BCE.wrong(
        "target not subtracted", lambda r, dy: (dy * nn.sigmoid(r[0]) / r[0].size, BCE.backward(r, dy)[1]), "term"
    ),
    BCE.wrong(
        "targets taken as constant",
        lambda r, dy: (BCE.backward(r, dy)[0], jnp.zeros_like(r[1])),
        "zero constant term ignored",
    ),
    BCE.wrong(
        "derivative of sigmoid once too often",
        lambda r, dy: (BCE.backward(r, dy)[0] * nn.sigmoid(r[0]) * nn.sigmoid(-r[0]), BCE.backward(r, dy)[1]),
        "residual ?",
    ),
]

# ── Divergences and regression ───────────────────────────────────────────────────────────────────────────────────────


def kl_reference(p, q):
    return jnp.sum(scipy.special.xlogy(p, p) - p * jnp.log(q))


KL = Op(
    "kl divergence",
    kl_reference,
    lambda p, q: (kl_reference(p, q), (p, q)),
    lambda r, dy: (dy * (jnp.log(r[0] / r[1]) + 1), -dy * r[0] / r[1]),
    lambda: (stable_softmax(normal(0, 7, 5)), stable_softmax(normal(1, 7, 5))),
)
GAUSSIAN = Op(
    "kl to the unit normal",
    lambda mu, logvar: 0.5 * jnp.sum(jnp.exp(logvar) + mu * mu - 1 - logvar),
    lambda mu, logvar: (-0.5 * jnp.sum(1 + logvar - mu**2 - jnp.exp(logvar)), (mu, logvar)),
    lambda r, dy: (dy * r[0], dy * 0.5 * (jnp.exp(r[1]) - 1)),
    normals((7, 5), (7, 5)),
)
DELTA = 0.7


def huber_reference(x, t):
    e = x - t
    return jnp.mean(jnp.where(jnp.abs(e) <= DELTA, e**2 / 2, DELTA * (jnp.abs(e) - DELTA / 2)))


def huber_from(slope):
    """The pass whose derivative of one error is `slope(e)`."""

    def backward(e, dy):
        dx = dy * slope(e) / e.size
        return dx, -dx

    return backward


HUBER = Op(
    "huber",
    huber_reference,
    lambda x, t: (huber_reference(x, t), x - t),
    huber_from(lambda e: jnp.clip(e, -DELTA, DELTA)),
    normals((7, 5), (7, 5)),
)
MSE = Op(
    "mean squared error",
    lambda x, t: jnp.mean((x - t) ** 2),
    lambda x, t: (jnp.mean(jnp.square(x - t)), x - t),
    lambda e, dy: (2 * dy * e / e.size, -2 * dy * e / e.size),
    normals((7, 5), (7, 5)),
)
errors = [
    KL.wrong(
        "the one of log(p/q) + 1 forgotten", lambda r, dy: (dy * jnp.log(r[0] / r[1]), KL.backward(r, dy)[1]), "term"
    ),
    KL.wrong("dq with the wrong sign", lambda r, dy: (KL.backward(r, dy)[0], dy * r[0] / r[1]), "sign"),
    KL.wrong("dq by q / p", lambda r, dy: (KL.backward(r, dy)[0], -dy * r[1] / r[0]), "swapped residual ?"),
    GAUSSIAN.wrong("half left out of dlogvar", lambda r, dy: (dy * r[0], dy * (jnp.exp(r[1]) - 1)), "factor"),
    GAUSSIAN.wrong(
        "logvar read as log of the deviation", lambda r, dy: (dy * r[0], dy * (jnp.exp(2 * r[1]) - 1) / 2), "? term"
    ),
    HUBER.wrong("threshold of one in the backward pass", huber_from(lambda e: jnp.clip(e, -1, 1)), "? term row"),
    HUBER.wrong(
        "delta left out of the linear part",
        huber_from(lambda e: jnp.where(jnp.abs(e) <= DELTA, e, jnp.sign(e))),
        "? term row",
    ),
    HUBER.wrong("quadratic part everywhere", huber_from(lambda e: e), "? term row mask"),
    MSE.wrong("two left out", lambda e, dy: (dy * e / e.size, -dy * e / e.size), "factor"),
    MSE.wrong("mean over the rows alone", lambda e, dy: (2 * dy * e / e.shape[0], -2 * dy * e / e.shape[0]), "factor"),
    MSE.wrong(
        "target's cotangent with the sign of x's", lambda e, dy: (2 * dy * e / e.size, 2 * dy * e / e.size), "sign"
    ),
]

# ── Contrast ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def info_nce_reference(x, z):
    s = x @ z.T / 0.3
    return -(jnp.diag(nn.log_softmax(s, 0)) + jnp.diag(nn.log_softmax(s, 1))).mean() / 2


def info_nce_backward(r, dy, columns=1.0, diagonal=1.0, temperature=0.3):
    x, z = r
    s, n = x @ z.T / 0.3, x.shape[0]
    ds = stable_softmax(s, 1) + columns * stable_softmax(s, 0) - (1 + columns) * diagonal * jnp.eye(n, dtype=x.dtype)
    ds = dy * ds / (2 * n * temperature)
    return ds @ z, ds.T @ x


INFO_NCE = Op(
    "info nce",
    info_nce_reference,
    lambda x, z: (info_nce_reference(x, z), (x, z)),
    info_nce_backward,
    normals((7, 5), (7, 5)),
)
contrast = [
    INFO_NCE.wrong("one of two directions", partial(info_nce_backward, columns=0.0), "term"),
    INFO_NCE.wrong("positives not subtracted", partial(info_nce_backward, diagonal=0.0), "term"),
    INFO_NCE.wrong("temperature left out", partial(info_nce_backward, temperature=1.0), "factor"),
]

OPS = [SOFTMAX, TEMPERED, LOG_SOFTMAX, LOGSUMEXP, CROSS, ZLOSS, BCE, KL, GAUSSIAN, HUBER, MSE, INFO_NCE]
WRONG = softmax + logs + cross + small_costs + errors + contrast
