"""Nearest-neighbour upsampling (Odena, Dumoulin & Olah 2016, "Deconvolution and checkerboard artifacts").

Output i copies the input whose cell its centre falls into, for a scale s, m outputs for n inputs:

    yᵢ = x at j(i),    j(i) = ⌊(i + ½) / s⌋        (⌊i / s⌋ without `half_pixel`; for given sizes s = m/n, exactly)

An input reaches C through every copy of it, and copies are paths, which add up:

    dxⱼ = Σ dyᵢ over the i with j(i) = j

along one axis after another. Saved: nothing; the copies are known from the shape of x.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from manual_backprop.contract import op
from manual_backprop.ops.arrays import OfX, spec, want_float
from manual_backprop.ops.pooling.resample import apply, positions, resized, want_sizes_or_scale


@op
def upsample_nearest(
    *,
    sizes: int | tuple[int, ...] | None = None,
    scale: float | tuple[float, ...] | None = None,
    half_pixel: bool = True,
):
    """x [batch, *spatial, channels] → y [batch, *sizes, channels]; a scale gives sizes ⌊n · scale⌋.

    Either may be a tuple with one entry a spatial axis; x may then have any number of axes before those.
    `half_pixel` looks up the centres of cells, as `jax.image.resize` does, otherwise their corners. Sizes may be
    smaller than x's: inputs that no output copies get no gradient. Derivation: the module.
    """
    want_sizes_or_scale("upsample_nearest", sizes, scale)
    center = 0.5 if half_pixel else 0.0

    def copies(shape):
        """The axes, and for each the matrix [m, n] with a one at (i, j(i))."""
        axes, changes = resized("upsample_nearest", shape, sizes, scale)
        return axes, [_copy(n, m, s, center) for n, m, s in changes]

    def forward(x):
        want_float("upsample_nearest", x=x)
        y = apply(x, *copies(x.shape))
        return y.astype(x.dtype), OfX(spec(x))

    def backward(residuals, dy):
        axes, matrices = copies(residuals.of_x.shape)
        dx = apply(dy, axes[::-1], [matrix.T for matrix in matrices[::-1]])
        return (dx.astype(dy.dtype),)

    return forward, backward


def _copy(n: int, m: int, s: float | Fraction, center: float) -> np.ndarray:
    j = np.floor(positions(m, s, center)).astype(int)
    return np.eye(n)[np.minimum(j, n - 1)]
