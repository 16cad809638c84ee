"""Attention's forward pass by cuDNN's fused kernel, where that is to be had: on NVIDIA GPUs, in bfloat16 and float16.

`jax.nn.dot_product_attention(implementation="cudnn")` keeps no probabilities in memory. Of its pair only the forward
pass is taken: it gives the log-sum-exp in the dtype of y, which is too coarse to make probabilities of, so our backward
pass makes its own, chunk by chunk (`chunked.py`).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax import lax

from manual_backprop.ops.attention.scores import Scoring

LIBRARY = "cudnn"  # what jax.nn calls it


def fused(scoring: Scoring, otherwise: Callable, q, k, v) -> jax.Array | None:
    """y [..., T, N, Hv], on other platforms than CUDA by otherwise(q, k, v).

    None where the library does not take the arguments or the options, or is not there. And where a query might attend
    to nothing, by a mask, a bias of -∞, or a window over other keys: y is to be 0, the library averages all values.
    """
    plain = scoring.softcap is None and not (scoring.dropping or scoring.mask or scoring.bias)
    aligned = q.shape[-3] == k.shape[-3] or (scoring.align == "top_left" and scoring.window is None)
    if not (plain and aligned and (scoring.causal or scoring.window is None)):
        return None

    def library(q, k, v):
        flat = lambda x: x.reshape(-1, *x.shape[-3:])
        y = jax.nn.dot_product_attention(
            flat(q),
            flat(k),
            flat(v),
            scale=scoring.scale,
            is_causal=scoring.causal,
            local_window_size=scoring.window,
            implementation=LIBRARY,
        )
        return y.reshape(*q.shape[:-1], v.shape[-1])

    try:
        jax.eval_shape(library, q, k, v)
    except (RuntimeError, NotImplementedError, ValueError, TypeError):  # no cuDNN, or nothing for it
        return None
    return lax.platform_dependent(q, k, v, cuda=library, default=otherwise)
