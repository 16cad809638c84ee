"""Passes whose answer depends on more than their arguments: state, noise, the transform that they run under."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from .wrong_activations import GELU, SILU, SWIGLU, TANH, gelu_slope, gelu_tanh_slope
from .wrong_arrays import DROPOUT, MEAN, RATE
from .wrong_attention import ATTENTION, attention_backward
from .wrong_costs import SOFTMAX, through_softmax
from .wrong_linear import DENSE, MUL, dense_backward
from .wrong_norms import BATCH, LAYER, RMS, layer_norm_backward, rms_norm_backward
from .wrong_sequence import CUMSUM, RNN

LIKE = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)


def on_host(function, x, *rest, vmap_method="sequential"):
    """A numpy function of arrays shaped like x."""
    return jax.pure_callback(
        lambda *args: np.asarray(function(*map(np.asarray, args)), x.dtype), LIKE(x), x, *rest, vmap_method=vmap_method
    )


def traced(x):
    return isinstance(x, jax.core.Tracer)


def state(op, mistake, backward, **named):
    """Claimed is the first derivative: what runs on the host has no other."""
    return op.wrong(mistake, backward, kind="determinism", order=1, **named)


# ── What earlier calls left behind ───────────────────────────────────────────────────────────────────────────────────


def counted(op, change):
    """The correct pass, changed by the number of calls before."""
    calls = itertools.count()

    def backward(r, dy):
        n = next(calls)
        return tuple(change(g, n) for g in op.backward(r, dy))

    return backward


def accumulating():
    """A buffer of gradients that nobody sets to zero."""
    buffers = {}

    def added(dw):
        buffers[dw.shape] = buffers.get(dw.shape, 0) + dw
        return buffers[dw.shape]

    def backward(r, dy):
        dw, db, dx = dense_backward(r, dy)
        return on_host(added, dw), db, dx

    return backward


def last_residuals(op):
    """The forward pass leaves its residuals in a variable; the backward pass takes the last ones."""
    last = []

    def forward(*args):
        y, r = op.forward(*args)
        last[:] = [r]
        return y, r

    return {"forward": forward, "backward": lambda r, dy: op.backward(last[0], dy)}


def tape(op):
    """Residuals on a stack: a second backward pass takes those of another forward pass, or finds none."""
    stack = []

    def forward(*args):
        y, r = op.forward(*args)
        stack.append(r)
        return y, None

    return {"forward": forward, "backward": lambda _, dy: op.backward(stack.pop(), dy)}


def remembered_by_shape(op):
    """A cache whose key is the shape of the cotangent."""
    known = {}

    def backward(r, dy):
        if dy.shape not in known:
            known[dy.shape] = op.backward(r, dy)
        return known[dy.shape]

    return backward


def first_weights():
    """The transposed weights of the first call, kept for all others."""
    kept = {}

    def backward(r, dy):
        w, x = r
        wt = on_host(lambda w: kept.setdefault(w.shape, w.copy()), w).T
        return x.T @ dy, dy.sum(0), dy @ wt

    return backward


def momentum():
    """A running mean of the gradients."""
    mean = {}

    def smoothed(d):
        mean[d.shape] = 0.9 * mean.get(d.shape, d) + 0.1 * d
        return mean[d.shape]

    return lambda r, dy: (*layer_norm_backward(r, dy)[:2], on_host(smoothed, layer_norm_backward(r, dy)[2]))


def loss_scale():
    """A scale that halves for good when a gradient is large, and is not divided out."""
    scale = [1.0]

    def scaled(d):
        if np.abs(d).max(initial=0) > 1e3:
            scale[0] /= 2
        return d * scale[0]

    return lambda r, dy: (on_host(scaled, TANH.backward(r, dy)[0]),)


def in_place():
    """The residual is overwritten by the first backward pass."""
    used = set()

    def overwritten(y):
        key = y.tobytes()
        y = np.zeros_like(y) if key in used else y
        used.add(key)
        return y

    return lambda r, dy: (through_softmax(on_host(overwritten, r[1]), dy),)


def running_statistics():
    """The statistics of the backward pass are running means over the calls."""
    running = {}

    def rstd(value):
        running[value.shape] = 0.5 * running.get(value.shape, value) + 0.5 * value
        return running[value.shape]

    return lambda r, dy: BATCH.backward((*r[:3], on_host(rstd, r[3])), dy)


behind = [
    state(DENSE, "a hidden counter scales", counted(DENSE, lambda g, n: g * (1 + 1e-3 * n))),
    state(SILU, "first call right, later ones half", counted(SILU, lambda g, n: g if n == 0 else g / 2)),
    state(TANH, "every third call zero", counted(TANH, lambda g, n: g * (n % 3 != 2))),
    state(GELU, "sign by the parity of the call", counted(GELU, lambda g, n: g * (-1) ** n)),
    state(DENSE, "gradients added up over calls", accumulating()),
    state(MUL, "residuals of the last forward pass", **last_residuals(MUL)),
    state(SWIGLU, "residuals on a stack", **tape(SWIGLU)),
    state(SOFTMAX, "remembered by the shape of dy", remembered_by_shape(SOFTMAX)),
    state(DENSE, "weights of the first call", first_weights()),
    state(LAYER, "running mean of the gradients", momentum()),
    state(TANH, "a loss scale that halves after an overflow", loss_scale()),
    state(SOFTMAX, "residual overwritten by the first pass", in_place()),
    state(BATCH, "running statistics in the backward pass", running_statistics()),
]

# ── Noise ────────────────────────────────────────────────────────────────────────────────────────────────────────────

random = np.random.default_rng(0)


keys = itertools.count()


def dithered(d):
    """Rounded at random, by a key that is new for every trace."""
    step = jnp.asarray(2.0**-9, d.dtype)
    noise = jax.random.uniform(jax.random.key(next(keys)), d.shape, d.dtype)
    return jnp.floor(d / step + noise) * step


def trace_dropout(mask, dy):
    """A mask drawn by numpy while tracing."""
    return jnp.where(random.random(dy.shape) > RATE, dy, 0) / (1 - RATE), None


noise = [
    state(
        SOFTMAX,
        "noise from the host",
        lambda r, dy: (on_host(lambda d: d + 1e-3 * random.normal(size=d.shape), through_softmax(r[1], dy)),),
    ),
    state(
        MEAN,
        "relative noise from the host",
        lambda x, dy: (on_host(lambda d: d * (1 + 1e-3 * random.normal()), MEAN.backward(x, dy)[0]),),
    ),
    state(
        DENSE,
        "rounded at random",
        lambda r, dy: (dithered(r[1].T @ dy), dy.sum(0), dy @ r[0].T),
    ),
    state(DROPOUT, "a mask of its own for every pass", trace_dropout),
    state(
        ATTENTION,
        "rows of dq dropped at random",
        lambda r, do: (
            on_host(lambda d: d * (random.random((*d.shape[:-1], 1)) > 0.1), attention_backward(r, do)[0]),
            *attention_backward(r, do)[1:],
        ),
    ),
]

# ── Another answer under a transform ─────────────────────────────────────────────────────────────────────────────────


def host_cumsum(_, dy):
    return (on_host(lambda d: np.cumsum(d[::-1], 0)[::-1], dy, vmap_method="expand_dims"),)


def host_softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@jax.custom_batching.custom_vmap
def column_sum(d):
    return d.sum(0)


@column_sum.def_vmap
def _(size, batched, d):
    return jnp.broadcast_to(d.sum((0, 1)) / size, (size, d.shape[-1])), True


@jax.custom_batching.custom_vmap
def product(a, b):
    return a.T @ b


@product.def_vmap
def _(size, batched, a, b):
    a, b = (u[0] if one else u for u, one in zip((a, b), batched, strict=True))
    return jnp.broadcast_to(a.T @ b, (size, a.shape[1], b.shape[1])), True


def rnn_without_first(r, dy):
    return RNN.backward(r, dy.at[0].set(0) if traced(dy) else dy)


transforms = [
    # jit
    state(
        GELU,
        "tanh form under jit",
        lambda r, dy: (dy * (gelu_tanh_slope(r[0]) if traced(dy) else gelu_slope(r[0])),),
    ),
    state(
        RMS, "norm taken as constant under jit", lambda r, dy: rms_norm_backward(r, dy, path=0.0 if traced(dy) else 1.0)
    ),
    state(
        DENSE,
        "bfloat16 under jit",
        lambda r, dy: dense_backward(tuple(a.astype(jnp.bfloat16).astype(a.dtype) for a in r) if traced(dy) else r, dy),
    ),
    state(RNN, "first step left out when traced", rnn_without_first),
    # vmap
    state(CUMSUM, "the host sums the first axis, whatever it is", host_cumsum),
    state(
        SOFTMAX,
        "the host normalises the second axis, whatever it is",
        lambda r, dy: (through_softmax(on_host(host_softmax, r[0], vmap_method="expand_dims"), dy),),
    ),
    state(DENSE, "a batching rule that averages the batch", lambda r, dy: (r[1].T @ dy, column_sum(dy), dy @ r[0].T)),
    state(
        DENSE,
        "a batching rule that takes the first of the batch",
        lambda r, dy: (product(r[1], dy), dy.sum(0), dy @ r[0].T),
    ),
]

WRONG = behind + noise + transforms
