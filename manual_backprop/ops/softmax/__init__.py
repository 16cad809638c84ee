"""The softmax family: distributions over an axis, and their logarithms."""

from manual_backprop.ops.softmax.log_softmax import log_softmax
from manual_backprop.ops.softmax.logsumexp import logsumexp
from manual_backprop.ops.softmax.softmax import softmax

__all__ = ["log_softmax", "logsumexp", "softmax"]
