"""Right in the first derivative, wrong in the second: a value is detached, or a helper's own rule is wrong."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax, nn

from .wrong_activations import GELU, SILU, SOFTPLUS, SWIGLU, TANH, gelu_slope, swiglu_backward
from .wrong_algebra import CHOLESKY as CHOLESKY
from .wrong_algebra import INVERSE, SOLVE, cholesky_backward, solve_backward
from .wrong_attention import CAUSAL, attention_backward
from .wrong_costs import CROSS, LOGSUMEXP, SOFTMAX
from .wrong_linear import BILINEAR, DENSE, GRAM, MLP
from .wrong_norms import BATCH, COSINE, L2, LAYER, RMS, batch_norm_backward, cosine_backward, layer_norm_backward
from .wrong_regime import CUBE, DIVIDE
from .wrong_sequence import LSTM, RECURRENCE, recurrence_backward
from .wrong_windows import CONV

stop = lax.stop_gradient


def detached(op, mistake, *which):
    """The correct pass of residuals some of which are detached (all, where none is named)."""

    def backward(r, dy):
        parts = tuple(stop(part) if i in which else part for i, part in enumerate(r)) if which else stop(r)
        return op.backward(parts, dy)

    return second(op, mistake, backward)


def second(op, mistake, backward, **named):
    return op.wrong(mistake, backward, kind="second", function=True, **named)


def saved_detached(op, mistake, **named):
    """The forward pass keeps copies under stop_gradient."""

    def forward(*args):
        y, r = op.forward(*args)
        return y, jax.tree.map(stop, r)

    return op.wrong(mistake, op.backward, kind="second", function=True, forward=forward, **named)


# ── Helpers with rules of their own ──────────────────────────────────────────────────────────────────────────────────


@jax.custom_vjp
def straight_sigmoid(x):
    return nn.sigmoid(x)


straight_sigmoid.defvjp(lambda x: (nn.sigmoid(x), None), lambda _, dy: (dy,))  # straight through


@jax.custom_vjp
def once(x):
    """The identity, to be differentiated once."""
    return x


once.defvjp(lambda x: (x, None), lambda _, dy: (jnp.zeros_like(dy),))


@jax.custom_jvp
def square(x):
    return x * x


square.defjvp(lambda primals, tangents: (primals[0] ** 2, primals[0] * tangents[0]))  # the two is missing


def packed(x):
    """Kept as bits: derivatives do not pass."""
    bits = {2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}[x.dtype.itemsize]
    return lax.bitcast_convert_type(lax.bitcast_convert_type(x, bits), x.dtype)


def packed_forward(x):
    y, r = TANH.forward(x)
    return y, (packed(r[0]), packed(r[1]))


def halved_power(r, dy):
    """The power's derivative with the exponent's part as an integer power of a detached base."""
    return (3 * dy * r[0] * stop(r[0]),)


seconds = [
    saved_detached(TANH, "y saved detached"),
    TANH.wrong("residuals packed as bits", TANH.backward, kind="second", forward=packed_forward, function=True),
    detached(SOFTMAX, "y detached", 1),
    saved_detached(LOGSUMEXP, "x saved detached"),
    second(LAYER, "rstd detached", partial(layer_norm_backward, rstd=lambda r: stop(r[3]))),
    detached(LAYER, "xhat detached", 2),
    second(
        LAYER,
        "dy detached in the sums over the batch",
        lambda r, dy: (*layer_norm_backward(r, stop(dy))[:2], layer_norm_backward(r, dy)[2]),
    ),
    detached(RMS, "r detached", 2),
    second(
        BATCH,
        "statistics' paths detached",
        lambda r, dy: (
            *batch_norm_backward(r, dy)[:2],
            batch_norm_backward(r, dy, mean_path=0, variance_path=0)[2]
            + stop(batch_norm_backward(r, dy)[2] - batch_norm_backward(r, dy, mean_path=0, variance_path=0)[2]),
        ),
    ),
    detached(DENSE, "x detached", 1),
    second(DENSE, "dx to be differentiated once", lambda r, dy: (r[1].T @ dy, dy.sum(0), once(dy @ r[0].T))),
    detached(MLP, "hidden layer detached", 4),
    second(GRAM, "dy detached on one side", lambda x, dy: (dy @ x + stop(dy.T) @ x,)),
    second(
        BILINEAR,
        "da of detached residuals",
        lambda r, dy: (BILINEAR.backward(stop(r), dy)[0], *BILINEAR.backward(r, dy)[1:]),
    ),
    detached(CAUSAL, "probabilities detached", 3),
    second(
        CAUSAL,
        "row sum detached",
        partial(attention_backward, delta=lambda r, do: stop((do * (r[3] @ r[2])).sum(-1, keepdims=True))),
    ),
    second(CROSS, "softmax detached", lambda r, dy: CROSS.backward((stop(r[0]), r[1]), dy)),
    second(
        SILU,
        "sigmoid with a straight-through rule",
        lambda r, dy: (dy * (straight_sigmoid(r[0]) + r[0] * straight_sigmoid(r[0]) * (1 - straight_sigmoid(r[0]))),),
    ),
    second(SOFTPLUS, "sigmoid with a straight-through rule", lambda r, dy: (dy * straight_sigmoid(r[0]),)),
    second(CUBE, "square with a rule of one half", lambda r, dy: (3 * dy * square(r[0]),)),
    second(CUBE, "one factor detached", halved_power),
    second(GELU, "slope detached", lambda r, dy: (dy * stop(gelu_slope(r[0])),)),
    second(SWIGLU, "a detached in db", lambda r, dy: (swiglu_backward(r, dy)[0], swiglu_backward(stop(r), dy)[1])),
    detached(L2, "norm detached", 1),
    second(COSINE, "norms detached", lambda r, dy: cosine_backward((*r[:2], *stop(r[2:])), dy)),
    second(DIVIDE, "quotient detached", lambda r, dy: (dy / r[1], -dy * stop(r[0] / r[1]) / r[1])),
    detached(INVERSE, "inverse detached"),
    second(SOLVE, "solution detached", lambda r, dy: solve_backward((*r[:2], stop(r[2])), dy)),
    second(CHOLESKY, "factor detached", lambda l, dy: cholesky_backward(stop(l), dy)),
    second(RECURRENCE, "states detached", lambda r, dy: recurrence_backward((r[0], stop(r[1])), dy)),
    second(
        RECURRENCE,
        "decay of the adjoint detached",
        lambda r, dy: (recurrence_backward(r, dy)[0], recurrence_backward((stop(r[0]), r[1]), dy)[1]),
    ),
    detached(LSTM, "new c detached", 5),
    second(CONV, "w detached in dx", lambda r, dy: (CONV.backward(r, dy)[0], CONV.backward((stop(r[0]), r[1]), dy)[1])),
]

WRONG = seconds
