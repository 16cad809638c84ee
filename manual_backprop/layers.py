"""Layers: an op, the names of its parameters, and how they start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from manual_backprop import ops
from manual_backprop.contract import InputError, Op, Stateless, want_count
from manual_backprop.ops.arrays import want_float

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
        y, residuals = self.op.forward(*self._arguments(params, x), **params)
        return y, _with(residuals, dict.fromkeys(params))

    def apply(self, params, state, x):
        """Through `jax.custom_vjp`, so that jax.grad of a model's `apply` gives our gradients."""
        arguments = self._arguments(params, x)
        return self.op(*arguments, *(params[name] for name in self.op.arguments if name in params))

    def _arguments(self, params, x) -> tuple:
        """x as the op's arguments but the parameters."""
        arguments = x if isinstance(x, tuple) else (x,)
        names = [name for name in self.op.arguments if name not in params]
        if len(arguments) != len(names):
            got = f"a tuple of {len(x)}" if isinstance(x, tuple) else "one array"
            raise InputError(f"{self.op.name}: got {got}; wants {', '.join(names)}")
        return arguments

    def backward(self, params, residuals, dy):
        cotangents = dict(zip(self.op.arguments, self.op.backward(_with(residuals, params), dy), strict=True))
        dparams = {name: cotangents.pop(name) for name in params}
        dx = tuple(cotangents.values())
        return dparams, dx if len(dx) > 1 else dx[0]


def _with(residuals, params):
    """The residuals with the fields that bear a parameter's name replaced."""
    kept = {name: value for name, value in params.items() if name in getattr(residuals, "_fields", ())}
    return residuals._replace(**kept) if kept else residuals


@dataclass(frozen=True, repr=False)
class Apply(OpLayer):
    """An op without parameters as a layer: an activation, or a cost: `Apply(ops.sigmoid())`."""

    op: Op

    def __post_init__(self):
        if not isinstance(self.op, Op):
            hint = f"call it: {self.op.__name__}()" if getattr(self.op, "makes_op", False) else "such as ops.sigmoid()"
            raise InputError(f"Apply: got {getattr(self.op, '__name__', repr(self.op))}; wants an op: {hint}")


@dataclass(frozen=True, repr=False)
class Dense(OpLayer):
    """z = x w + b: x [..., in] → [..., features]; w [in, features], b [features] in x's dtype. The op: `ops.dense`."""

    features: int
    bias: bool = True
    w_init: Initializer = lecun_normal
    b_init: Initializer = zeros

    def __post_init__(self):
        object.__setattr__(self, "features", want_count("Dense: features", self.features))

    @property
    def op(self) -> Op:
        return ops.dense(bias=self.bias)

    def parameters(self, key, x):
        shape, dtype = _vectors("Dense", x)
        w_key, b_key = jax.random.split(key)
        params = {"w": self.w_init(w_key, (shape[-1], self.features), dtype)}
        return params | {"b": self.b_init(b_key, (self.features,), dtype)} if self.bias else params


@dataclass(frozen=True, repr=False)
class LayerNorm(OpLayer):
    """Layer normalisation over the last axis of x [..., d], with scale [d] and bias [d]. The op: `ops.layer_norm`."""

    eps: float = 1e-5

    @property
    def op(self) -> Op:
        return ops.layer_norm(eps=self.eps)

    def parameters(self, key, x):
        shape, dtype = _vectors("LayerNorm", x)
        return {"scale": ones(key, shape[-1:], dtype), "bias": zeros(key, shape[-1:], dtype)}


def _vectors(who: str, x) -> tuple[tuple[int, ...], jnp.dtype]:
    """The shape and dtype of x, one array of at least one axis and of floating point."""
    if isinstance(x, tuple | list | dict):
        raise InputError(f"{who}: x is a {type(x).__name__} of {len(x)}; wants one array [..., features]")
    want_float(who, x=x)
    if len(x.shape) == 0:
        raise InputError(f"{who}: x has shape {x.shape}; wants [..., features]")
    return x.shape, jnp.result_type(x)
