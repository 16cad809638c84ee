"""Right for complex numbers: JAX's cotangents are transposed and not conjugated."""

import jax
import jax.numpy as jnp

from .right_case import Right, drawn, normal, rule


def complex_normal(seed, *shape):
    return jax.lax.complex(normal(seed, *shape), normal(seed + 100, *shape))


def away_from_zero(seed):
    z = complex_normal(seed, 4, 5)
    return (z * (1 + 0.3 / jnp.abs(z)),)


conj = jnp.conj


COMPLEX = [
    Right(
        "third power, complex",
        (lambda z: (z**3, z), lambda z, dy: (3 * dy * z * z,)),
        lambda z: z * z * z,
        lambda: (complex_normal(0, 4, 5),),
        why_hard="holomorphic: JAX's cotangent is not conjugated",
    ),
    Right(
        "exp, complex, from the value",
        rule(lambda z: (jnp.exp(z),) * 2, lambda y, dy: (dy * y,)),
        jnp.exp,
        **drawn(lambda seed: (complex_normal(seed, 4, 5),)),
        why_hard="complex residuals",
    ),
    Right(
        "squared absolute value",
        (lambda z: (z.real**2 + z.imag**2, z), lambda z, dy: (2 * dy * conj(z),)),
        lambda z: (z * conj(z)).real,
        lambda: (complex_normal(1, 4, 5),),
        why_hard="real out of complex: JAX's gradient is conjugated",
    ),
    Right(
        "absolute value, complex",
        (lambda z: (jnp.abs(z), z), lambda z, dy: (dy * conj(z) / jnp.abs(z),)),
        lambda z: jnp.sqrt(z.real**2 + z.imag**2),
        **drawn(away_from_zero),
        why_hard="not holomorphic",
    ),
    Right(
        "real part",
        (lambda z: (z.real, z), lambda z, dy: (jax.lax.complex(dy, jnp.zeros_like(dy)),)),
        lambda z: (z + conj(z)).real / 2,
        lambda: (complex_normal(2, 4, 5),),
        why_hard="a real cotangent becomes a complex one",
    ),
    Right(
        "conjugate",
        (lambda z: (conj(z), None), lambda _, dy: (conj(dy),)),
        lambda z: jax.lax.complex(z.real, -z.imag),
        lambda: (complex_normal(3, 4, 5),),
        why_hard="linear over the reals alone",
    ),
    Right(
        "real times complex",
        rule(lambda x, z: (x * z, (x, z)), lambda r, dy: ((dy * r[1]).real, dy * r[0])),
        jax.vmap(lambda x, z: jax.lax.complex(x * z.real, x * z.imag)),
        lambda: (normal(4, 4, 5), complex_normal(5, 4, 5)),
        why_hard="one argument takes the real part of the cotangent",
    ),
    Right(
        "matmul, complex",
        (lambda a, b: (a @ b, (a, b)), lambda r, dy: (dy @ r[1].T, r[0].T @ dy)),
        lambda a, b: jnp.einsum("ij,jk->ik", a, b),
        **drawn(lambda seed: (complex_normal(seed, 3, 5), complex_normal(seed + 1, 5, 2))),
        why_hard="transposed and not conjugated",
    ),
    Right(
        "Fourier transform by its matrix",
        (
            lambda x: (jnp.fft.fft(x), None),
            lambda _, dy: (jnp.fft.fft(dy),),
        ),
        lambda x: x @ jnp.exp(-2j * jnp.pi * jnp.outer(jnp.arange(8), jnp.arange(8)) / 8).astype(x.dtype),
        lambda: (complex_normal(6, 3, 8),),
        why_hard="the transform is its own transpose",
    ),
    Right(
        "Fourier transform of real numbers",
        (
            lambda x: (jnp.fft.rfft(x), x),
            lambda x, dy: (jnp.fft.fft(dy, x.shape[-1]).real,),
        ),
        jnp.fft.rfft,
        lambda: (normal(7, 3, 12),),
        why_hard="half a spectrum; its imaginary ends have no gradient",
    ),
    Right(
        "phase",
        (
            lambda z: (jnp.arctan2(z.imag, z.real), z),
            lambda z, dy: (-1j * dy / z,),
        ),
        lambda z: jnp.log(z).imag,
        **drawn(away_from_zero),
        why_hard="a cut along the negative axis",
    ),
]
