"""Any sum of products of two arrays, in Einstein's notation, as `einsum(subscripts="...ij,jk->...ik")`.

Each axis bears an index; an index that the result lacks is summed over. y is linear in a and linear in b, and an entry
of a reaches C through every product that it is in, so the cotangent is an einsum too, with a and y exchanged:

    y = einsum(A,B->Y; a, b):    da = einsum(Y,B->A; dy, b),    db = einsum(Y,A->B; dy, a)

With ij,jk->ik that is da_ij = Σₖ dy_ik b_jk. Two cases need a word. An index of a alone that y lacks (i in ij,jk->k):
every entry along it takes the same path, so da is the same along it. An axis of size one that meets a longer one of the
same index was broadcast: it carries no index, and is put back at the end.

Source: Einstein 1916, "Die Grundlage der allgemeinen Relativitätstheorie", § 5 (the convention).
Saved: the arguments, nothing new.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.contract import op
from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import want_float, wide_dtype


class Residuals(NamedTuple):
    a: jax.Array
    b: jax.Array


@op
def einsum(*, subscripts: str):
    """a, b → y, as `jnp.einsum(subscripts, a, b)`: two operands, with or without "->" and "...".

    An ellipsis that the result lacks is summed over. Products are summed in at least float32. Raises InputError for
    subscripts that do not fit the arrays, and for an index that stands twice in an operand. Derivation: the module.
    """

    terms = parse(subscripts)

    def forward(a, b):
        check(subscripts, terms, a, b)
        (a_, A), (b_, B), Y = indexed(terms, a, b)
        return contract(a_, A, b_, B, Y).astype(jnp.result_type(a, b)), Residuals(a, b)

    def backward(residuals, dy):
        a, b = residuals
        (a_, A), (b_, B), Y = indexed(terms, a, b)
        da = contract(dy, Y, b_, B, A, a_.shape).reshape(a.shape)
        db = contract(dy, Y, a_, A, B, b_.shape).reshape(b.shape)
        return da.astype(a.dtype), db.astype(b.dtype)

    return forward, backward


def contract(a, A, b, B, Y, shape=None) -> jax.Array:
    """einsum(A,B->Y), in at least float32. `shape` is that of the result where Y has indices that A and B lack."""
    a, A = summed(a, A, {*B, *Y})
    b, B = summed(b, B, {*A, *Y})
    inner = [i for i in A if i in B and i not in Y]
    batch = [i for i in A if i in B and i in Y]
    a, A = led(a, A, batch)
    b, B = led(b, B, batch)
    axes = [A.index(i) for i in inner], [B.index(i) for i in inner]
    batch_axes = (range(len(batch)),) * 2
    y = lax.dot_general(a, b, (axes, batch_axes), preferred_element_type=wide_dtype(jnp.result_type(a, b)))
    order = [i for i in (*A, *B[len(batch) :]) if i not in inner]
    found = [i for i in Y if i in order]
    y = jnp.transpose(y, [order.index(i) for i in found])
    if len(found) == len(Y):
        return y
    return jnp.broadcast_to(jnp.expand_dims(y, [k for k, i in enumerate(Y) if i not in order]), shape)


def summed(x, X, kept: set):
    """x and its indices X, summed over those that are not kept."""
    axes = tuple(k for k, i in enumerate(X) if i not in kept)
    if not axes:
        return x, X
    return jnp.sum(x, axes, dtype=wide_dtype(x.dtype)), tuple(i for i in X if i in kept)


def led(x, X, batch: list):
    """x and its indices X, transposed so that `batch` leads."""
    led_by = [*batch, *(i for i in X if i not in batch)]
    return jnp.transpose(x, [X.index(i) for i in led_by]), led_by


# ── subscripts ───────────────────────────────────────────────────────────────────────────────────────────────────────
# A term is a string with one character for each index, "…" for the ellipsis; its indices are letters, and the numbers
# …, -2, -1 for the axes of the ellipsis, from the right.


def parse(subscripts: str) -> tuple[str, str, str]:
    """The terms of a, b and y."""
    given = repr(subscripts)
    if not isinstance(subscripts, str) or subscripts.count(",") != 1:
        raise InputError(f"einsum: subscripts are {given}; wants two operands, as in 'ij,jk->ik'")
    left, arrow, y = subscripts.replace(" ", "").replace("...", "…").partition("->")
    a, b = left.split(",")
    if not arrow:
        y = "…" * ("…" in left) + "".join(sorted(i for i in {*a, *b} - {"…"} if (a + b).count(i) == 1))
    for term in (a, b, y):
        if not all(i.isalpha() or i == "…" for i in term):
            raise InputError(f"einsum: subscripts are {given}; wants letters, one comma, '...' and '->'")
        if len({*term}) < len(term):
            raise InputError(f"einsum: subscripts {given} have an index twice in {term!r}; wants each once in a term")
    if not {*y} <= {*a, *b}:
        raise InputError(f"einsum: subscripts {given} give {y!r} an index that no operand has")
    return a, b, y


def ellipsis_rank(term: str, x) -> int:
    return x.ndim - len(term) + 1 if "…" in term else 0


def indices(term: str, rank: int) -> tuple:
    """The indices of a term whose ellipsis stands for `rank` axes."""
    return tuple(j for i in term for j in (range(-rank, 0) if i == "…" else (i,)))


def indexed(terms, a, b):
    """a and b, each with its indices, without the axes that are broadcast; and the indices of y."""
    ranks = [ellipsis_rank(term, x) for term, x in zip(terms, (a, b), strict=False)]
    A, B, Y = (indices(term, rank) for term, rank in zip(terms, (*ranks, max(ranks)), strict=True))
    return counted(a, A, size_of(b, B)), counted(b, B, size_of(a, A)), Y


def size_of(x, X) -> dict:
    return dict(zip(X, x.shape, strict=True))


def counted(x, X, other: dict):
    """x and its indices X, without the axes of size one that meet a longer one."""
    broadcast = tuple(k for k, (i, n) in enumerate(zip(X, x.shape, strict=True)) if n == 1 != other.get(i, 1))
    return lax.squeeze(x, broadcast), tuple(i for k, i in enumerate(X) if k not in broadcast)


def check(subscripts, terms, a, b) -> None:
    want_float("einsum", a=a, b=b)
    for name, term, x in zip("ab", terms, (a, b), strict=False):
        letters = len(term) - ("…" in term)
        if x.ndim < letters or (x.ndim > letters and "…" not in term):
            wants = f"{'at least ' * ('.' in term)}{letters} axes"
            raise InputError(f"einsum: {name} has shape {x.shape}, subscripts are {subscripts!r}; wants {wants}")
    A, B = (indices(term, ellipsis_rank(term, x)) for term, x in zip(terms, (a, b), strict=False))
    sizes = size_of(b, B)
    for i, n in size_of(a, A).items():
        if i in sizes and n != sizes[i] and 1 not in (n, sizes[i]):
            raise InputError(
                f"einsum: a has shape {a.shape}, b {b.shape}; index {i!r} of {subscripts!r} is {n} in a and "
                f"{sizes[i]} in b; wants them alike, or one of them 1"
            )
