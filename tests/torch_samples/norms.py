"""PyTorch's normalisations: channels come second, and are moved last."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

import manual_backprop as mb
from torch_samples import Skip


def nn_functional_layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    op = mb.ops.layer_norm(
        eps=_eps(eps), trailing_axes=len(normalized_shape), scale=weight is not None, bias=bias is not None
    )
    return op(input, *_given(weight, bias))


def nn_functional_rms_norm(input, normalized_shape, weight=None, eps=None):
    eps = float(np.finfo(input.dtype).eps) if eps is None else _eps(eps)
    op = mb.ops.rms_norm(eps=eps, trailing_axes=len(normalized_shape), scale=weight is not None)
    return op(input, *_given(weight))


def nn_functional_group_norm(input, num_groups, weight=None, bias=None, eps=1e-5):
    op = mb.ops.group_norm(groups=num_groups, eps=_eps(eps), scale=weight is not None, bias=bias is not None)
    return _channels_last(op, input, *_given(weight, bias))


def nn_functional_instance_norm(
    input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, eps=1e-5
):
    """The running statistics only collect; y is by those of the input."""
    if not use_input_stats:
        raise Skip("instance norm by given statistics is batch_norm_inference")
    op = mb.ops.instance_norm(eps=_eps(eps), scale=weight is not None, bias=bias is not None)
    return _channels_last(op, input, *_given(weight, bias))


def nn_functional_batch_norm(
    input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
):
    """The running statistics have no gradient here, in ours they have."""
    if input.ndim < 2:
        raise Skip("an input without an axis of channels")
    make = mb.ops.batch_norm if training else mb.ops.batch_norm_inference
    op = make(eps=_eps(eps), scale=weight is not None, bias=bias is not None)
    return _channels_last(op, input, *_given(weight, bias), *(() if training else (running_mean, running_var)))


def nn_functional_normalize(input, p=2.0, dim=1, eps=1e-12):
    if p != 2:
        raise Skip(f"a length of p = {p}: l2_norm is of p = 2")
    return mb.ops.l2_norm(axis=dim, eps=eps)(input)


def _eps(eps):
    if eps < 0:
        raise Skip("a negative eps: the root of a negative number for small variances; refused")
    return eps


def _given(*arguments):
    return tuple(argument for argument in arguments if argument is not None)


def _channels_last(op, x, *arguments):
    return jnp.moveaxis(op(jnp.moveaxis(x, 1, -1), *arguments), -1, 1)
