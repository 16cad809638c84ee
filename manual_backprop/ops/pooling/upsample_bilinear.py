"""Linear upsampling along every spatial axis: bilinear in two dimensions, trilinear in three (Catmull & Smith 1980).

Output i lies at the position p(i) of the input, for a scale s, m outputs for n inputs:

    cells:                  p(i) = (i + ½) / s - ½, kept within 0 … n - 1
    `align_corners=True`:   p(i) = i · (n - 1) / (m - 1): the ends of the output are the ends of the input

and takes from the inputs j = ⌊p⌋ and j + 1 on either side, with t = p - j:

    yᵢ = (1 - t) xⱼ + t xⱼ₊₁,        y = M x for a matrix of two entries a row
    dx = Mᵀ dy:  an input gets 1 - t or t of dy from every output that it reaches

along one axis after another. Saved: nothing; M is known from the shape of x.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from manual_backprop.contract import op
from manual_backprop.ops.arrays import OfX, spec, want_float
from manual_backprop.ops.pooling.resample import apply, positions, resized, want_sizes_or_scale


@op
def upsample_bilinear(
    *,
    sizes: int | tuple[int, ...] | None = None,
    scale: float | tuple[float, ...] | None = None,
    align_corners: bool = False,
):
    """x [batch, *spatial, channels] → y [batch, *sizes, channels]; a scale gives sizes ⌊n · scale⌋.

    Either may be a tuple with one entry a spatial axis; x may then have any number of axes before those.
    As `jax.image.resize(…, "linear", antialias=False)`. Sizes may be smaller than x's. Derivation: the module.
    """
    want_sizes_or_scale("upsample_bilinear", sizes, scale)

    def interpolation(shape):
        """The axes, and M for each."""
        axes, changes = resized("upsample_bilinear", shape, sizes, scale)
        return axes, [_interpolate(n, m, s, align_corners) for n, m, s in changes]

    def forward(x):
        want_float("upsample_bilinear", x=x)
        y = apply(x, *interpolation(x.shape))
        return y.astype(x.dtype), OfX(spec(x))

    def backward(residuals, dy):
        axes, matrices = interpolation(residuals.of_x.shape)
        dx = apply(dy, axes[::-1], [matrix.T for matrix in matrices[::-1]])
        return (dx.astype(dy.dtype),)

    return forward, backward


def _interpolate(n: int, m: int, s: float | Fraction, align_corners: bool) -> np.ndarray:
    p = np.arange(m) * (n - 1) / max(m - 1, 1) if align_corners else np.clip(positions(m, s, 0.5) - 0.5, 0, n - 1)
    j = np.floor(p).astype(int)
    t = (p - j)[:, None]
    one = np.eye(n)
    return (1 - t) * one[j] + t * one[np.minimum(j + 1, n - 1)]
