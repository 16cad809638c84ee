"""Transposed convolution: the convolution of an input whose entries stand a stride apart; it enlarges.

x̃ has s - 1 zeros between the entries of x (x̃[i s] = x[i]), and a window of stride 1 moves over it:

    y[p] = Σₖ x̃[p + k - lo] w[k] + b

It is the map that a convolution of stride s has for its dx. Its own cotangents are those of any convolution, with s as
the input dilation; so dx is a convolution of stride s:

    dx[i] = Σₖ dy[i s - k + lo] w[k]ᵀ,    dw[k] = Σₚ x̃[p + k - lo]ᵀ dy[p],    db = Σ dy      (Σ over examples too)

Source: Zeiler, Krishnan, Taylor & Fergus 2010, "Deconvolutional networks"; Dumoulin & Visin 2016, arXiv:1603.07285,
section 4, for the arithmetic.
Saved: x and w, nothing new.
"""

from __future__ import annotations

from manual_backprop.contract import op
from manual_backprop.ops.linear.convolution import passes
from manual_backprop.ops.linear.windows import Padding, PerAxis, Window, check_options, pairs, per_axis


@op
def conv_transpose(
    *,
    strides: PerAxis = 1,
    padding: Padding = "SAME",
    kernel_dilation: PerAxis = 1,
    groups: int = 1,
    transpose_kernel: bool = False,
    bias: bool = False,
):
    """x [..., *spatial, in], w [*kernel, in/groups, out] → y [..., *spatial, out]; `bias=True` takes (x, w, b [out]).

    As `jax.lax.conv_transpose`. Any number of leading axes; as many spatial axes as w has, 1 to 3.
    padding: "SAME" (size · stride outputs), "VALID" (all that the kernel reaches), or of x̃, for each axis a number or a
    pair. PyTorch's padding q and output_padding r are here (R - q, R - q + r), with R = (K - 1) d for a kernel of K
    taps and dilation d; its kernel is flipped, so `transpose_kernel=True`.
    `transpose_kernel=True`: w [*kernel, out/groups, in], that of the convolution whose dx this is.
    Sums are in at least float32. Raises InputError for options and shapes that do not fit. Derivation: the module.
    """

    options = {"strides": strides, "kernel_dilation": kernel_dilation}
    check_options("conv_transpose", groups, **options)

    def window_of(size, kernel) -> Window:
        s, d = (per_axis("conv_transpose", name, value, len(kernel)) for name, value in options.items())
        if isinstance(padding, str):
            lo_hi = tuple(named_padding(padding, (K - 1) * d + 1, s) for K, s, d in zip(kernel, s, d, strict=True))
        else:
            lo_hi = pairs("conv_transpose", padding, len(kernel))
        return Window((1,) * len(kernel), lo_hi, s, d, groups)

    return passes("conv_transpose", window_of, groups, bias, transpose_kernel)


def named_padding(padding: str, reach: int, stride: int) -> tuple[int, int]:
    """(lo, hi) such that n entries give n · stride, or for "VALID" (n - 1) · stride + max(reach, stride)."""
    if padding == "VALID":
        return reach - 1, max(reach, stride) - 1
    total = reach + stride - 2
    lo = reach - 1 if stride >= reach else -(-total // 2)
    return lo, total - lo
