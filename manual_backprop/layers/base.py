"""What every layer is made of: an op, the names of its parameters, and how they start."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from manual_backprop.contract import Op, Stateless
from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import want_float
from manual_backprop.options import plain

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

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        _ = self.op  # a wrong option is told here

    def run(self, params, x):
        y, residuals = self.op.forward(*self._in_order(params, x))
        return y, _with(residuals, dict.fromkeys(params))

    def apply(self, params, state, x):
        """Through `jax.custom_vjp`, so that jax.grad of a model's `apply` gives our gradients."""
        return self.op(*self._in_order(params, x))

    def _in_order(self, params, x) -> tuple:
        """The op's arguments: the parameters at the places of their names, x's at the others."""
        others = iter(self._arguments(params, x))
        if not params:
            return tuple(others)
        return (*(params[name] if name in params else next(others) for name in self.op.arguments), *others)

    def _arguments(self, params, x) -> tuple:
        """x as the op's arguments but the parameters."""
        arguments = x if isinstance(x, tuple) else (x,)
        names = [name for name in self.op.arguments if name not in params]
        fits = isinstance(x, tuple) if self._variadic else len(arguments) == len(names)
        if not fits:
            got = f"a tuple of {len(x)}" if isinstance(x, tuple) else "one array"
            raise InputError(f"{self.op.name}: got {got}; wants {', '.join(names)}")
        return arguments

    def backward(self, params, residuals, dy):
        cotangents = self.op.backward(_with(residuals, params), dy)
        names = dict(enumerate(self.op.arguments))
        dparams = {names[i]: d for i, d in enumerate(cotangents) if names.get(i) in params}
        dx = tuple(d for i, d in enumerate(cotangents) if names.get(i) not in params)
        return dparams, dx if len(dx) > 1 or self._variadic else dx[0]

    @property
    def _variadic(self) -> bool:
        """Whether the op takes any number of arguments: x is a tuple then."""
        return self.op.arguments[-1].startswith("*")


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


def vectors(who: str, x) -> tuple[tuple[int, ...], jnp.dtype]:
    """The shape and dtype of x, one array of at least one axis and of floating point."""
    if isinstance(x, tuple | list | dict):
        raise InputError(f"{who}: x is a {type(x).__name__} of {len(x)}; wants one array [..., features]")
    want_float(who, x=x)
    if len(x.shape) == 0:
        raise InputError(f"{who}: x has shape {x.shape}; wants [..., features]")
    return x.shape, jnp.result_type(x)
