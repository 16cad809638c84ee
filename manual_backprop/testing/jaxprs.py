"""Programs as data: walks a function's equations, one at a time, with a say on every operand.

`jax.make_jaxpr` writes a function as equations; `evaluate` carries them out again, calls inlined, loops and branches
rebuilt, so that every equation of the user's function is met, and lets `edit` change what an operand is.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # where a call keeps what it calls
CALLS = ("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint", "custom_jvp_call",
         "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_lin", "name")  # fmt: skip


LOOPS = ("scan", "while", "cond")


class Place(NamedTuple):
    """An operand of an equation: `path` leads through calls and loops to the equation, `operand` counts from 0."""

    path: tuple[int, ...]
    operand: int


Edit = Callable[[Place, Any, Any], Any]  # (place, equation, value) -> the value to take in its stead
Redo = Callable[[tuple[int, ...], Any, list, list], list]  # (path, equation, operands, results) -> other results


class Say(NamedTuple):
    """What `evaluate` asks on its way: of each operand, and of the results of each equation that is no call or loop."""

    edit: Edit = lambda place, equation, value: value
    redo: Redo = lambda path, equation, operands, results: results


def evaluate(closed: core.ClosedJaxpr, args: list, edit: Edit | None = None, redo: Redo | None = None) -> list:
    """The outputs of a jaxpr for flat args; custom derivative rules are left behind, what they compute is not."""
    say = Say(edit or Say().edit, redo or Say().redo)
    return _evaluate(closed.jaxpr, closed.consts, args, say, ())


def _evaluate(jaxpr: core.Jaxpr, consts, args, say: Say, path: tuple[int, ...]) -> list:
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(atom):
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for i, equation in enumerate(jaxpr.eqns):
        here = (*path, i)
        operands = [say.edit(Place(here, n), equation, read(atom)) for n, atom in enumerate(equation.invars)]
        results = _carry_out(equation, operands, say, here)
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _carry_out(equation, operands: list, say: Say, path: tuple[int, ...]) -> list:
    name, params = equation.primitive.name, equation.params
    if name in CALLS:
        inner = next((params[key] for key in INNER if key in params), None)
        if inner is not None:
            return _evaluate(*_opened(inner), operands, say, path)
    if name == "scan":
        return _scan(params, operands, say, path)
    if name == "cond":
        branches = [
            lambda *operands, n=n, branch=branch: _evaluate(*_opened(branch), operands, say, (*path, n))
            for n, branch in enumerate(params["branches"])
        ]
        return jax.lax.switch(operands[0], branches, *operands[1:])
    with equation.ctx.manager:
        results = equation.primitive.bind(*operands, **equation.primitive.get_bind_params(params))
    results = list(results) if equation.primitive.multiple_results else [results]
    return say.redo(path, equation, operands, results)


def _scan(params, operands, say: Say, path) -> list:
    n, carried = scan_counts(params)
    m = n + carried
    consts, carry, xs = operands[:n], operands[n:m], operands[m:]
    inner = _opened(params["jaxpr"])

    def step(carry, x):
        results = _evaluate(*inner, [*consts, *carry, *x], say, path)
        return results[: m - n], results[m - n :]

    length, reverse, unroll = params["length"], params["reverse"], params["unroll"]
    carry, ys = jax.lax.scan(step, carry, xs, length=length, reverse=reverse, unroll=unroll)
    return [*carry, *ys]


def scan_counts(params) -> tuple[int, int]:
    """How many constants a scan has, and how many values it carries."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # jax 0.12
    return len(consts), len(carry)


def _opened(jaxpr) -> tuple:
    return (jaxpr.jaxpr, jaxpr.consts) if isinstance(jaxpr, core.ClosedJaxpr) else (jaxpr, ())


def equations(closed) -> Iterator:
    """Every equation, those inside calls, loops and branches too."""
    for equation in _opened(closed)[0].eqns:
        yield equation
        yield from equations_of(equation)


def equations_of(equation) -> Iterator:
    """The equations inside one."""
    for value in equation.params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            if isinstance(inner, core.ClosedJaxpr | core.Jaxpr):
                yield from equations(inner)


def primal(function: Callable) -> Callable:
    """The same values, without custom derivative rules: autodiff sees through to what they are computed from."""

    def run(*args):
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        leaves = evaluate(closed, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), leaves)

    return run


@jax.custom_vjp
def scaled(value, factor):
    """The value; backward, the factor times the cotangent."""
    return value


scaled.defvjp(lambda value, factor: (value, factor), lambda factor, dy: (factor * dy, jnp.zeros_like(factor)))


# ── where an equation stands in somebody's source ─────────────────────────────────────────────────────────────────────

LIBRARIES = ("/jax/", "/jaxlib/", "/manual_backprop/testing/", "/threading.py", "/contextlib.py", "/functools.py")
FORMULAS = ("/jax/_src/nn/", "/jax/_src/scipy/", "/jax/_src/ops/", "/jax/_src/image/")  # of JAX, worth reading


def _frames(equation) -> Iterator[tuple[str, int]]:
    """The files and lines that say a formula, innermost first: the user's own, and those of jax.nn and the like."""
    traceback = equation.source_info.traceback
    for frame in traceback.frames if traceback is not None else ():
        name = frame.file_name.replace("\\", "/")
        library = name.startswith("<frozen") or any(part in name for part in LIBRARIES)
        if not library or any(part in name for part in FORMULAS):
            yield frame.file_name, frame.line_num


def _caller(equation, closed):
    """The equation of the whole that calls this one, or has it in its loop; None for one of the whole itself."""
    for outer in closed.jaxpr.eqns:
        if any(inner is equation for inner in equations_of(outer)):
            return outer
    return None


def said(equation, closed: core.ClosedJaxpr) -> str:
    """``` `var = mean(square(x - mean))` (layer_norm.py:14)```: the equation as its source says it.

    What JAX has traced before, as the inside of `jnp.mean`, bears the line of its first caller: this one's is said.
    """
    places, outer = list(_frames(equation)), _caller(equation, closed)
    called_from = next(_frames(outer), None) if outer is not None else None
    if called_from is not None and called_from not in places:
        places = [called_from]
    if not places:
        return f"the result of {equation.primitive.name}"
    file, line = places[0]
    text = linecache.getline(file, line).strip().rstrip(",")
    text = text if len(text) <= 100 else f"{text[:97]}..."
    where = f"{file.replace(chr(92), '/').rpartition('/')[2]}:{line}"
    return f"`{text}` ({where})" if text else f"the {equation.primitive.name} at {where}"


def is_float(atom) -> bool:
    dtype = getattr(getattr(atom, "aval", None), "dtype", None)
    return dtype is not None and bool(jnp.issubdtype(dtype, jnp.inexact))


class Rounding(NamedTuple):
    """An equation that rounds to a lower precision."""

    eps: float
    dtype: Any
    equation: Any

    def __str__(self) -> str:
        place = next(_frames(self.equation), None)
        return f"{self.dtype}" + (f", in {place[0].rpartition('/')[2]}:{place[1]}" if place else "")


def roundings(closed) -> list[Rounding | None]:
    """For each output of a jaxpr the equation on its way that rounds most, None where none does."""
    return _roundings(_opened(closed)[0], [None] * len(closed.jaxpr.invars))


def narrowest(closed) -> Rounding | None:
    """The equation that rounds most, on the way to any output."""
    return _most(roundings(closed))


def _most(found) -> Rounding | None:
    return max((one for one in found if one is not None), key=lambda one: one.eps, default=None)


def _roundings(jaxpr: core.Jaxpr, given: list[Rounding | None]) -> list[Rounding | None]:
    on_the_way = dict(zip(jaxpr.invars, given, strict=True))
    read = lambda atom: None if isinstance(atom, core.Literal) else on_the_way.get(atom)
    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        inner = next((equation.params[key] for key in INNER if key in equation.params), None)
        if equation.primitive.name in CALLS and inner is not None:
            results = _roundings(_opened(inner)[0], operands)
        else:
            within = [_rounding(other) for other in equations_of(equation)]
            results = [_most([*operands, *within, _rounding(equation)])] * len(equation.outvars)
        on_the_way.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _rounding(equation) -> Rounding | None:
    if equation.primitive.name not in ("convert_element_type", "reduce_precision"):
        return None
    (out,), into = equation.outvars, equation.invars[0]
    if not (is_float(out) and is_float(into)):
        return None
    eps = float(jnp.finfo(out.aval.dtype).eps)
    if equation.primitive.name == "reduce_precision":
        eps = max(eps, 2.0 ** -equation.params["mantissa_bits"])
    return Rounding(eps, out.aval.dtype, equation) if eps > float(jnp.finfo(into.aval.dtype).eps) else None
