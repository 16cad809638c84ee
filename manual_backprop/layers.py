"""Layers: an op, the names of its parameters, and how they start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from manual_backprop import ops
from manual_backprop.contract import InputError, Op, Stateless

# An initialiser is a function (key, shape, dtype) -> array, made once: a layer compares it by identity.
Initializer = Callable[[jax.Array, tuple[int, ...], jnp.dtype], jax.Array]
lecun_normal = jax.nn.initializers.lecun_normal()
zeros = jax.nn.initializers.zeros
ones = jax.nn.initializers.ones


@dataclass(frozen=True, repr=False)
class Identity(Stateless):
    """y = x: a path that changes nothing, so dx = dy."""

    def run(self, params, x):
        return x, ()

    def backward(self, params, residuals, dy):
        return {}, dy


class OpLayer(Stateless):
    """y = op(x, **params): the base of every layer that is one op.

    A subclass gives `op` and `parameters(key, x)`, a dict whose names are the op's own. A tuple x is the op's several
    arguments. The parameters that the op saves are taken out of the residuals, and put back from `params` in the
    backward pass.
    """

    op: Op

    def run(self, params, x):
        y, residuals = self.op.forward(*_arguments(x), **params)
        return y, _with(residuals, dict.fromkeys(params))

    def apply(self, params, state, x):
        """Through `jax.custom_vjp`, so that jax.grad of a model's `apply` gives our gradients."""
        return self.op(*_arguments(x), *(params[name] for name in self.op.arguments if name in params))

    def backward(self, params, residuals, dy):
        cotangents = dict(zip(self.op.arguments, self.op.backward(_with(residuals, params), dy), strict=True))
        dparams = {name: cotangents.pop(name) for name in params}
        dx = tuple(cotangents.values())
        return dparams, dx if len(dx) > 1 else dx[0]


def _arguments(x) -> tuple:
    return x if isinstance(x, tuple) else (x,)


def _with(residuals, params):
    """The residuals with the fields that bear a parameter's name replaced."""
    return residuals._replace(**{name: value for name, value in params.items() if name in residuals._fields})


@dataclass(frozen=True, repr=False)
class Apply(OpLayer):
    """An op without parameters as a layer: an activation, or a cost: `Apply(ops.sigmoid())`."""

    op: Op


@dataclass(frozen=True, repr=False)
class Dense(OpLayer):
    """z = x w + b: x [..., in] → [..., features]; w [in, features], b [features] in x's dtype. The op: `ops.dense`."""

    features: int
    bias: bool = True
    w_init: Initializer = lecun_normal
    b_init: Initializer = zeros

    def __post_init__(self):
        if self.features < 1:
            raise InputError(f"Dense: features is {self.features}; wants at least 1")

    @property
    def op(self) -> Op:
        return ops.dense(bias=self.bias)

    def parameters(self, key, x):
        if len(x.shape) == 0:
            raise InputError(f"Dense: x has shape {x.shape}; wants [..., features]")
        w_key, b_key = jax.random.split(key)
        params = {"w": self.w_init(w_key, (x.shape[-1], self.features), x.dtype)}
        return params | {"b": self.b_init(b_key, (self.features,), x.dtype)} if self.bias else params


@dataclass(frozen=True, repr=False)
class LayerNorm(OpLayer):
    """Layer normalisation over the last axis of x [..., d], with scale [d] and bias [d]. The op: `ops.layer_norm`."""

    eps: float = 1e-5

    @property
    def op(self) -> Op:
        return ops.layer_norm(eps=self.eps)

    def parameters(self, key, x):
        return {"scale": ones(key, x.shape[-1:], x.dtype), "bias": zeros(key, x.shape[-1:], x.dtype)}
