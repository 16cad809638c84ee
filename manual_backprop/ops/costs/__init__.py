"""Costs: the last op of all, where the backward pass starts and where the examples are averaged."""

from manual_backprop.ops.costs.binary_cross_entropy import binary_cross_entropy
from manual_backprop.ops.costs.cosine_similarity import cosine_similarity
from manual_backprop.ops.costs.errors import absolute_error, huber, mean_squared_error
from manual_backprop.ops.costs.gaussian_kl import gaussian_kl
from manual_backprop.ops.costs.info_nce import info_nce
from manual_backprop.ops.costs.kl_divergence import kl_divergence
from manual_backprop.ops.costs.linear_cross_entropy import linear_cross_entropy
from manual_backprop.ops.costs.softmax_cross_entropy import softmax_cross_entropy
from manual_backprop.ops.costs.squared_error import squared_error

__all__ = [
    "absolute_error",
    "binary_cross_entropy",
    "cosine_similarity",
    "gaussian_kl",
    "huber",
    "info_nce",
    "kl_divergence",
    "linear_cross_entropy",
    "mean_squared_error",
    "softmax_cross_entropy",
    "squared_error",
]
