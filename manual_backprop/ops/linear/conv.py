"""Convolution: each output is a weighted sum of the inputs in a window, the weights the same wherever the window is.

x [..., *spatial, in], w [*kernel, in, out]; along a spatial axis with stride s, the window at p begins at p s - lo, and
(the kernel is not flipped: a cross-correlation, as in every library of the field)

    y[p] = Σₖ x[p s + k - lo] w[k] + b

x[i] reaches C through each window that it is in, w[k] through each place of the window, and paths add up:

    dx[i] = Σₚ dy[p] w[i + lo - p s]ᵀ,    dw[k] = Σₚ x[p s + k - lo]ᵀ dy[p],    db = Σ dy      (Σ over examples too)

dx is itself a convolution, of dy and the flipped kernel; dw is one matmul for each k: the module `convolution`, which
has dilations and groups too, and the code.

Source: LeCun, Boser, Denker, Henderson, Howard, Hubbard & Jackel 1989, "Backpropagation applied to handwritten zip code
recognition"; Dumoulin & Visin 2016, arXiv:1603.07285, for the arithmetic of dx.
Saved: x and w, nothing new: no patches.
"""

from __future__ import annotations

from jax import lax

from manual_backprop.contract import op
from manual_backprop.ops.linear.convolution import passes
from manual_backprop.ops.linear.windows import Padding, PerAxis, Window, check_options, pairs, per_axis


@op
def conv(
    *,
    strides: PerAxis = 1,
    padding: Padding = "SAME",
    kernel_dilation: PerAxis = 1,
    input_dilation: PerAxis = 1,
    groups: int = 1,
    bias: bool = False,
):
    """x [..., *spatial, in], w [*kernel, in/groups, out] → y [..., *spatial, out]; `bias=True` takes (x, w, b [out]).

    Any number of leading axes; as many spatial axes as w has, 1 to 3; an option's one number stands for each of them.
    padding: "SAME" (⌈size / stride⌉ outputs), "VALID" (none), or for each axis a number or a pair (before, after).
    kernel_dilation, input_dilation: how far apart the entries of w, or of x, stand, with zeros between.
    groups: of channels; an output sees the inputs of its own group. groups = in is a depthwise convolution.
    Sums are in at least float32. Raises InputError for options and shapes that do not fit. Derivation: the module.
    """

    options = {"strides": strides, "kernel_dilation": kernel_dilation, "input_dilation": input_dilation}
    check_options("conv", groups, **options)

    def window_of(size, kernel) -> Window:
        s, d, t = (per_axis("conv", name, value, len(kernel)) for name, value in options.items())
        if isinstance(padding, str):
            dilated = [(n - 1) * t + 1 for n, t in zip(size, t, strict=True)]
            reach = [(K - 1) * d + 1 for K, d in zip(kernel, d, strict=True)]
            lo_hi = tuple(lax.padtype_to_pads(dilated, reach, s, padding))
        else:
            lo_hi = pairs("conv", padding, len(kernel))
        return Window(s, lo_hi, t, d, groups)

    return passes("conv", window_of, groups, bias)
