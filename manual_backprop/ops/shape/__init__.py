"""Shape and arithmetic: broadcasting, reductions, joining and cutting."""

from manual_backprop.ops.shape.arithmetic import add, divide, multiply, subtract
from manual_backprop.ops.shape.joining import concatenate, split, stack
from manual_backprop.ops.shape.layout import broadcast_to, flatten, reshape, transpose
from manual_backprop.ops.shape.reductions import cumsum, max, mean, min, sum

__all__ = [
    "add",
    "broadcast_to",
    "concatenate",
    "cumsum",
    "divide",
    "flatten",
    "max",
    "mean",
    "min",
    "multiply",
    "reshape",
    "split",
    "stack",
    "subtract",
    "sum",
    "transpose",
]
