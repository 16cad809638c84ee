"""PyTorch's functions of this family, in our ops."""

import jax.numpy as jnp

import manual_backprop as mb
from torch_samples import Skip


def nn_functional_scaled_dot_product_attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    """[..., heads, length, H], the leading axes broadcast; without heads each leading index is one head."""
    if dropout_p > 0:
        raise Skip("dropout draws other random numbers")
    leading = jnp.broadcast_shapes(*(x.shape[:-3] for x in (query, key, value)))
    heads = {x.shape[-3] for x in (query, key, value)}
    q, k, v = (jnp.swapaxes(jnp.broadcast_to(x, (*leading, *x.shape[-3:])), -2, -3) for x in (query, key, value))
    assert len(heads) == 1 or enable_gqa
    further = () if attn_mask is None else (jnp.asarray(attn_mask),)
    masks = bool(further) and further[0].dtype == bool
    op = mb.ops.attention(causal=is_causal, scale=scale, mask=masks, bias=bool(further) and not masks)
    return jnp.swapaxes(op(q, k, v, *further), -2, -3)
