"""Right as kernels: they know one type only, cast to it whatever comes in, or refuse all others."""

import jax
import jax.numpy as jnp
from jax.scipy.special import erf

from .right_case import Right, dot, normal, rule, size, wide
from .right_precision import dense_backward, dense_forward

BF16, F16 = jnp.bfloat16, jnp.float16


def gelu(x):
    return x * (1 + erf(x / 2**0.5)) / 2


def gelu_slope(z):
    return (1 + erf(z / 2**0.5)) / 2 + z * jnp.exp(-z * z / 2) / (2 * jnp.pi) ** 0.5


def narrow_gelu_forward(x):
    z = x.astype(jnp.float32)
    return gelu(z).astype(x.dtype), x


def narrow_gelu_backward(x, dy):
    return ((dy.astype(jnp.float32) * gelu_slope(x.astype(jnp.float32))).astype(x.dtype),)


def narrow_sine_forward(x):
    return jnp.sin(x.astype(jnp.float32)), x  # float32 out, whatever came in


def narrow_sine_backward(x, dy):
    return ((dy * jnp.cos(x.astype(jnp.float32))).astype(x.dtype),)


def rms_norm(x, gain):
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * gain


def rms_norm_forward(x, gain):
    scale = size(wide(x))
    z = wide(x) / scale
    rstd = jax.lax.rsqrt((z * z).mean(-1, keepdims=True) + 1e-6 / scale / scale)
    return (z * rstd * wide(gain)).astype(x.dtype), (z * rstd, gain, rstd / scale)


def rms_norm_backward(residuals, dy):
    unit, gain, rstd = residuals
    g = wide(dy)
    inner = g * wide(gain)
    dx = rstd * (inner - unit * (inner * unit).mean(-1, keepdims=True))
    return dx.astype(dy.dtype), (g * unit).sum(0).astype(gain.dtype)


def only(kind, forward, backward):
    """A kernel compiled for one type, that refuses every other."""

    def refusing(*args):
        if any(x.dtype != kind for x in args):
            raise TypeError(f"this kernel takes {jnp.dtype(kind)} alone")
        return forward(*args)

    return refusing, backward


def swiglu(x, w, v):
    return jax.nn.silu(x @ w) * (x @ v)


def swiglu_forward(x, w, v):
    return (jax.nn.silu(dot("nk,km->nm", x, w)) * dot("nk,km->nm", x, v)).astype(x.dtype), (x, w, v)


def swiglu_backward(residuals, dy):
    x, w, v = residuals
    a, b, g = dot("nk,km->nm", x, w), dot("nk,km->nm", x, v), wide(dy)
    s = jax.nn.sigmoid(a)
    da, db = g * b * s * (1 + a * (1 - s)), g * a * s
    dx = dot("nm,km->nk", da, wide(w)) + dot("nm,km->nk", db, wide(v))
    gradients = dx, dot("nk,nm->km", wide(x), da), dot("nk,nm->km", wide(x), db)
    return tuple(g.astype(x.dtype) for g in gradients)


def conv(x, w):
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def conv_in_float32(x, w):
    return conv(wide(x), wide(w)).astype(x.dtype)


def recurrence(a, x):
    return jax.lax.scan(lambda h, ax: (ax[0] * h + ax[1],) * 2, jnp.zeros_like(x[0]), (a, x))[1]


def recurrence_forward(a, x):
    h = recurrence(wide(a), wide(x))
    return h.astype(x.dtype), (a, h)


def recurrence_backward(residuals, dy):
    a, h = residuals
    later = jnp.concatenate([wide(a)[1:], jnp.zeros_like(h[:1])])
    step = lambda g, now: (now[0] * g + now[1],) * 2
    g = jax.lax.scan(step, jnp.zeros_like(h[0]), (later, wide(dy)), reverse=True)[1]
    before = jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]])
    return (g * before).astype(a.dtype), g.astype(a.dtype)


def parts(x):
    """A float32 as a sum of three bfloat16; a cast there and back is one that XLA may leave out."""
    narrow = lambda x: jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    high = narrow(x)
    middle = narrow(x - high)
    return tuple(part.astype(BF16) for part in (high, middle, x - high - middle))


def split_matmul(a, b):
    """A float32 product in six bfloat16 products, as an accelerator makes it."""
    a, b = parts(a.astype(jnp.float32)), parts(b.astype(jnp.float32))
    terms = [dot("nk,km->nm", a[i], b[j]) for i, j in ((2, 0), (1, 1), (0, 2), (1, 0), (0, 1), (0, 0))]
    return sum(terms[1:], terms[0])


split_dense = rule(
    lambda x, w: (split_matmul(x, w).astype(x.dtype), (x, w)),
    lambda r, dy: (split_dense(dy, r[1].T).astype(r[0].dtype), split_dense(r[0].T, dy).astype(r[1].dtype)),
)


KERNELS = [
    Right(
        "gelu that casts to float32 and back",
        (narrow_gelu_forward, narrow_gelu_backward),
        gelu,
        lambda: (normal(18, 4, 8),),
        why_hard="float64 arguments gain nothing: it is float32 inside",
    ),
    Right(
        "sine in float32 whatever comes in",
        rule(narrow_sine_forward, narrow_sine_backward),
        jnp.sin,
        lambda: (normal(19, 4, 8),),
        why_hard="the value is float32 even for float64 arguments",
    ),
    Right(
        "rms norm that refuses all but float32",
        only(jnp.float32, rms_norm_forward, rms_norm_backward),
        rms_norm,
        lambda: (normal(20, 4, 32), normal(21, 32)),
        why_hard="raises TypeError on float64",
    ),
    Right(
        "swiglu that refuses all but bfloat16",
        only(BF16, swiglu_forward, swiglu_backward),
        swiglu,
        lambda: (normal(22, 4, 32, dtype=BF16), normal(23, 32, 8, dtype=BF16), normal(24, 32, 8, dtype=BF16)),
        why_hard="raises TypeError on float32 and float64",
    ),
    Right(
        "dense that refuses all but float16",
        only(F16, dense_forward, dense_backward),
        lambda x, w: x @ w,
        lambda: (normal(25, 4, 32, dtype=F16), normal(26, 32, 8, dtype=F16)),
        why_hard="raises TypeError on others",
    ),
    Right(
        "rms norm, float16 of size 300",
        (rms_norm_forward, rms_norm_backward),
        rms_norm,
        lambda: (normal(27, 4, 64, dtype=F16, scale=300), normal(28, 64, dtype=F16)),
        why_hard="the reference's squares overflow in float16; the candidate's do not",
    ),
    Right(
        "conv, bfloat16 on float32 sums",
        conv_in_float32,
        conv,
        lambda: (normal(37, 2, 8, 8, 4, dtype=BF16), normal(38, 3, 3, 4, 5, dtype=BF16)),
        why_hard="autodiff of casts",
    ),
    Right(
        "linear recurrence, bfloat16, float32 state",
        (recurrence_forward, recurrence_backward),
        recurrence,
        lambda: (normal(39, 32, 4, dtype=BF16, scale=0.5), normal(40, 32, 4, dtype=BF16)),
        why_hard="in the reference every step rounds",
    ),
    Right(
        "dense, float32 in six bfloat16 products",
        split_dense,
        lambda x, w: x @ w,
        lambda: (normal(41, 4, 64), normal(42, 64, 5)),
        why_hard="another rounding than float32's own; never float64",
    ),
    Right(
        "silu, bfloat16, one rounding",
        rule(
            lambda x: (jax.nn.silu(wide(x)).astype(x.dtype), x),
            lambda x, dy: (jax.vjp(jax.nn.silu, wide(x))[1](wide(dy))[0].astype(x.dtype),),
        ),
        jax.nn.silu,
        lambda: (normal(43, 4, 32, dtype=BF16, scale=3),),
        why_hard="the slope crosses zero near -1.28",
    ),
]
