"""PyTorch's functions of shape and arithmetic, in our ops."""

import numpy as np

import manual_backprop as mb
from torch_samples import Skip


def add(input, other, alpha=1):
    return mb.ops.add()(input, mb.ops.multiply()(other, float(alpha)))


def sub(input, other, alpha=1):
    return mb.ops.subtract()(input, mb.ops.multiply()(other, float(alpha)))


def rsub(input, other, alpha=1):
    return sub(other, input, alpha)


def mul(input, other):
    return mb.ops.multiply()(input, other)


def div(input, other, rounding_mode=None):
    if rounding_mode:
        raise Skip("a rounded quotient has no derivative")
    return mb.ops.divide()(input, other)


def sum(input, dim=None, keepdim=False):
    return mb.ops.sum(axis=_axis(input, dim), keepdims=keepdim)(input)


def mean(input, dim=None, keepdim=False):
    return mb.ops.mean(axis=_axis(input, dim), keepdims=keepdim)(input)


def amax(input, dim=None, keepdim=False):
    return mb.ops.max(axis=_axis(input, dim), keepdims=keepdim)(input)


def amin(input, dim=None, keepdim=False):
    return mb.ops.min(axis=_axis(input, dim), keepdims=keepdim)(input)


def cumsum(input, dim, dtype=None):
    if input.ndim == 0:  # PyTorch counts it as one entry along an axis
        return mb.ops.reshape(shape=())(cumsum(mb.ops.reshape(shape=(1,))(input), 0))
    return mb.ops.cumsum(axis=dim)(input)


def cat(tensors, dim=0):
    return mb.ops.concatenate(axis=dim)(*(x for x in tensors if x.shape != (0,) or len(tensors[-1].shape) == 1))


def hstack(tensors):
    return mb.ops.concatenate(axis=min(1, tensors[0].ndim - 1))(*tensors)


def stack(tensors, dim=0):
    return mb.ops.stack(axis=dim)(*tensors)


def split(input, sections, dim=0):
    """PyTorch's number is the size of a part; the last may be smaller."""
    if isinstance(sections, int):
        whole, rest = divmod(input.shape[dim], sections)
        sections = (sections,) * whole + (rest,) * (rest > 0)
    return mb.ops.split(sections=tuple(sections), axis=dim)(input)


def split_with_sizes(input, sizes, dim=0):
    return split(input, sizes, dim)


def chunk(input, chunks, dim=0):
    return split(input, -(-input.shape[dim] // chunks), dim)


def transpose(input, dim0, dim1):
    axes = list(range(input.ndim))
    if axes:
        axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    return mb.ops.transpose(axes=tuple(axes))(input)


def permute(input, dims):
    return mb.ops.transpose(axes=tuple(dims))(input)


def reshape(input, shape):
    return mb.ops.reshape(shape=tuple(shape))(input)


def flatten(input, start_dim=0, end_dim=-1):
    return mb.ops.flatten(from_axis=start_dim)(input)


def broadcast_to(input, shape):
    return mb.ops.broadcast_to(shape=tuple(shape))(input)


def expand(input, shape):
    return broadcast_to(input, shape)


def _axis(input, dim):
    """PyTorch's [] is every axis; a number counts as one entry along an axis."""
    if dim is None or input.ndim == 0 or np.size(dim) == 0:
        return None
    return tuple(np.atleast_1d(dim).tolist())
