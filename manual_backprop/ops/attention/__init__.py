"""Attention: a softmax over pairs of positions, plain and in chunks, and the ways to tell positions apart."""

from manual_backprop.ops.attention.alibi import alibi
from manual_backprop.ops.attention.chunked import chunked_attention
from manual_backprop.ops.attention.dot_product import attention
from manual_backprop.ops.attention.rotary import rotary_embedding

__all__ = ["alibi", "attention", "chunked_attention", "rotary_embedding"]
