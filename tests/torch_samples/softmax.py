"""PyTorch's functions of this family, in our ops."""

import jax.numpy as jnp
import numpy as np

import manual_backprop as mb
from torch_samples import Skip


def softmax(input, dim, dtype=None):
    return mb.ops.softmax(axis=_axes(input, dim))(_cast(input, dtype))


def log_softmax(input, dim, dtype=None):
    return mb.ops.log_softmax(axis=_axes(input, dim))(_cast(input, dtype))


def nn_functional_softmin(input, dim, dtype=None):
    return mb.ops.softmax(axis=_axes(input, dim))(-_cast(input, dtype))


def logsumexp(input, dim, keepdim=False):
    return mb.ops.logsumexp(axis=_axes(input, dim), keepdims=keepdim)(input)


def masked_softmax(input, dim, *, dtype=None, mask=None):
    _want_entries(mask, input, dim)
    return _with_mask(mb.ops.softmax, _cast(input, dtype), mask, axis=_axes(input, dim))


def masked_log_softmax(input, dim, *, dtype=None, mask=None):
    """PyTorch counts the dy of masked entries, as for any -∞ in x; ours and jax.nn's mask leaves them out."""
    x = _cast(input, dtype)
    _want_entries(mask, x, dim)
    if mask is not None:
        x = jnp.where(mask, x, -jnp.inf)
    return mb.ops.log_softmax(axis=_axes(x, dim))(x)


def masked_softmin(input, dim, *, dtype=None, mask=None):
    _want_entries(mask, input, dim)
    return _with_mask(mb.ops.softmax, -_cast(input, dtype), mask, axis=_axes(input, dim))


def masked_logsumexp(input, dim=None, *, keepdim=False, dtype=None, mask=None):
    return _with_mask(mb.ops.logsumexp, _cast(input, dtype), mask, axis=_axes(input, dim), keepdims=keepdim)


def _with_mask(constructor, input, mask, **options):
    return constructor(**options)(input) if mask is None else constructor(mask=True, **options)(input, mask)


def _want_entries(mask, x, dim):
    if mask is not None and not np.broadcast_to(mask, x.shape).any(_axes(x, dim)).all():
        raise Skip("a row of which no entry takes part: PyTorch answers NaN, we 0")


def _axes(input, dim):
    """PyTorch counts an axis 0 of a scalar."""
    return dim if input.ndim else None


def _cast(input, dtype):
    return input if dtype is None else input.astype(str(dtype).removeprefix("torch."))
