"""An embedding whose table is cut by rows: each device looks up the ids that are in its part.

Device d of n has the rows d·R … (d + 1)·R - 1 of the table. An id is in one device's part:

    y⁽ᵈ⁾ = [id is in part d] · table⁽ᵈ⁾[id - d·R],    Σ_d y⁽ᵈ⁾ = table[id]

so y⁽ᵈ⁾ is a term of a sum that is still to be taken, by `all_reduce`, or by `reduce_scatter` where the next layers have
a part of the sequence each. The derivative of the sum is that of each of its terms, dy on every device:

    dtable⁽ᵈ⁾[r] = Σ dy over the places whose id is d·R + r

Source: Shoeybi et al. 2019 (Megatron-LM), arXiv:1909.08053, section 3 (the input embedding, cut along the
vocabulary).
Saved: the place of each id in the device's part.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.contract import op
from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import Spec, spec, want_float, wide_dtype
from manual_backprop.ops.collectives.devices import devices
from manual_backprop.options import want_not_negative


class Residuals(NamedTuple):
    places: jax.Array  # [...] of integers: the device's own row for each id; beyond its rows where it gets no gradient
    of_table: Spec  # [rows of a device, features]


@op
def parallel_embedding(*, axis: str, padding_id: int | None = None):
    """ids [...] of integers, whole; table [rows, features], a device's own rows → y [..., features], a term of the sum.

    `padding_id`: this row of the whole table gets no gradient. Sums are in at least float32. An id that no device has
    gives a row of NaN, and no gradient, as in `embedding`.
    Raises InputError for an axis that is not there, a table of another shape, and ids that are no integers.
    """
    want_not_negative("parallel_embedding", padding_id=padding_id)

    def forward(ids, table):
        check(ids, table)
        n, rows = devices("parallel_embedding", axis), len(table)
        ids = ids.astype(jnp.int32) if jnp.iinfo(ids.dtype).bits < 32 else ids
        place = ids - lax.axis_index(axis) * rows
        mine = (place >= 0) & (place < rows)
        y = jnp.where(mine[..., None], table.at[place].get(mode="clip"), 0)
        known = (ids >= 0) & (ids < n * rows)
        moving = mine if padding_id is None else mine & (ids != padding_id)
        y = jnp.where(known[..., None], y, jnp.nan)
        return y, Residuals(jnp.where(moving, place, rows), spec(table))

    def backward(residuals, dy):
        places, of_table = residuals
        wide = wide_dtype(of_table.dtype)
        dtable = jnp.zeros(of_table.shape, wide).at[places].add(dy.astype(wide), mode="drop")
        return None, dtable.astype(of_table.dtype)

    return forward, backward


def check(ids, table) -> None:
    want_float("parallel_embedding", table=table)
    if table.ndim != 2:
        raise InputError(f"parallel_embedding: table has shape {table.shape}; wants [rows, features]")
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise InputError(f"parallel_embedding: ids are {ids.dtype}; wants integers: convert them with .astype(int)")
