"""Embedding: each id stands for a row of a table.

    y = table[id],    as a product with a one-hot row: y = e table, so dtable = eᵀ dy, which only adds dy to row id

    dtable[r] = Σ dy over the places whose id is r

A row that occurs often collects its gradient from each place; a row that does not occur gets none. Neither e nor a
product with it is formed: rows are gathered, and scattered back by addition (measured on CPUs: a product with one-hot
rows took 2 to 30 times as long, for tables of 16 to 1024 rows).

Source: Mikolov, Chen, Corrado & Dean 2013, arXiv:1301.3781 (the projection layer); Bengio, Ducharme, Vincent & Jauvin
2003, "A neural probabilistic language model", section 3.
Saved: the ids. The table's values are not needed.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from manual_backprop.contract import op
from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import Spec, known, spec, want_float, wide, wide_dtype
from manual_backprop.options import want_not_negative


class Residuals(NamedTuple):
    ids: jax.Array  # [...] of integers
    of_table: Spec  # [rows, features]


@op
def embedding(*, padding_id: int | None = None):
    """ids [...] of integers, table [rows, features] → y [..., features].

    `padding_id`: this row gets no gradient. Sums are in at least float32.
    Raises InputError for ids that are no integers and, in an eager call, for an id outside 0 … rows - 1. Inside jit
    values are not known: there, such an id gives a row of NaN, and no gradient.
    """
    want_not_negative("embedding", padding_id=padding_id)

    def forward(ids, table):
        check(ids, table, padding_id)
        y = table.at[index(ids, table)].get(mode="fill", fill_value=jnp.nan)
        return y, Residuals(ids, spec(table))

    def backward(residuals, dy):
        ids, of_table = residuals
        dtable = jnp.zeros(of_table.shape, wide_dtype(of_table.dtype))
        return None, rows_added(dtable, ids, dy, padding_id).astype(of_table.dtype)

    return forward, backward


def rows_added(dtable, ids, dy, padding_id: int | None) -> jax.Array:
    """dtable [rows, features] with dy [..., features] added to the row of each id."""
    rows = index(ids, dtable)
    if padding_id is not None:
        rows = jnp.where(rows == padding_id, len(dtable), rows)  # beyond the table: dropped
    return dtable.at[rows].add(wide(dy), mode="drop")


def index(ids, table) -> jax.Array:
    """The ids in a dtype that counts the rows and one more; a negative id, which would count from the end, as that."""
    if jnp.iinfo(ids.dtype).bits < 32:
        ids = ids.astype(jnp.int32)
    return jnp.where(ids < 0, table.shape[0], ids)


def check(ids, table, padding_id) -> None:
    want_float("embedding", table=table)
    if table.ndim != 2:
        raise InputError(f"embedding: table has shape {table.shape}; wants [rows, features]")
    rows = table.shape[0]
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise InputError(f"embedding: ids are {ids.dtype}; wants integers: convert them with .astype(int)")
    if padding_id is not None and padding_id >= rows:
        raise InputError(f"embedding: padding_id is {padding_id}, the table has {rows} rows; wants 0 … {rows - 1}")
    values = known(ids)
    if values is not None and values.size and (values.min() < 0 or values.max() >= rows):
        wrong = values[(values < 0) | (values >= rows)][0]
        raise InputError(f"embedding: id {wrong} is outside 0 … {rows - 1}, the {rows} rows of the table")
