"""Mistakes in normalisation: layer, rms, batch, group and weight norm, l2, cosine similarity, norms of vectors."""

from functools import partial

import jax.numpy as jnp
from jax import lax

from .wrong_base import Op, normal, normals, without

EPS = 1e-5

# ── Standardising over some axes: the kernel of most norms ───────────────────────────────────────────────────────────


def standardise(x, axes, eps=EPS):
    centred = x - x.mean(axes, keepdims=True)
    rstd = lax.rsqrt((centred**2).mean(axes, keepdims=True) + eps)
    return centred * rstd, rstd


def through_standardise(xhat, rstd, dxhat, axes, mean_path=1.0, variance_path=1.0):
    """The cotangent before standardising: two paths, through the mean and through the variance, are subtracted."""
    mean = dxhat.mean(axes, keepdims=True)
    along = xhat * (dxhat * xhat).mean(axes, keepdims=True)
    return rstd * (dxhat - mean_path * mean - variance_path * along)


def layer_norm_reference(g, b, x, eps=EPS):
    return g * (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + eps) + b


def layer_norm_forward(g, b, x, eps=EPS):
    xhat, rstd = standardise(x, -1, eps)
    return g * xhat + b, (g, x, xhat, rstd)


def layer_norm_backward(r, dy, gain=lambda g: g, rstd=lambda r: r[3], **paths):
    g, _, xhat, _ = r
    return (dy * xhat).sum(0), dy.sum(0), through_standardise(xhat, rstd(r), dy * gain(g), -1, **paths)


def with_dx(op, dx):
    """The op's backward pass with another last cotangent."""
    return lambda r, dy: (*op.backward(r, dy)[:-1], dx(r, dy))


LAYER = Op("layer_norm", layer_norm_reference, layer_norm_forward, layer_norm_backward, normals((5,), (5,), (7, 5)))
LAYER_SQUARE = normals((7,), (7,), (7, 7))
LAYER_LARGE = normals((101,), (101,), (37, 101))


def rstd_without_eps(r):
    return lax.rsqrt(r[1].var(-1, keepdims=True))


layer = [
    LAYER.wrong("mean path dropped", partial(layer_norm_backward, mean_path=0), "term constant"),
    LAYER.wrong("variance path dropped", partial(layer_norm_backward, variance_path=0), "term constant"),
    LAYER.wrong("variance path twice", partial(layer_norm_backward, variance_path=2), "term twice|double"),
    LAYER.wrong(
        "both statistics taken as constant", partial(layer_norm_backward, mean_path=0, variance_path=0), "term constant"
    ),
    LAYER.wrong("gain left out of dx", partial(layer_norm_backward, gain=jnp.ones_like), "residual term row"),
    LAYER.wrong(
        "gain after the projection",
        with_dx(LAYER, lambda r, dy: r[0] * through_standardise(r[2], r[3], dy, -1)),
        "? term",
    ),
    LAYER.wrong(
        "dg from x, not from xhat", lambda r, dy: ((dy * r[1]).sum(0), *LAYER.backward(r, dy)[1:]), "residual ?"
    ),
    LAYER.wrong("dg and db swapped", lambda r, dy: tuple(LAYER.backward(r, dy)[i] for i in (1, 0, 2)), "swapped"),
    LAYER.edit("dg averaged over the batch", 0, lambda dg: dg / 7, "factor"),
    LAYER.wrong("eps left out of the backward pass", partial(layer_norm_backward, rstd=rstd_without_eps), "minute"),
    LAYER.wrong(
        "rstd with n - 1 in the backward pass",
        partial(layer_norm_backward, rstd=lambda r: lax.rsqrt(r[1].var(-1, keepdims=True, ddof=1) + EPS)),
        "factor",
    ),
    LAYER.wrong(
        "statistics of the wrong axis in dx",
        with_dx(LAYER, lambda r, dy: through_standardise(r[2], r[3], dy * r[0], 0)),
        "? transposed",
        args=LAYER_SQUARE,
    ),
    LAYER.edit("last row of a large dx left out", 2, lambda dx: without(dx, 0, -1), "row", args=LAYER_LARGE),
    LAYER.edit("dx shrunk by 1e-5", 2, lambda dx: dx * (1 - 1e-5), "factor", args=LAYER_LARGE),
    LAYER.plain(
        "variance under stop_gradient",
        lambda g, b, x: (
            g * (x - x.mean(-1, keepdims=True)) * lax.stop_gradient(lax.rsqrt(x.var(-1, keepdims=True) + EPS)) + b
        ),
        "term constant",
    ),
]

# ── RMS norm ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def rms_norm_reference(g, x):
    return g * x / jnp.sqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + EPS)


def rms_norm_forward(g, x, eps=EPS):
    r = lax.rsqrt((x**2).mean(-1, keepdims=True) + eps)
    return g * x * r, (g, x, r)


def rms_norm_backward(res, dy, mean=jnp.mean, path=1.0, power=3):
    g, x, r = res
    return (dy * x * r).sum(0), r * dy * g - path * x * r**power * mean(dy * g * x, -1, keepdims=True)


RMS = Op(
    "rms_norm",
    rms_norm_reference,
    rms_norm_forward,
    rms_norm_backward,
    normals((5,), (7, 5)),
)
rms = [
    RMS.wrong("norm taken as constant", partial(rms_norm_backward, path=0), "term constant"),
    RMS.wrong("sum for the mean in the norm's path", partial(rms_norm_backward, mean=jnp.sum), "term factor"),
    RMS.wrong("r squared where r cubed belongs", partial(rms_norm_backward, power=2), "? term"),
    RMS.wrong("norm's path with the wrong sign", partial(rms_norm_backward, path=-1), "term sign"),
    RMS.wrong(
        "gain left out of the norm's path",
        with_dx(RMS, lambda r, dy: r[2] * dy * r[0] - r[1] * r[2] ** 3 * (dy * r[1]).mean(-1, keepdims=True)),
        "term residual",
    ),
    RMS.wrong("dg of the first token", lambda r, dy: ((dy * r[1] * r[2])[0], RMS.backward(r, dy)[1]), "sum row"),
]

# ── Batch norm and group norm ────────────────────────────────────────────────────────────────────────────────────────


def batch_norm_forward(g, b, x, eps=EPS):
    xhat, rstd = standardise(x, 0, eps)
    return g * xhat + b, (g, x, xhat, rstd)


def batch_norm_backward(r, dy, **paths):
    g, _, xhat, rstd = r
    return (dy * xhat).sum(0), dy.sum(0), through_standardise(xhat, rstd, dy * g, 0, **paths)


BATCH = Op(
    "batch_norm",
    lambda g, b, x: layer_norm_reference(g[:, None], b[:, None], x.T).T,
    batch_norm_forward,
    batch_norm_backward,
    normals((5,), (5,), (7, 5)),
)


def groups(x, count=2):
    """(n, pixels, channels) -> (n, groups, all that a group holds)."""
    n, p, c = x.shape
    return x.reshape(n, p, count, c // count).transpose(0, 2, 1, 3).reshape(n, count, -1)


def ungroup(x, like, count=2):
    n, p, c = like.shape
    return x.reshape(n, count, p, c // count).transpose(0, 2, 1, 3).reshape(n, p, c)


def group_norm_forward(g, b, x):
    xhat, rstd = standardise(groups(x), -1)
    return g * ungroup(xhat, x) + b, (g, x, xhat, rstd)


def group_norm_backward(r, dy, **paths):
    g, x, xhat, rstd = r
    dx = ungroup(through_standardise(xhat, rstd, groups(dy * g), -1, **paths), x)
    return (dy * ungroup(xhat, x)).sum((0, 1)), dy.sum((0, 1)), dx


def group_norm_reference(g, b, x):
    halves = jnp.split(x, 2, -1)
    mean = [h.mean((1, 2), keepdims=True) for h in halves]
    var = [((h - m) ** 2).mean((1, 2), keepdims=True) for h, m in zip(halves, mean, strict=True)]
    normed = [(h - m) / jnp.sqrt(v + EPS) for h, m, v in zip(halves, mean, var, strict=True)]
    return jnp.concatenate(normed, -1) * g + b


GROUP = Op("group_norm", group_norm_reference, group_norm_forward, group_norm_backward, normals((6,), (6,), (3, 7, 6)))


def group_dx_per_channel(r, dy):
    """The two means taken over the pixels of one channel, where they belong over the group."""
    g, x, xhat, rstd = r
    each = jnp.repeat(rstd, 3, 1).swapaxes(1, 2)
    return through_standardise(ungroup(xhat, x), each, dy * g, 1)


others = [
    BATCH.wrong("mean path dropped", partial(batch_norm_backward, mean_path=0), "term constant"),
    BATCH.wrong(
        "backward pass of evaluation mode", partial(batch_norm_backward, mean_path=0, variance_path=0), "term constant"
    ),
    BATCH.plain(
        "mean under stop_gradient",
        lambda g, b, x: g * (x - lax.stop_gradient(x.mean(0))) * lax.rsqrt(x.var(0) + EPS) + b,
        "term constant",
    ),
    BATCH.wrong("variance path with n - 1", partial(batch_norm_backward, variance_path=7 / 6), "term factor"),
    BATCH.wrong("dgain and dbias swapped", lambda r, dy: tuple(BATCH.backward(r, dy)[i] for i in (1, 0, 2)), "swapped"),
    BATCH.wrong(
        "statistics over the features in dx",
        with_dx(BATCH, lambda r, dy: through_standardise(r[2], r[3], dy * r[0], 1)),
        "? transposed",
    ),
    BATCH.wrong(
        "dg without rstd of the residual",
        lambda r, dy: ((dy * r[2] / r[3]).sum(0), *BATCH.backward(r, dy)[1:]),
        "residual row ?",
    ),
    GROUP.wrong("variance path dropped", partial(group_norm_backward, variance_path=0), "term constant"),
    GROUP.wrong("means of dx per channel, not per group", with_dx(GROUP, group_dx_per_channel), "term sum"),
    GROUP.wrong(
        "count of pixels alone in the means", partial(group_norm_backward, mean_path=3, variance_path=3), "term factor"
    ),
    GROUP.edit("dg summed over the batch, averaged over pixels", 0, lambda dg: dg / 7, "factor"),
]

# ── Vectors of length one ────────────────────────────────────────────────────────────────────────────────────────────


def l2_forward(x, eps=1e-6):
    n = jnp.sqrt((x**2).sum(-1, keepdims=True) + eps)
    return x / n, (x, n)


L2 = Op(
    "l2 normalise",
    lambda x: x * lax.rsqrt(jnp.sum(jnp.square(x), -1, keepdims=True) + 1e-6),
    l2_forward,
    lambda r, dy: ((dy - r[0] * (dy * r[0]).sum(-1, keepdims=True) / r[1] ** 2) / r[1],),
    normals((7, 5)),
)


def norm_reference(x):
    square = jnp.sum(x**2, -1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def norm_forward(x):
    n = norm_reference(x)
    return n, (x, n)


def norm_backward(r, dy):
    x, n = r
    unit = jnp.where(n[:, None] > 0, x / jnp.where(n > 0, n, 1)[:, None], 0)
    return (dy[:, None] * unit,)


NORM = Op("norm", norm_reference, norm_forward, norm_backward, normals((7, 5)))


def cosine_forward(x, z, eps=1e-6):
    nx, nz = (jnp.sqrt((u**2).sum(-1, keepdims=True) + eps) for u in (x, z))
    return (x * z).sum(-1) / (nx * nz)[:, 0], (x, z, nx, nz)


def cosine_backward(r, dy, path=1.0):
    x, z, nx, nz = r
    c = (x * z).sum(-1, keepdims=True) / (nx * nz)
    dx = z / (nx * nz) - path * c * x / nx**2
    dz = x / (nx * nz) - path * c * z / nz**2
    return dy[:, None] * dx, dy[:, None] * dz


def cosine_reference(x, z, eps=1e-6):
    unit = lambda u: u / jnp.sqrt(jnp.sum(u * u, -1, keepdims=True) + eps)
    return jnp.sum(unit(x) * unit(z), -1)


COSINE = Op("cosine similarity", cosine_reference, cosine_forward, cosine_backward, normals((7, 5), (7, 5)))


def weight_norm_forward(v, g, x):
    n = jnp.sqrt((v**2).sum(0))
    return x @ (v * g / n), (v, g, x, n)


def weight_norm_backward(r, dy, path=1.0):
    v, g, x, n = r
    dw = x.T @ dy
    dg = (dw * v).sum(0) / n
    return g / n * dw - path * g * dg / n**2 * v, dg, dy @ (v * g / n).T


WEIGHT = Op(
    "weight norm",
    lambda v, g, x: x @ (g * v / jnp.linalg.norm(v, axis=0)),
    weight_norm_forward,
    weight_norm_backward,
    normals((5, 3), (3,), (7, 5)),
)
lengths = [
    L2.wrong("norm taken as constant", lambda r, dy: (dy / r[1],), "term constant"),
    L2.wrong(
        "norm for its square in the projection",
        lambda r, dy: ((dy - r[0] * (dy * r[0]).sum(-1, keepdims=True) / r[1]) / r[1],),
        "term ?",
    ),
    L2.wrong(
        "projection by x, not by the unit vector",
        lambda r, dy: ((dy - r[0] * (dy * r[0]).sum(-1, keepdims=True)) / r[1],),
        "term residual",
    ),
    L2.plain(
        "norm under stop_gradient",
        lambda x: x * lax.stop_gradient(lax.rsqrt((x**2).sum(-1, keepdims=True) + 1e-6)),
        "term constant",
    ),
    NORM.wrong("twice: derivative of the square", lambda r, dy: (2 * dy[:, None] * r[0] / r[1][:, None],), "factor"),
    NORM.wrong("x not divided by the norm", lambda r, dy: (dy[:, None] * r[0],), "residual row term"),
    NORM.wrong("norm of the whole batch", lambda r, dy: (dy[:, None] * r[0] / jnp.sqrt((r[1] ** 2).sum()),), "row ?"),
    COSINE.wrong("norms taken as constant", partial(cosine_backward, path=0), "term constant"),
    COSINE.wrong("dx and dz swapped", lambda r, dy: cosine_backward(r, dy)[::-1], "swapped"),
    COSINE.wrong(
        "projection of dz along x",
        lambda r, dy: (cosine_backward(r, dy)[0], cosine_backward((r[1], r[0], r[3], r[2]), dy)[1]),
        "? swapped",
    ),
    WEIGHT.wrong("norm taken as constant", partial(weight_norm_backward, path=0), "term constant"),
    WEIGHT.wrong(
        "dg not divided by the norm",
        lambda r, dy: (
            weight_norm_backward(r, dy)[0],
            weight_norm_backward(r, dy)[1] * r[3],
            weight_norm_backward(r, dy)[2],
        ),
        "row ?",
    ),
]

# ── Modulation ───────────────────────────────────────────────────────────────────────────────────────────────────────

FILM = Op(
    "film",
    lambda x, g, b: x * (1 + g[:, None]) + b[:, None],
    lambda x, g, b: (x + x * g[:, None] + b[:, None], (x, g)),
    lambda r, dy: (dy * (1 + r[1][:, None]), (dy * r[0]).sum(1), dy.sum(1)),
    lambda: (normal(0, 3, 7, 5), normal(1, 3, 5), normal(2, 3, 5)),
)
modulation = [
    FILM.wrong("the one of 1 + g forgotten", lambda r, dy: (dy * r[1][:, None], *FILM.backward(r, dy)[1:]), "term"),
    FILM.wrong(
        "dg from the modulated x",
        lambda r, dy: (FILM.backward(r, dy)[0], (dy * r[0] * (1 + r[1][:, None])).sum(1), dy.sum(1)),
        "residual ?",
    ),
]

OPS = [LAYER, RMS, BATCH, GROUP, L2, NORM, COSINE, WEIGHT, FILM]
WRONG = layer + rms + others + lengths + modulation
