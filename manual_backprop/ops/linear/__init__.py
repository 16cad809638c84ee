"""Linear maps: the weighted input z = w a + b in all its forms."""

from manual_backprop.ops.linear.dense import dense

__all__ = ["dense"]
