"""Linear maps: the weighted input z = w a + b in all its forms."""

from manual_backprop.ops.linear.bilinear import bilinear
from manual_backprop.ops.linear.conv import conv
from manual_backprop.ops.linear.conv_transpose import conv_transpose
from manual_backprop.ops.linear.dense import dense
from manual_backprop.ops.linear.einsum import einsum
from manual_backprop.ops.linear.embedding import embedding
from manual_backprop.ops.linear.low_rank_dense import low_rank_dense
from manual_backprop.ops.linear.positional_embedding import positional_embedding

__all__ = [
    "bilinear",
    "conv",
    "conv_transpose",
    "dense",
    "einsum",
    "embedding",
    "low_rank_dense",
    "positional_embedding",
]
