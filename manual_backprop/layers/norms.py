"""Normalising layers, and one that only scales. Scales start at one, biases at zero, both in x's dtype."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from manual_backprop import ops
from manual_backprop.contract import Op, Stateless
from manual_backprop.errors import InputError, want_count
from manual_backprop.layers.base import Initializer, OpLayer, ones, vectors, zeros
from manual_backprop.ops.arrays import wide_dtype
from manual_backprop.ops.shape.arithmetic import Factors
from manual_backprop.options import want_type


def scale_and_bias(layer, key, x, axes: int = 1) -> dict:
    """The parameters that the layer's fields `scale` and `bias` ask for, shaped like the last axes of x."""
    who = type(layer).__name__
    shape, dtype = vectors(who, x)
    axes = want_count(f"{who}: trailing_axes", axes)
    starts = {"scale": ones, "bias": zeros}
    return {name: start(key, shape[-axes:], dtype) for name, start in starts.items() if getattr(layer, name, False)}


@dataclass(frozen=True, repr=False)
class LayerNorm(OpLayer):
    """Layer normalisation over the last axes of x [..., *d], with scale and bias [*d]. The op: `ops.layer_norm`."""

    eps: float = 1e-5
    trailing_axes: int = 1
    scale: bool = True
    bias: bool = True

    @property
    def op(self) -> Op:
        return ops.layer_norm(eps=self.eps, trailing_axes=self.trailing_axes, scale=self.scale, bias=self.bias)

    def parameters(self, key, x):
        return scale_and_bias(self, key, x, self.trailing_axes)


@dataclass(frozen=True, repr=False)
class RMSNorm(OpLayer):
    """Root mean square normalisation over the last axes of x [..., *d], with scale [*d]. The op: `ops.rms_norm`."""

    eps: float = 1e-6
    trailing_axes: int = 1
    scale: bool = True

    @property
    def op(self) -> Op:
        return ops.rms_norm(eps=self.eps, trailing_axes=self.trailing_axes, scale=self.scale)

    def parameters(self, key, x):
        return scale_and_bias(self, key, x, self.trailing_axes)


@dataclass(frozen=True, repr=False)
class GroupNorm(OpLayer):
    """Group normalisation of x [batch, *positions, channels], scale and bias [channels]: `ops.group_norm`."""

    groups: int = 32
    eps: float = 1e-5
    scale: bool = True
    bias: bool = True

    @property
    def op(self) -> Op:
        return ops.group_norm(groups=self.groups, eps=self.eps, scale=self.scale, bias=self.bias)

    def parameters(self, key, x):
        return scale_and_bias(self, key, x)


@dataclass(frozen=True, repr=False)
class InstanceNorm(OpLayer):
    """Instance normalisation of x [batch, *positions, channels], scale and bias [channels]: `ops.instance_norm`."""

    eps: float = 1e-5
    scale: bool = True
    bias: bool = True

    @property
    def op(self) -> Op:
        return ops.instance_norm(eps=self.eps, scale=self.scale, bias=self.bias)

    def parameters(self, key, x):
        return scale_and_bias(self, key, x)


@dataclass(frozen=True, repr=False)
class BatchNorm(OpLayer):
    """Batch normalisation of x [..., channels], with scale and bias [channels].

    Training takes the statistics of the batch, `ops.batch_norm`, and moves the running ones, the state, towards them:
    new = momentum · old + (1 - momentum) · batch. Inference takes those, `ops.batch_norm_inference`. Both variances are
    sums over n values divided by n, as in flax. The state is in at least float32, and has no gradient.
    """

    eps: float = 1e-5
    momentum: float = 0.99
    scale: bool = True
    bias: bool = True

    def __post_init__(self):
        super().__post_init__()
        want_type("BatchNorm: momentum", self.momentum, float)
        if not 0 <= self.momentum <= 1:
            raise InputError(f"BatchNorm: momentum is {self.momentum!r}; wants a number in 0 … 1")

    @property
    def op(self) -> Op:
        return ops.batch_norm(eps=self.eps, scale=self.scale, bias=self.bias)

    def parameters(self, key, x):
        return scale_and_bias(self, key, x)

    def init(self, key, x):
        params = self.parameters(key, x)
        shape, dtype = x.shape[-1:], wide_dtype(x.dtype)
        return params, {"mean": jnp.zeros(shape, dtype), "variance": jnp.ones(shape, dtype)}

    def apply(self, params, state, x):
        op = ops.batch_norm_inference(eps=self.eps, scale=self.scale, bias=self.bias)
        return op(x, *((params | state)[name] for name in op.arguments[1:]))

    def forward(self, params, state, x, key=None):
        y, residuals = self.run(params, x)
        momentum = self.momentum if x.size else 1  # an empty batch has no statistics
        new = {
            name: (momentum * old + (1 - momentum) * getattr(residuals, name)).astype(old.dtype)
            for name, old in state.items()
        }
        return y, new, residuals


@dataclass(frozen=True, repr=False)
class LayerScale(Stateless):
    """y = scale · x: x [..., channels], scale [channels]: how much of a branch is added. The op: `ops.multiply`.

    A small scale at the start lets deep networks begin as the identity.  (Touvron 2021, arXiv:2103.17239.)
    """

    scale_init: Initializer = ones

    def parameters(self, key, x):
        shape, dtype = vectors("LayerScale", x)
        return {"scale": self.scale_init(key, shape[-1:], dtype)}

    def run(self, params, x):
        y, _ = ops.multiply().forward(x, params["scale"])
        return y, x

    def backward(self, params, x, dy):
        dx, dscale = ops.multiply().backward(Factors((x, params["scale"])), dy)
        return {"scale": dscale}, dx
