"""What a program costs at least: its matrix products, counted in its equations, loops as often as they run.

What nobody asks for does not count: the compiler leaves it out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend import core

from manual_backprop.testing.jaxprs import INNER, scan_counts

PRODUCTS = ("dot_general", "conv_general_dilated")


class Products(NamedTuple):
    """flops: multiplications and additions.  bytes: operands read and results written, once a product."""

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other):
        return Products(self.flops + other.flops, self.bytes + other.bytes)

    def times(self, n: int) -> Products:
        return Products(n * self.flops, n * self.bytes)


def products(function: Callable, *args: Any) -> Products:
    """Of one call; args are arrays, or shapes and dtypes."""
    closed = jax.make_jaxpr(function)(*args)
    return _of(closed.jaxpr, [True] * len(closed.jaxpr.outvars))


def _of(jaxpr: core.Jaxpr, wanted: list[bool]) -> Products:
    live = {id(atom) for atom, want in zip(jaxpr.outvars, wanted, strict=True) if want}
    total = Products()
    for equation in reversed(jaxpr.eqns):
        asked = [id(out) in live for out in equation.outvars]
        if not any(asked):
            continue
        live |= {id(atom) for atom in equation.invars}
        total += _of_equation(equation, asked)
    return total


def _of_equation(equation, asked: list[bool]) -> Products:
    name, params = equation.primitive.name, equation.params
    if name in PRODUCTS:
        return _product(equation)
    if name == "scan":
        _, carried = scan_counts(params)
        body = _of(params["jaxpr"].jaxpr, [True] * carried + asked[carried:])
        return body.times(params["length"])
    if name == "cond":
        return max((_of(branch.jaxpr, asked) for branch in params["branches"]), key=lambda cost: cost.flops)
    inner = next((params[key] for key in INNER if key in params), None)
    if inner is None:
        return Products()
    inner = getattr(inner, "jaxpr", inner)
    return _of(inner, asked if len(inner.outvars) == len(asked) else [True] * len(inner.outvars))


def _product(equation) -> Products:
    a, b = (atom.aval for atom in equation.invars[:2])
    out = equation.outvars[0].aval
    if equation.primitive.name == "dot_general":
        (axes, _), _ = equation.params["dimension_numbers"]
        summed = math.prod(a.shape[axis] for axis in axes)
    else:
        summed = math.prod(b.shape) // b.shape[equation.params["dimension_numbers"].rhs_spec[0]]
    moved = sum(math.prod(x.shape) * x.dtype.itemsize for x in (a, b, out))
    return Products(2.0 * math.prod(out.shape) * summed, moved)
