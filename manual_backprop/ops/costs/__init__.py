"""Costs: the last op of all, where the backward pass starts and where the examples are averaged."""

from manual_backprop.ops.costs.softmax_cross_entropy import softmax_cross_entropy
from manual_backprop.ops.costs.squared_error import squared_error

__all__ = ["softmax_cross_entropy", "squared_error"]
