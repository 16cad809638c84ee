"""Right by another algorithm: transforms, cofactors, block matrices, packed residuals, recomputation."""

import jax
import jax.numpy as jnp
from jax.scipy.special import erf, erfc

from .right_case import Right, drawn, normal, rule


def causal_convolution(x, k):
    """(time, channels), (taps, channels), directly."""
    return sum(jnp.pad(x, ((i, 0), (0, 0)))[: len(x)] * k[i] for i in range(len(k)))


def spectra(n, *signals):
    return [jnp.fft.rfft(s, n, axis=0) for s in signals]


def fft_convolution_forward(x, k):
    n = len(x) + len(k)
    fx, fk = spectra(n, x, k)
    return jnp.fft.irfft(fx * fk, n, axis=0)[: len(x)], (x, k)


def fft_convolution_backward(residuals, dy):
    x, k = residuals
    n = len(x) + len(k)
    fx, fk, fy = spectra(n, x, k, dy)
    correlate = lambda a, b: jnp.fft.irfft(jnp.conj(a) * b, n, axis=0)
    return correlate(fk, fy)[: len(x)], correlate(fx, fy)[: len(k)]


def gelu_backward(x, dy):
    cdf = jnp.where(x > 0, 1 - erfc(x / 2**0.5) / 2, erfc(-x / 2**0.5) / 2)
    return (dy * (cdf + x * jnp.exp(-x * x / 2) / (2 * jnp.pi) ** 0.5),)


def conv(x, w):
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def patches(x, kernel):
    h, w = kernel[:2]
    p = jnp.pad(x, ((0, 0), (h // 2, h // 2), (w // 2, w // 2), (0, 0)))
    return jnp.stack([p[:, i : i + x.shape[1], j : j + x.shape[2]] for i in range(h) for j in range(w)], -2)


def im2col_forward(x, w):
    return jnp.einsum("nhwtc,tco->nhwo", patches(x, w.shape), w.reshape(-1, *w.shape[2:])), (x, w)


def im2col_backward(residuals, dy):
    x, w = residuals
    dw = jnp.einsum("nhwtc,nhwo->tco", patches(x, w.shape), dy).reshape(w.shape)
    turned = jnp.swapaxes(w[::-1, ::-1], 2, 3).reshape(-1, w.shape[3], w.shape[2])
    return jnp.einsum("nhwto,toc->nhwc", patches(dy, w.shape), turned), dw


def packed_relu_backward(bits, dy):
    return (dy * jnp.unpackbits(bits, axis=-1, count=dy.shape[-1]).astype(dy.dtype),)


def windows(x):
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4).reshape(n, h // 2, w // 2, c, 4)


def max_pool(x):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def indexed_pool_forward(x):
    return windows(x).max(-1), windows(x).argmax(-1).astype(jnp.uint8)


def indexed_pool_backward(index, dy):
    n, h, w, c = dy.shape
    spread = dy[..., None] * jax.nn.one_hot(index, 4, dtype=dy.dtype)
    return (spread.reshape(n, h, w, c, 2, 2).transpose(0, 1, 4, 2, 5, 3).reshape(n, 2 * h, 2 * w, c),)


def power_backward(x, dy):
    return (2 * jnp.fft.fft(dy * jnp.conj(jnp.fft.fft(x))).real,)


def cofactors(a):
    r = (
        jnp.cross(a[..., 1, :], a[..., 2, :]),
        jnp.cross(a[..., 2, :], a[..., 0, :]),
        jnp.cross(a[..., 0, :], a[..., 1, :]),
    )
    return jnp.stack(r, -2)


def expm_backward(a, dy):
    """The derivative of the exponential, read off the exponential of a block matrix."""
    n = len(a)
    block = jnp.block([[a.T, dy], [jnp.zeros_like(a), a.T]])
    return (jax.scipy.linalg.expm(block)[:n, n:],)


def rebuilt(x, w):
    return jnp.tanh(jnp.tanh(x @ w) @ w.T)


TRANSFORMS = [
    Right(
        "causal convolution by FFT",
        (fft_convolution_forward, fft_convolution_backward),
        causal_convolution,
        lambda: (normal(8, 20, 2), normal(9, 5, 2)),
        why_hard="an error relative to the largest entry, not to each",
    ),
    Right(
        "causal convolution of a spike by FFT",
        rule(fft_convolution_forward, fft_convolution_backward),
        causal_convolution,
        **drawn(lambda seed: (jnp.zeros((20, 2), jnp.float32).at[3 + seed % 9].set(100.0), normal(seed, 5, 2))),
        why_hard="true zeros come out as rounding noise",
    ),
    Right(
        "gelu, its slope by erfc",
        (lambda x: (x * (1 + erf(x / 2**0.5)) / 2, x), gelu_backward),
        lambda x: x * (1 + erf(x / 2**0.5)) / 2,
        lambda: (normal(17, 4, 8, scale=4),),
        why_hard="the tail is right to every digit; the reference's is noise",
    ),
    Right(
        "softplus by log1p",
        rule(
            lambda x: (jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x))), x),
            lambda x, dy: (dy * jax.nn.sigmoid(x),),
        ),
        jax.nn.softplus,
        lambda: (normal(18, 4, 8, scale=10).at[0, 0].set(0),),
        why_hard="two kinks in the value's formula that cancel, at zero",
    ),
    Right(
        "conv by patches",
        (im2col_forward, im2col_backward),
        conv,
        lambda: (normal(19, 2, 6, 5, 3), normal(20, 3, 3, 3, 4)),
        why_hard="a matmul for a convolution",
    ),
    Right(
        "relu that keeps packed bits",
        (lambda x: (jnp.maximum(x, 0), jnp.packbits(x > 0, axis=-1)), packed_relu_backward),
        jax.nn.relu,
        lambda: (normal(21, 3, 13),),
        why_hard="the residual is uint8, and has another shape",
    ),
    Right(
        "max pool that keeps a uint8 index",
        (indexed_pool_forward, indexed_pool_backward),
        max_pool,
        lambda: (normal(22, 2, 6, 4, 3),),
        why_hard="the residual is an integer",
    ),
    Right(
        "leaky relu from the value",
        (lambda x: (jnp.where(x > 0, x, x / 8),) * 2, lambda y, dy: (jnp.where(y > 0, dy, dy / 8),)),
        lambda x: jax.nn.leaky_relu(x, 0.125),
        lambda: (normal(23, 4, 9),),
        why_hard="the mask is the output's sign",
    ),
    Right(
        "two layers recomputed",
        jax.checkpoint(rebuilt),
        rebuilt,
        lambda: (normal(24, 4, 6), normal(25, 6, 5)),
        why_hard="a remat inside every derivative",
    ),
    Right(
        "spectral power",
        (lambda x: (jnp.abs(jnp.fft.fft(x)) ** 2, x), power_backward),
        lambda x: jnp.fft.fft(x).real ** 2 + jnp.fft.fft(x).imag ** 2,
        lambda: (normal(26, 3, 16),),
        why_hard="a real function through complex numbers",
    ),
    Right(
        "determinant 3 x 3 by cofactors",
        (
            lambda a: ((a[..., 0, :] * cofactors(a)[..., 0, :]).sum(-1), a),
            lambda a, dy: (dy[..., None, None] * cofactors(a),),
        ),
        jnp.linalg.det,
        lambda: (normal(27, 4, 3, 3).at[1, 2].set(0).at[2].set(1),),
        why_hard="singular matrices, where the inverse does not exist",
    ),
    Right(
        "matrix exponential by a block matrix",
        (lambda a: (jax.scipy.linalg.expm(a), a), expm_backward),
        jax.scipy.linalg.expm,
        **drawn(lambda seed: (normal(seed, 4, 4, scale=0.5),)),
        why_hard="the exponential of twice the size, for the gradient",
    ),
]
