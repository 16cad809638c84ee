"""How much autodiff itself rounds, where nothing is more precise: Monte Carlo arithmetic (Parker 1997).

The equations of the reference and of its gradient are carried out with every result off by one rounding, up or down at
random. How far the answers scatter is what rounding does to this computation, cancellation and all; it costs a
compilation, so it is asked only where a small error would otherwise be called a mistake.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from manual_backprop.testing.compiled import quickly
from manual_backprop.testing.jaxprs import evaluate
from manual_backprop.testing.leaves import is_inexact, to_numpy, ulp
from manual_backprop.testing.truth import Leaves, gradient_of

DRAWS = 8
SIGNS = 1 << 16  # random signs of a draw: each result takes its part of them, which is quick to compile


def scatter(reference: Callable, wanted: tuple[bool, ...], args, dy) -> Leaves:
    """The largest deviation of each entry of y and of the cotangents; args and dy are in the precision asked about."""
    run = gradient_of(reference, wanted)
    flat, tree = jax.tree.flatten((args, dy))
    closed, shape = jax.make_jaxpr(lambda *leaves: run(*tree.unflatten(leaves)), return_shape=True)(*flat)

    def rounded(signs):
        count = iter(range(10**9))

        def redo(path, equation, operands, results):
            return [_off(signs, next(count), leaf) for leaf in results]

        return evaluate(closed, flat, redo=redo)

    exact = [to_numpy(leaf) for leaf in quickly(lambda: evaluate(closed, flat))()]
    rounded = quickly(rounded)
    rng = np.random.default_rng(0)
    signs = rng.choice(np.array([-1, 1], np.int8), (DRAWS, SIGNS))
    draws = [[to_numpy(leaf) for leaf in rounded(row)] for row in signs]
    with np.errstate(invalid="ignore"):
        apart = [np.max([np.nan_to_num(np.abs(draw[i] - E)) for draw in draws], 0) for i, E in enumerate(exact)]
    y, dargs = jax.tree.unflatten(jax.tree.structure(shape), apart)
    rest = iter(dargs)
    return Leaves(jax.tree.leaves(y), [next(rest) if want else None for want in wanted])


def _off(signs, n: int, leaf):
    """Each entry off by one rounding. n: the number of the result, which says where its signs begin."""
    if not is_inexact(leaf) or leaf.size == 0:
        return leaf
    begin = n * 40503 % max(1, SIGNS - leaf.size)  # 40503: odd, about SIGNS over the golden ratio
    sign = jnp.resize(signs[begin : begin + min(leaf.size, SIGNS)], leaf.shape).astype(leaf.dtype)
    return leaf * (1 + ulp(leaf.dtype) * sign)
