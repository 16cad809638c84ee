"""From the costs of the items to C, and back: what every cost shares.

cᵢ is the cost of item i, wᵢ its weight (1 unless given: a mask of the items that are valid, or numbers), and nᵢ what it
counts for in the mean (1, but for weights of the classes):

    mean    C = Σᵢ wᵢ cᵢ / W,  W = Σᵢ wᵢ nᵢ     dcᵢ = dC · wᵢ / W,   dwᵢ = dC · (cᵢ - nᵢ C) / W,   dnᵢ = -dC · wᵢ C / W
    sum     C = Σᵢ wᵢ cᵢ                        dcᵢ = dC · wᵢ,       dwᵢ = dC · cᵢ
    none    Cᵢ = wᵢ cᵢ                          dcᵢ = dCᵢ · wᵢ,      dwᵢ = dCᵢ · cᵢ

Where W = 0 nothing counts: C and all its derivatives are 0. What is no number (inf or NaN) and has the weight 0 is 0.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import is_float, known, want_examples, want_real, want_shape, wide

Reduction = Literal["mean", "sum", "none"]


def reduce(reduction: str, costs, weights=None, counts=None) -> jax.Array:
    """C from the costs of the items; weights and counts have their shape, None stands for ones."""
    if weights is not None:
        costs = wide(weights) * unless_masked(costs, weights)
    if reduction == "none":
        return costs
    total = jnp.sum(costs)
    return total if reduction == "sum" else _over(total, _whole(costs.size, weights, counts))


def dcosts(reduction: str, dC, size: int, weights=None, counts=None) -> jax.Array:
    """∂C/∂cᵢ · dC: one number for all items, or one for each."""
    if reduction == "mean":
        dC = _over(dC, _whole(size, weights, counts))
    return dC if weights is None else dC * wide(weights)


def dweights(reduction: str, dC, costs, weights, counts=None) -> jax.Array | None:
    """∂C/∂wᵢ · dC in the dtype of the weights; None for a mask."""
    if not is_float(weights):
        return None
    dw = dC * unless_masked(costs, weights)
    if reduction == "mean":
        C = reduce(reduction, costs, weights, counts)
        n = 1 if counts is None else counts
        dw = _over(dC * (unless_masked(costs, weights) - n * C), _whole(costs.size, weights, counts))
    return dw.astype(weights.dtype)


def dcounts(reduction: str, dC, costs, weights, counts) -> jax.Array:
    """∂C/∂nᵢ · dC: 0 but for the mean."""
    if reduction != "mean":
        return jnp.zeros_like(counts)
    C = reduce(reduction, costs, weights, counts)
    w = 1 if weights is None else wide(weights)
    return jnp.broadcast_to(_over(-dC * w * C, _whole(costs.size, weights, counts)), counts.shape)


def unless_masked(x, weights) -> jax.Array:
    """x, but 0 where it is no number and its item has no weight: what is masked has no say, whatever it holds."""
    if weights is None:
        return x
    return _unless(weights.reshape(*weights.shape, *[1] * (x.ndim - weights.ndim)) == 0, x)


def share(t, x) -> jax.Array:
    """t x, where 0 of what is no number is 0: 0 ln 0 too."""
    return t * _unless(t == 0, x)


def _unless(masked, x) -> jax.Array:
    return jnp.where(masked & ~jnp.isfinite(x), 0, x)


def _whole(size: int, weights, counts):
    """W."""
    if counts is None:
        return size if weights is None else jnp.sum(wide(weights))
    return jnp.sum(counts if weights is None else wide(weights) * counts)


def _over(x, W):
    """x / W, and 0 where W is 0."""
    return x / W if isinstance(W, int) else jnp.where(W == 0, 0, x / jnp.where(W == 0, 1, W))


# ── what does not fit ────────────────────────────────────────────────────────────────────────────────────────────────


def want_items(name: str, reduction: str, x, shape: tuple[int, ...], weights) -> None:
    """Raises InputError for the mean of an empty batch, and for weights that are not one for each of the items.

    shape: of the items.  x: the argument that holds them.
    """
    if reduction == "mean":
        want_examples(name, x)
    if weights is not None:
        want_real(name, weights=weights)
        want_shape(name, shape, "one for each item", weights=weights)


def counting(weights) -> np.ndarray | None:
    """Which items have a weight that is not 0, and must not hold what the others may; None where that is not known."""
    values = np.ones(()) if weights is None else known(weights)
    return None if values is None else values != 0


def want_range(name: str, argument: str, x, low: float, high: float, weights) -> None:
    """Raises InputError for a known value outside low … high that has a weight."""
    values, counts = known(x), counting(weights)
    if values is None or counts is None:
        return
    outside = ~((values >= low) & (values <= high)) & counts
    if outside.any():
        wrong = values[outside].flat[0]
        raise InputError(f"{name}: {argument} holds {wrong}; wants numbers from {low} to {high}")
