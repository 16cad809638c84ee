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


def scatter(reference: Callable, wanted: tuple[bool, ...], args, dy) -> Leaves:
    """The largest deviation of each entry of y and of the cotangents; args and dy are in the precision asked about."""
    run = gradient_of(reference, wanted)
    flat, tree = jax.tree.flatten((args, dy))
    closed, shape = jax.make_jaxpr(lambda *leaves: run(*tree.unflatten(leaves)), return_shape=True)(*flat)

    def rounded(key):
        count = iter(range(10**9))

        def redo(path, equation, operands, results):
            return [_off(jax.random.fold_in(key, next(count)), leaf) for leaf in results]

        return evaluate(closed, flat, redo=redo)

    exact = [to_numpy(leaf) for leaf in quickly(lambda: evaluate(closed, flat))()]
    rounded = quickly(rounded)
    draws = [[to_numpy(leaf) for leaf in rounded(jax.random.key(n))] for n in range(DRAWS)]
    with np.errstate(invalid="ignore"):
        apart = [np.max([np.nan_to_num(np.abs(draw[i] - E)) for draw in draws], 0) for i, E in enumerate(exact)]
    y, dargs = jax.tree.unflatten(jax.tree.structure(shape), apart)
    rest = iter(dargs)
    return Leaves(jax.tree.leaves(y), [next(rest) if want else None for want in wanted])


def _off(key, leaf):
    if not is_inexact(leaf) or leaf.size == 0:
        return leaf
    sign = jax.random.rademacher(key, leaf.shape, jnp.int8).astype(leaf.dtype)
    return leaf * (1 + ulp(leaf.dtype) * sign)
