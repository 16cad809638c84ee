"""Learned positions (Gehring 2017, arXiv:1705.03122, section 3.1): to what stands at position t, row t is added.

    yₜ = xₜ + tableₜ,    t = 0 … T - 1

    dx = dy,    dtableₜ = Σ dyₜ    (Σ over the leading axes), and 0 for the rows from T on, which no position reaches

Saved: shapes alone.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from manual_backprop.contract import op
from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import Spec, spec, want_float, wide_dtype


class Residuals(NamedTuple):
    of_x: Spec  # [..., T, features]
    of_table: Spec  # [rows, features]


@op
def positional_embedding():
    """x [..., T, features], table [rows, features], rows ≥ T → y [..., T, features]. Derivation: the module.

    Sums are in at least float32. Raises InputError when x is longer than the table, or of other features.
    """

    def forward(x, table):
        check(x, table)
        y = x + table[: x.shape[-2]]
        return y, Residuals(spec(x), spec(table))

    def backward(residuals, dy):
        of_x, of_table = residuals
        T, rows = of_x.shape[-2], of_table.shape[0]
        dtable = jnp.sum(dy, tuple(range(dy.ndim - 2)), dtype=wide_dtype(dy.dtype))
        dtable = jnp.pad(dtable, ((0, rows - T), (0, 0)))
        return dy.astype(of_x.dtype), dtable.astype(of_table.dtype)

    return forward, backward


def check(x, table) -> None:
    name = "positional_embedding"
    want_float(name, x=x, table=table)
    if x.ndim < 2 or table.ndim != 2 or x.shape[-1] != table.shape[1]:
        raise InputError(
            f"{name}: x has shape {x.shape}, table {table.shape}; wants [..., length, features] and [rows, features]"
        )
    if x.shape[-2] > table.shape[0]:
        raise InputError(
            f"{name}: x has {x.shape[-2]} positions, the table {table.shape[0]} rows; wants no more than it has"
        )
