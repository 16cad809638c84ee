"""Mutants: a backward pass with one edit in its equations, of the kinds of mistake that people make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from manual_backprop.testing.jaxprs import CALLS, Place, evaluate, is_float, said
from manual_backprop.testing.leaves import as_cotangent, draw, is_inexact
from manual_backprop.testing.pair import Pair

POINTWISE = ("exp", "log", "tanh", "logistic", "sqrt", "rsqrt", "sin", "cos", "integer_pow", "square", "erf")
CONSTANTS = (1e-1, 1e-2, 1e-3, 1e-4)  # by how much a constant is changed


class Mutation(NamedTuple):
    """One edit: kind, where in the equations of the backward pass (path, operand), with what number; and its source."""

    kind: str
    path: tuple[int, ...]
    operand: int = 0
    amount: float = 0.0
    primitive: str = ""
    text: str = ""

    def __str__(self) -> str:
        amount = f" by {self.amount:g}" if self.amount else ""
        return f"{self.kind}{amount}, operand {self.operand + 1} of {self.primitive} in {self.text}"


def mutations(pair: Pair, args) -> Iterator[Mutation]:
    """Every edit that fits the equations of the backward pass for these arguments."""
    y, residuals = pair.forward(*args)
    rng = np.random.default_rng(0)
    dy = as_cotangent(y, jax.tree.map(lambda leaf: draw(rng, jnp.asarray(leaf)), y))
    closed, leaves, _ = _program(pair.backward, residuals, dy)
    found = []

    def note(place, equation, value):
        found.extend(_of_operand(closed, place, equation, value))
        return value

    evaluate(closed, leaves, note)
    found.append(Mutation("ignore the cotangent", (), primitive="the inputs", text="dy"))
    outputs = [atom.aval for atom in closed.jaxpr.outvars]
    for i, a in enumerate(outputs):
        if jnp.issubdtype(a.dtype, jnp.inexact):
            found.append(Mutation("flip the sign of an output", (), i, primitive="the outputs", text=f"output {i}"))
        for j, b in enumerate(outputs[:i]):
            if a.shape == b.shape and a.dtype == b.dtype:
                found.append(Mutation("swap outputs", (), i, float(j), "the outputs", f"outputs {j} and {i}"))
        if len(a.shape) >= 2 and a.shape[-1] == a.shape[-2] > 1:
            found.append(Mutation("transpose an output", (), i, primitive="the outputs", text=f"output {i}"))
    yield from dict.fromkeys(found)


def _is_array(leaf) -> bool:
    return hasattr(leaf, "dtype")


def _of_operand(closed, place: Place, equation, value) -> Iterator[Mutation]:
    """The edits that fit one operand, or its equation."""
    name, text, atom = equation.primitive.name, said(equation, closed), equation.invars[place.operand]
    make = lambda kind, amount=0.0: Mutation(kind, place.path, place.operand, amount, name, text)
    if not is_float(atom) or name in (*CALLS, "scan", "cond", "while"):
        return
    literal = isinstance(atom, core.Literal)
    if literal and np.ndim(value) == 0 and np.isfinite(value) and value != 0:
        for amount in CONSTANTS:
            yield make("change a constant", amount)
        if name in ("mul", "div") and value != 1:  # the count of a mean, say: without it, it is a sum
            yield make("replace an operand by one")
        return
    if name in ("add", "sub", "add_any"):
        yield make("drop a term")
        if place.operand == 1:
            yield make("flip a sign")
    elif name in ("mul", "div"):
        yield make("replace an operand by one")
    elif name == "neg":
        yield make("flip a sign")
    elif name == "reduce_sum":
        yield make("take the mean for the sum")
    elif name == "select_n" and place.operand > 0:
        yield make("drop a mask")
    elif (
        name in ("dot_general", "transpose") and np.ndim(value) >= 2 and np.shape(value)[-1] == np.shape(value)[-2] > 1
    ):
        yield make("transpose an operand")
    elif name in ("slice", "dynamic_slice", "gather") and place.operand == 0 and np.ndim(value):
        yield make("shift a slice")
    elif name in ("scatter-add", "scatter_add") and place.operand == 2:
        yield make("set for add in a scatter")
    elif name in ("cumsum", "rev", "cumlogsumexp", "cummax"):
        yield make("turn the order round")
    elif name in POINTWISE:
        yield make("flip a sign")


def mutated(backward: Callable, mutation: Mutation) -> Callable:
    """backward with one edit in its equations, whatever the shapes."""

    def run(residuals, dy):
        if mutation.primitive == "the inputs":
            dy = jax.tree.map(lambda d: jnp.ones_like(d) if is_inexact(d) else d, dy)
        closed, leaves, tree = _program(backward, residuals, dy)

        def edit(place, equation, value):
            hit = place == (mutation.path, mutation.operand) and equation.primitive.name == mutation.primitive
            return _edited(mutation, value) if hit and mutation.kind not in RESULTS else value

        def redo(path, equation, operands, results):
            hit = path == mutation.path and equation.primitive.name == mutation.primitive
            return RESULTS[mutation.kind](mutation, equation, operands) if hit and mutation.kind in RESULTS else results

        flat = evaluate(closed, leaves, edit, redo)
        if mutation.primitive == "the outputs":
            flat = _of_outputs(mutation, flat)
        return jax.tree.unflatten(tree, flat)

    return run


def _edited(mutation: Mutation, value):
    match mutation.kind:
        case "change a constant":
            return value * jnp.asarray(1 + mutation.amount, jnp.result_type(value))
        case "drop a term":
            return jnp.zeros_like(value)
        case "flip a sign":
            return -value
        case "replace an operand by one":
            return jnp.ones_like(value)
        case "transpose an operand":
            return jnp.swapaxes(value, -1, -2)
        case "shift a slice":
            return jnp.roll(value, 1, int(np.argmax(np.shape(value))))
    return value


def _mean(mutation: Mutation, equation, operands):
    total = equation.primitive.bind(*operands, **equation.params)
    return [total / jnp.asarray(max(1, operands[0].size // max(1, total.size)), total.dtype)]


def _one_side(mutation: Mutation, equation, operands):
    """What is selected there, everywhere."""
    return [operands[mutation.operand]]


def _set(mutation: Mutation, equation, operands):
    operand, indices, updates = operands
    params = equation.params
    return [
        jax.lax.scatter(
            operand, indices, updates, params["dimension_numbers"],
            indices_are_sorted=params["indices_are_sorted"], unique_indices=False, mode=params["mode"],
        )
    ]  # fmt: skip


def _turned(mutation: Mutation, equation, operands):
    if equation.primitive.name == "rev":
        return [operands[0]]
    return [equation.primitive.bind(operands[0], **equation.params | {"reverse": not equation.params["reverse"]})]


RESULTS = {
    "take the mean for the sum": _mean,
    "drop a mask": _one_side,
    "set for add in a scatter": _set,
    "turn the order round": _turned,
}


def _of_outputs(mutation: Mutation, flat: list) -> list:
    flat, i = list(flat), mutation.operand
    match mutation.kind:
        case "flip the sign of an output":
            flat[i] = -flat[i]
        case "transpose an output":
            flat[i] = jnp.swapaxes(flat[i], -1, -2)
        case "swap outputs":
            j = int(mutation.amount)
            flat[i], flat[j] = flat[j], flat[i]
    return flat


def _program(backward: Callable, residuals, dy):
    """(equations, flat arrays, the structure of the outputs) of a backward pass; what is no array stays as it is."""
    flat, tree = jax.tree.flatten((residuals, dy))
    places = [i for i, leaf in enumerate(flat) if _is_array(leaf) and leaf.dtype != jax.dtypes.float0]

    def of_arrays(*arrays):
        leaves = list(flat)
        for i, array in zip(places, arrays, strict=True):
            leaves[i] = array
        return backward(*tree.unflatten(leaves))

    arrays = [flat[i] for i in places]
    closed, shape = jax.make_jaxpr(of_arrays, return_shape=True)(*arrays)
    return closed, arrays, jax.tree.structure(shape)
