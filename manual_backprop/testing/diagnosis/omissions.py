"""Which derivative is left out: the gradient of the reference with one of its functions taken for a straight line.

For every equation y = f(x), entry by entry, the reference is differentiated with ∂y/∂x = 1 there; its values stay.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from manual_backprop.testing.compiled import quickly
from manual_backprop.testing.diagnosis.scene import Scene
from manual_backprop.testing.jaxprs import evaluate, is_float, said
from manual_backprop.testing.leaves import as_cotangent, is_inexact, to_numpy

CURVES = (
    "cos", "cosh", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "integer_pow", "log", "log1p", "logistic", "rsqrt",
    "sin", "sinh", "sqrt", "square", "tan", "tanh", "max", "min", "abs", "clamp",
)  # fmt: skip
MOST = 10_000_000  # numbers that all gradients may have together


def omissions(first: Scene, second: Scene | None) -> Iterator[tuple[float, str, bool]]:
    """(how plain, sentence, whether a second cotangent agrees) for each that explains all leaves."""
    with jax.enable_x64(True):
        flat, tree = jax.tree.flatten(first.args)
        function = lambda *leaves: first.on.reference(*tree.unflatten(leaves))
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*flat)
        curves: dict = {}

        def note(path, equation, operands, results):
            name, y = equation.primitive.name, equation.outvars[0]
            if name in CURVES and is_float(y) and equation.invars[0].aval.shape == y.aval.shape:
                curves.setdefault(path, (len(curves), equation))
            return results

        jax.eval_shape(lambda *leaves: evaluate(closed, list(leaves), redo=note), *flat)
        if not curves or len(curves) * sum(leaf.size for leaf in flat) > MOST:
            return
        wanted = [i for i, e in enumerate(first.expect) if e is not None and first.got[i] is not None]

        def gradient(left_out, dy):
            def redo(path, equation, operands, results):
                if path not in curves:
                    return results
                x, y = operands[0], results[0]
                straight = x + jax.lax.stop_gradient(y - x)
                return [jnp.where(left_out == curves[path][0], straight, y)]

            def of_wanted(*moving):
                leaves = list(flat)
                for i, leaf in zip(wanted, moving, strict=True):
                    leaves[i] = leaf
                return jax.tree.unflatten(jax.tree.structure(shape), evaluate(closed, leaves, redo=redo))

            y, vjp = jax.vjp(of_wanted, *(flat[i] for i in wanted))
            floats = iter(dy)
            return vjp(as_cotangent(y, jax.tree.map(lambda leaf: next(floats) if is_inexact(leaf) else None, y)))

        run = quickly(lambda dy: jax.lax.map(lambda n: gradient(n, dy), jnp.arange(len(curves))))
        told = [[to_numpy(leaf) for leaf in run([jnp.asarray(d) for d in s.dy])] for s in (first, second) if s]
        for n, equation in curves.values():
            fits = [
                all(s.matches(i, leaf[n]) for i, leaf in zip(wanted, of_scene, strict=True))
                for s, of_scene in zip((first, second), told, strict=False)
            ]
            if fits[0]:
                name, text = equation.primitive.name, said(equation, closed)
                yield (
                    1.0,
                    f"a derivative is left out: a factor of the chain rule is missing, that of {name} in {text}",
                    len(fits) > 1 and fits[1],
                )
