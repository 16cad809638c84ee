"""How much an exponential makes of a rounding: e^(s + δ) is e^s (1 + δ), and δ is as large as the last digit of s.

A softmax that is made again from its log-sum-exp, as in attention by blocks, is right and off by so much. Autodiff,
which never forms the log-sum-exp, is not. So what a right backward pass may be off by, relative to its largest
entry, is the last digit of the largest number that reaches an exponential by sums and differences.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from manual_backprop.testing.jaxprs import LOOPS, equations, evaluate
from manual_backprop.testing.leaves import is_inexact, largest, to_numpy

STEEP = ("exp", "exp2", "expm1", "sin", "cos", "logistic")
SUMS = ("add", "sub", "neg", "max", "min", "reduce_max", "reduce_min", "broadcast_in_dim", "reshape", "squeeze",
        "transpose", "select_n", "concatenate", "slice", "convert_element_type", "stop_gradient", "copy")  # fmt: skip


def largest_exponent(function: Callable, args: tuple) -> float:
    """The largest number that reaches an exponential by sums, 0 where there is none; of one in a loop, the outputs."""
    flat, tree = jax.tree.flatten(args)
    closed = jax.make_jaxpr(lambda *leaves: function(*tree.unflatten(leaves)))(*flat)
    reach: dict = {}
    found = [0.0]

    def of(path, atom, value) -> float:
        known = reach.get((path[:-1], id(atom)))
        return _size(value) if known is None else known

    def redo(path, equation, operands, results):
        name = equation.primitive.name
        sizes = [of(path, atom, value) for atom, value in zip(equation.invars, operands, strict=True)]
        if name in STEEP:
            found.append(sizes[0])
        size = max(sizes, default=0.0) if name in SUMS else max(map(_size, results), default=0.0)
        reach.update({(path[:-1], id(out)): size for out in equation.outvars})
        return results

    y = evaluate(closed, flat, redo=redo)
    names = {equation.primitive.name for equation in equations(closed)}
    if names & set(LOOPS) and names & set(STEEP):
        found += [_size(leaf) for leaf in (*flat, *y)]
    return max(found)


def _size(value) -> float:
    if isinstance(value, jax.core.Tracer) or not is_inexact(jnp.asarray(value)):
        return 0.0
    value = to_numpy(value)
    return largest([np.where(np.isfinite(value), value, 0)])
