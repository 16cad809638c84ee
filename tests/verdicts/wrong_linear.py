"""Mistakes in linear ops: dense layers, tied weights, contractions, broadcasting."""

import jax.numpy as jnp

from .wrong_base import Op, normals, without

# ── Dense, and what is built from it ─────────────────────────────────────────────────────────────────────────────────


def dense_backward(r, dy):
    w, x = r
    return x.T @ dy, dy.sum(0), dy @ w.T


DENSE = Op(
    "dense",
    lambda w, b, x: jnp.einsum("ni,ij->nj", x, w) + b,
    lambda w, b, x: (x @ w + b, (w, x)),
    dense_backward,
    normals((5, 3), (3,), (7, 5)),
)
SQUARE = normals((5, 5), (5,), (7, 5))
LARGE = normals((67, 61), (61,), (13, 67))

dense = [
    DENSE.edit("dw averaged over the batch", 0, lambda dw: dw / 7, "factor"),
    DENSE.edit("db averaged over the batch", 1, lambda db: db / 7, "factor"),
    DENSE.edit("dx with the wrong sign", 2, jnp.negative, "sign"),
    DENSE.wrong(
        "dx by w, not transposed", lambda r, dy: (r[1].T @ dy, dy.sum(0), dy @ r[0]), "transposed", args=SQUARE
    ),
    DENSE.edit("dw transposed", 0, jnp.transpose, "transposed", args=SQUARE, function=True),
    DENSE.wrong("db of the last row alone", lambda r, dy: (r[1].T @ dy, dy[-1], dy @ r[0].T), "sum row"),
    DENSE.wrong(
        "last row left out of dw", lambda r, dy: (r[1][:-1].T @ dy[:-1], dy.sum(0), dy @ r[0].T), "row term sum"
    ),
    DENSE.edit("dw too large by 1e-4", 0, lambda dw: dw * 1.0001, "factor"),
    DENSE.edit("db too small by 2e-5", 1, lambda db: db * (1 - 2e-5), "factor"),
    DENSE.edit("one entry of dw zero among thousands", 0, lambda dw: dw.at[13, 7].set(0), "row", args=LARGE),
    DENSE.edit("last column of dx left out by a blocked loop", 2, lambda dx: without(dx, 1, -1), "row", args=LARGE),
    DENSE.edit("one entry of db off by 1e-3", 1, lambda db: db.at[17].multiply(1.001), "row", args=LARGE),
    DENSE.wrong(
        "dw takes the cotangent of ones",
        lambda r, dy: (r[1].T @ jnp.ones_like(dy), dy.sum(0), dy @ r[0].T),
        "ignored|depend|linear",
    ),
    DENSE.edit("last batch row of dx holds that of the first", 2, lambda dx: dx.at[-1].set(dx[0]), "row"),
]


def mlp_forward(w1, w2, x):
    z = x @ w1
    a = jnp.tanh(z)
    return a @ w2, (w1, w2, x, z, a)


def mlp_backward(r, dy):
    w1, w2, x, _, a = r
    dz = dy @ w2.T * (1 - a**2)
    return x.T @ dz, a.T @ dy, dz @ w1.T


MLP = Op(
    "mlp",
    lambda w1, w2, x: jnp.tanh(x @ w1) @ w2,
    mlp_forward,
    mlp_backward,
    normals((5, 11), (11, 3), (7, 5), scale=0.6),
)


def mlp_from(dz, of=4):
    """A pass with another cotangent of the hidden layer, or another residual in dw2."""
    return lambda r, dy: (r[2].T @ dz(r, dy), r[of].T @ dy, dz(r, dy) @ r[0].T)


def mlp_dz(r, dy):
    return dy @ r[1].T * (1 - r[4] ** 2)


mlp = [
    MLP.wrong("dw2 from z, not from a", mlp_from(mlp_dz, of=3), "residual ?"),
    MLP.wrong("tanh' of a, not of z", mlp_from(lambda r, dy: dy @ r[1].T * (1 - jnp.tanh(r[4]) ** 2)), "residual ?"),
    MLP.wrong("derivative of the activation left out", mlp_from(lambda r, dy: dy @ r[1].T), "term residual derivative"),
    MLP.wrong(
        "hidden units 0 and 1 swapped in dz",
        mlp_from(lambda r, dy: mlp_dz(r, dy).at[:, :2].set(mlp_dz(r, dy)[:, 1::-1])),
        "row swapped",
    ),
]

TIED = Op(
    "tied weights",
    lambda w, x: jnp.tanh(x @ w) @ w.T,
    lambda w, x: (jnp.tanh(x @ w) @ w.T, (w, x, jnp.tanh(x @ w))),
    lambda r, dy: (r[1].T @ (dy @ r[0] * (1 - r[2] ** 2)) + dy.T @ r[2], (dy @ r[0] * (1 - r[2] ** 2)) @ r[0].T),
    normals((5, 3), (7, 5), scale=0.7),
)
GRAM = Op(
    "gram",
    lambda x: jnp.einsum("id,jd->ij", x, x),
    lambda x: (x @ x.T, x),
    lambda x, dy: ((dy + dy.T) @ x,),
    normals((7, 5)),
)
QUADRATIC = Op(
    "quadratic form",
    lambda a, x: jnp.einsum("ni,ij,nj->n", x, a, x),
    lambda a, x: (jnp.sum(x @ a * x, -1), (a, x)),
    lambda r, dy: (r[1].T @ (dy[:, None] * r[1]), dy[:, None] * (r[1] @ (r[0] + r[0].T))),
    normals((5, 5), (7, 5)),
)
BILINEAR = Op(
    "bilinear",
    lambda a, x, z: jnp.einsum("ni,ij,nj->n", x, a, z),
    lambda a, x, z: (jnp.sum(x @ a * z, -1), (a, x, z)),
    lambda r, dy: (r[1].T @ (dy[:, None] * r[2]), dy[:, None] * (r[2] @ r[0].T), dy[:, None] * (r[1] @ r[0])),
    normals((5, 5), (7, 5), (7, 5)),
)
LORA = Op(
    "lora",
    lambda w, a, b, x: x @ (w + 0.25 * a @ b),
    lambda w, a, b, x: (x @ w + 0.25 * (x @ a) @ b, (w, a, b, x)),
    lambda r, dy: (
        r[3].T @ dy,
        0.25 * r[3].T @ (dy @ r[2].T),
        0.25 * (r[3] @ r[1]).T @ dy,
        dy @ r[0].T + 0.25 * dy @ r[2].T @ r[1].T,
    ),
    normals((5, 3), (5, 2), (2, 3), (7, 5)),
)

shared = [
    TIED.wrong("the encoder's path left out of dw", lambda r, dy: (dy.T @ r[2], TIED.backward(r, dy)[1]), "term sum"),
    TIED.wrong(
        "the decoder's path counted twice",
        lambda r, dy: (TIED.backward(r, dy)[0] + dy.T @ r[2], TIED.backward(r, dy)[1]),
        "term twice|double",
    ),
    GRAM.wrong("of the two uses of x one counted", lambda x, dy: (dy @ x,), "term sum"),
    GRAM.wrong("cotangent taken as symmetric", lambda x, dy: (2 * dy @ x,), "transposed term symmetr"),
    QUADRATIC.wrong(
        "2 A x for an A not symmetric",
        lambda r, dy: (QUADRATIC.backward(r, dy)[0], 2 * dy[:, None] * (r[1] @ r[0])),
        "transposed term symmetr",
    ),
    QUADRATIC.edit("da symmetrised with a stray half", 0, lambda da: (da + da.T) / 4, "factor"),
    BILINEAR.wrong("dx and dz swapped", lambda r, dy: tuple(BILINEAR.backward(r, dy)[i] for i in (0, 2, 1)), "swapped"),
    BILINEAR.edit("da by z x, not x z", 0, jnp.transpose, "transposed"),
    LORA.edit("scale dropped from da", 1, lambda da: 4 * da, "factor"),
    LORA.wrong("low-rank path left out of dx", lambda r, dy: (*LORA.backward(r, dy)[:3], dy @ r[0].T), "term"),
]

# ── Contractions ─────────────────────────────────────────────────────────────────────────────────────────────────────

BATCHED = Op(
    "batched matmul",
    lambda a, b: jnp.einsum("bij,bjk->bik", a, b),
    lambda a, b: (a @ b, (a, b)),
    lambda r, dy: (dy @ r[1].mT, r[0].mT @ dy),
    normals((3, 5, 5), (3, 5, 5)),
)
CHAIN = Op(
    "einsum ij,jk,kl->il",
    lambda a, b, c: jnp.einsum("ij,jk,kl->il", a, b, c),
    lambda a, b, c: (a @ b @ c, (a, b, c)),
    lambda r, dy: (dy @ (r[1] @ r[2]).T, r[0].T @ dy @ r[2].T, (r[0] @ r[1]).T @ dy),
    normals((5, 5), (5, 5), (5, 5)),
)
contractions = [
    BATCHED.wrong("da by b, not transposed", lambda r, dy: (dy @ r[1], r[0].mT @ dy), "transposed"),
    BATCHED.wrong("da and db swapped", lambda r, dy: BATCHED.backward(r, dy)[::-1], "swapped"),
    BATCHED.edit("db of the first batch entry everywhere", 1, lambda db: jnp.broadcast_to(db[:1], db.shape), "row ?"),
    CHAIN.wrong(
        "db with a and c exchanged",
        lambda r, dy: (dy @ (r[1] @ r[2]).T, r[2].T @ dy @ r[0].T, (r[0] @ r[1]).T @ dy),
        "swapped residual ?",
    ),
    CHAIN.wrong(
        "da by c b, not b c", lambda r, dy: (dy @ (r[2] @ r[1]).T, *CHAIN.backward(r, dy)[1:]), "swapped residual ?"
    ),
]

# ── Broadcasting ─────────────────────────────────────────────────────────────────────────────────────────────────────

ADD = Op(
    "broadcasting add",
    lambda x, b: x + b,
    lambda x, b: (x + b, None),
    lambda _, dy: (dy, dy.sum((0, 1))),
    normals((3, 7, 5), (5,)),
)
MUL = Op(
    "broadcasting mul",
    lambda x, s: x * s,
    lambda x, s: (x * s, (x, s)),
    lambda r, dy: (dy * r[1], (dy * r[0]).sum((0, 1))),
    normals((3, 7, 5), (5,)),
)
broadcasting = [
    ADD.wrong("db summed over one of two axes", lambda _, dy: (dy, dy.sum(0)[0]), "sum row"),
    ADD.wrong("db summed over one axis, averaged over the other", lambda _, dy: (dy, dy.sum(0).mean(0)), "factor"),
    MUL.wrong("ds of the first batch entry", lambda r, dy: (dy * r[1], (dy * r[0])[0].sum(0)), "sum row"),
    MUL.wrong(
        "ds summed before the product", lambda r, dy: (dy * r[1], dy.sum((0, 1)) * r[0].mean((0, 1))), "? term sum"
    ),
    MUL.wrong("operands not exchanged", lambda r, dy: (dy * r[0], (dy * r[0]).sum((0, 1))), "residual ? swapped"),
    MUL.wrong("dx without the scale", lambda r, dy: (dy, (dy * r[0]).sum((0, 1))), "row residual term"),
]

OPS = [DENSE, MLP, TIED, GRAM, QUADRATIC, BILINEAR, LORA, BATCHED, CHAIN, ADD, MUL]
WRONG = dense + mlp + shared + contractions + broadcasting
