"""Attention: a softmax over pairs of positions, plain and in chunks, and the ways to tell positions apart."""

from manual_backprop.ops.attention.chunked import chunked_attention
from manual_backprop.ops.attention.dot_product import attention

__all__ = ["attention", "chunked_attention"]
