"""PyTorch's functions of this family, in our ops."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import manual_backprop as mb
from torch_samples import Skip


def nn_functional_linear(input, weight, bias=None):
    vector = weight.ndim == 1  # one output, without an axis
    w = weight[:, None] if vector else weight.T
    y = mb.ops.dense(bias=False)(input, w) if bias is None else mb.ops.dense()(input, w, bias)
    return y[..., 0] if vector else y


def nn_functional_bilinear(input1, input2, weight, bias=None):
    if bias is None:
        return mb.ops.bilinear(bias=False)(input1, input2, weight)
    return mb.ops.bilinear()(input1, input2, weight, bias)


def einsum(operands, subscripts):
    if len(operands) != 2:
        raise Skip(f"{len(operands)} operand: the op takes two")
    return mb.ops.einsum(subscripts=subscripts)(*operands)


def mm(input, mat2):
    return mb.ops.einsum(subscripts="ij,jk->ik")(input, mat2)


def bmm(input, mat2):
    if not isinstance(input, jax.core.Tracer):
        raise Skip("these samples ask for no gradient")
    return mb.ops.einsum(subscripts="bij,bjk->bik")(input, mat2)


def mv(input, vec):
    return mb.ops.einsum(subscripts="ij,j->i")(input, vec)


def matmul(input, other):
    rows, columns = "i" * (input.ndim > 1), "k" * (other.ndim > 1)
    batch = tuple("..." * (x.ndim > 2) for x in (input, other))
    result = max(batch) + rows + columns
    return mb.ops.einsum(subscripts=f"{batch[0]}{rows}j,{batch[1]}j{columns}->{result}")(input, other)


def addmm(input, mat1, mat2, alpha=1, beta=1):
    return _scaled(input, beta) + alpha * mm(mat1, mat2)


def baddbmm(input, batch1, batch2, alpha=1, beta=1):
    return _scaled(input, beta) + alpha * bmm(batch1, batch2)


def addmv(input, mat, vec, alpha=1, beta=1):
    return _scaled(input, beta) + alpha * mv(mat, vec)


def addbmm(input, batch1, batch2, alpha=1, beta=1):
    return _scaled(input, beta) + alpha * mb.ops.einsum(subscripts="bij,bjk->ik")(batch1, batch2)


def addr(input, vec1, vec2, alpha=1, beta=1):
    return _scaled(input, beta) + alpha * outer(vec1, vec2)


def outer(input, vec2):
    return mb.ops.einsum(subscripts="i,j->ij")(input, vec2)


def dot(input, other):
    return mb.ops.einsum(subscripts="i,i->")(input, other)


def inner(input, other):
    if 0 in (jnp.ndim(input), jnp.ndim(other)):
        return mb.ops.einsum(subscripts="...,...")(input, other)
    return mb.ops.einsum(subscripts="i,i->")(input, other)


def nn_functional_embedding(input, indices, padding_idx=None):
    return mb.ops.embedding(padding_id=padding_idx)(indices, input)


def nn_functional_conv1d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return _conv(input, weight, bias, stride, padding, dilation, groups)


def nn_functional_conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return _conv(input, weight, bias, stride, padding, dilation, groups)


def nn_functional_conv3d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return _conv(input, weight, bias, stride, padding, dilation, groups)


def nn_functional_conv_transpose1d(
    input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
):
    return _conv_transpose(input, weight, bias, stride, padding, output_padding, groups, dilation)


def nn_functional_conv_transpose2d(
    input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
):
    return _conv_transpose(input, weight, bias, stride, padding, output_padding, groups, dilation)


def nn_functional_conv_transpose3d(
    input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1
):
    return _conv_transpose(input, weight, bias, stride, padding, output_padding, groups, dilation)


def _conv(input, weight, bias, stride, padding, dilation, groups):
    axes = weight.ndim - 2
    stride, dilation = _each(stride, axes), _each(dilation, axes)
    padding = padding.upper() if isinstance(padding, str) else _each(padding, axes)
    op = mb.ops.conv(strides=stride, padding=padding, kernel_dilation=dilation, groups=groups, bias=bias is not None)
    return _channels_first(op, input, weight, bias)


def _conv_transpose(input, weight, bias, stride, padding, output_padding, groups, dilation):
    """PyTorch's is the dx of a convolution, so its kernel is that of one."""
    axes = weight.ndim - 2
    stride, dilation = _each(stride, axes), _each(dilation, axes)
    pairs = []
    for k, d, p, more in zip(
        weight.shape[2:], dilation, _each(padding, axes), _each(output_padding, axes), strict=True
    ):
        pairs.append(((k - 1) * d - p, (k - 1) * d - p + more))
    op = mb.ops.conv_transpose(
        strides=stride,
        padding=tuple(pairs),
        kernel_dilation=dilation,
        groups=groups,
        transpose_kernel=True,
        bias=bias is not None,
    )
    return _channels_first(op, input, weight, bias)


def _channels_first(op, input, weight, bias):
    """[..., channels, *spatial] and a kernel [a, b, *kernel], for an op on [..., *spatial, channels], [*kernel, b, a]."""
    axes = weight.ndim - 2
    x = jnp.moveaxis(input, -axes - 1, -1)
    w = jnp.transpose(weight, (*range(2, weight.ndim), 1, 0))
    y = op(x, w) if bias is None else op(x, w, bias)
    return jnp.moveaxis(y, -1, -axes - 1)


def _scaled(x, beta):
    """beta x; with beta = 0 nothing, though x be NaN."""
    return beta * jnp.asarray(x) if beta else jnp.zeros_like(x)


def _each(value, axes: int) -> tuple[int, ...]:
    """PyTorch takes one number, in a tuple or not, for every axis."""
    value = tuple(value) if isinstance(value, list | tuple) else (value,)
    return value * axes if len(value) == 1 else value
