"""Attention's forward pass by cuDNN's fused kernel, where that is to be had: on NVIDIA GPUs, in bfloat16 and float16.

`jax.nn.dot_product_attention(implementation="cudnn")` keeps no probabilities in memory. Of its pair only the forward
pass is taken: it gives the log-sum-exp in the dtype of y, which is too coarse to make probabilities of, so our backward
pass makes its own, chunk by chunk (`chunked.py`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.ops.attention.scores import Scoring

LIBRARY = "cudnn"  # what jax.nn calls it


def fused(scoring: Scoring, otherwise, q, k, v, mask, bias) -> jax.Array | None:
    """y [..., T, N, Hv], on other platforms than CUDA by otherwise(q, k, v, mask, bias).

    None where the library does not take the arguments or the options, or is not there.
    """
    if scoring.softcap is not None or scoring.dropping or (scoring.align != "top_left" and q.shape[-3] != k.shape[-3]):
        return None
    given = [x for x in (mask, bias) if x is not None]

    def split(further):
        further = list(further)
        return None if mask is None else further.pop(0), None if bias is None else further.pop(0)

    def library(q, k, v, *further):
        mask, bias = split(further)
        *batch, _, _, _ = q.shape
        flat = lambda x: x.reshape(-1, *x.shape[len(batch) :])
        pairs = lambda x: None if x is None else _flat_pairs(x, tuple(batch))
        y = jax.nn.dot_product_attention(
            flat(q),
            flat(k),
            flat(v),
            pairs(bias),
            pairs(mask),
            scale=scoring.scale,
            is_causal=scoring.causal,
            local_window_size=scoring.window,
            implementation=LIBRARY,
        )
        return y.reshape(*q.shape[:-1], v.shape[-1])

    try:
        jax.eval_shape(library, q, k, v, *given)
    except (RuntimeError, NotImplementedError, ValueError, TypeError):  # no cuDNN, or nothing for it
        return None
    plain = lambda q, k, v, *further: otherwise(q, k, v, *split(further))
    return lax.platform_dependent(q, k, v, *given, cuda=library, default=plain)


def _flat_pairs(x, batch: tuple[int, ...]) -> jax.Array:
    """What broadcasts to [*batch, N, T, S], as four axes."""
    x = x.reshape((1,) * (len(batch) + 3 - x.ndim) + x.shape)
    if any(size != 1 for size in x.shape[: len(batch)]):
        x = jnp.broadcast_to(x, (*batch, *x.shape[len(batch) :]))
    return x.reshape(-1, *x.shape[len(batch) :])
