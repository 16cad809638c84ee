"""PyTorch's functions of routing, in our ops."""

import jax
import jax.numpy as jnp
import numpy as np

import manual_backprop as mb
from torch_samples import Skip


def gather(input, dim, index):
    """PyTorch's index may be shorter than the input along the other axes too."""
    if input.ndim != index.ndim:
        return mb.ops.gather(axis=0)(_line(input), index)
    if input.ndim == 0:
        return mb.ops.gather()(_line(input), index)
    cut = [slice(None) if axis == dim % input.ndim else slice(n) for axis, n in enumerate(index.shape)]
    return mb.ops.gather_along(axis=dim)(input[tuple(cut)], index)


def take_along_dim(input, index, dim=None):
    if dim is None:
        return mb.ops.gather_along()(_line(input), index.ravel())
    return mb.ops.gather_along(axis=dim)(input, index)


def index_select(input, dim, index):
    if input.ndim == 0:
        return mb.ops.gather()(_line(input), index[0])
    return mb.ops.gather(axis=dim)(input, index)


def index_add(input, dim, index, source, alpha=1):
    source = mb.ops.multiply()(source, float(alpha))
    return _whole_slices(mb.ops.scatter_add, input, dim, index, source)


def index_copy(input, dim, index, source):
    return _whole_slices(mb.ops.scatter, input, dim, index, source)


def scatter_add(input, dim, index, src):
    return _single_entries(mb.ops.scatter_add, input, dim, index, src)


def scatter(input, dim, index, src):
    return _single_entries(
        mb.ops.scatter, input, dim, index, jnp.broadcast_to(src, index.shape) if np.ndim(src) == 0 else src
    )


def nn_functional_dropout(input, p=0.5, training=True):
    return _dropout(input, p, training, ())


def nn_functional_dropout2d(input, p=0.5, training=True):
    if input.ndim == 3:
        raise Skip("PyTorch warns: three axes mean dropout1d today, and will not for long")
    return _dropout(input, p, training, (-1, -2))


def nn_functional_dropout3d(input, p=0.5, training=True):
    return _dropout(input, p, training, (-1, -2, -3))


def _dropout(input, p, training, shared):
    if training and p == 1:
        raise Skip("nothing is kept: keep_probability 0 is refused")
    if training and p:
        raise Skip("PyTorch draws other random numbers")
    if input.ndim == 0:
        return mb.ops.reshape(shape=())(_dropout(_line(input), p, training, shared))
    return mb.ops.dropout(keep_probability=1.0, broadcast_axes=shared)(input, jax.random.key(0))


def _line(x):
    return mb.ops.reshape(shape=(-1,))(x)


def _whole_slices(rule, x, dim, index, updates):
    if x.ndim == 0:
        return mb.ops.reshape(shape=())(rule()(_line(x), index, _line(updates)))
    return rule(axis=dim)(x, index, updates)


def _single_entries(rule, x, dim, index, updates):
    """Each entry of updates goes to a place of its own: one line of places for all of x."""
    if x.ndim == 0:
        return mb.ops.reshape(shape=())(rule()(_line(x), index.ravel(), _line(updates)))
    places = list(np.indices(index.shape))
    places[dim] = index
    flat = np.ravel_multi_index(places, x.shape)
    cut = tuple(slice(n) for n in index.shape)
    return mb.ops.reshape(shape=x.shape)(rule()(_line(x), flat.ravel(), _line(updates[cut])))
