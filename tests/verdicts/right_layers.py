"""Right layers: convolutions, norms, pools, activations, losses, resizing."""

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from .right_case import Right, drawn, integers, normal, picked, rule, size, uniform

col = lambda x: x[..., None]
LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolver(**options):
    conv = lambda x, w: jax.lax.conv_general_dilated(x, w, dimension_numbers=LAYOUT, **options)
    transposed = lambda r, dy: (
        jax.linear_transpose(lambda x: conv(x, r[1]), r[0])(dy)
        + jax.linear_transpose(lambda w: conv(r[0], w), r[1])(dy)
    )
    return conv, (lambda x, w: (conv(x, w), (x, w)), transposed)


strided, strided_pair = convolver(window_strides=(2, 2), padding=((1, 1), (1, 1)))
dilated, dilated_pair = convolver(window_strides=(1, 1), padding="SAME", rhs_dilation=(2, 2))


def taps(x, w):
    """Depthwise, one tap after another."""
    h, v = w.shape[:2]
    p = jnp.pad(x, ((0, 0), (h // 2, h // 2), (v // 2, v // 2), (0, 0)))
    return [(i, j, p[:, i : i + x.shape[1], j : j + x.shape[2]]) for i in range(h) for j in range(v)]


def depthwise_forward(x, w):
    return sum(part * w[i, j] for i, j, part in taps(x, w)), (x, w)


def depthwise_backward(residuals, dy):
    x, w = residuals
    turned = w[::-1, ::-1]
    dx = sum(part * turned[i, j] for i, j, part in taps(dy, w))
    return dx, jnp.stack([(part * dy).sum((0, 1, 2)) for _, _, part in taps(x, w)]).reshape(w.shape)


def depthwise(x, w):
    return jax.lax.conv_general_dilated(
        x, w[:, :, None], (1, 1), "SAME", dimension_numbers=LAYOUT, feature_group_count=x.shape[-1]
    )


def batch_norm(x, gain, bias):
    return (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-3) * gain + bias


def batch_norm_forward(x, gain, bias):
    scale = size(x.T).T
    z = x / scale
    gap = z - z.mean(0)
    rstd = jax.lax.rsqrt((gap * gap).mean(0) + 1e-3 / scale[0] / scale[0])
    return gap * rstd * gain + bias, (gap * rstd, rstd / scale[0], gain)


def batch_norm_backward(residuals, dy):
    unit, rstd, gain = residuals
    dgain, dbias = (dy * unit).sum(0), dy.sum(0)
    return gain * rstd * (dy - dbias / len(dy) - unit * dgain / len(dy)), dgain, dbias


def group_norm(x, gain, groups=2):
    z = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
    z = (z - z.mean((1, 3), keepdims=True)) / jnp.sqrt(z.var((1, 3), keepdims=True) + 1e-3)
    return z.reshape(x.shape) * gain


def group_norm_forward(x, gain, groups=2):
    z = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
    gap = z - z.mean((1, 3), keepdims=True)
    rstd = jax.lax.rsqrt((gap * gap).mean((1, 3), keepdims=True) + 1e-3)
    return (gap * rstd).reshape(x.shape) * gain, (gap * rstd, rstd, gain)


def group_norm_backward(residuals, dy):
    unit, rstd, gain = residuals
    g = (dy * gain).reshape(unit.shape)
    mean = lambda z: z.mean((1, 3), keepdims=True)
    dx = rstd * (g - mean(g) - unit * mean(g * unit))
    return dx.reshape(dy.shape), (dy * unit.reshape(dy.shape)).sum((0, 1))


def gelu_tanh_backward(x, dy):
    c = (2 / jnp.pi) ** 0.5
    z = c * x * (1 + 0.044715 * x * x)
    s = jax.nn.sigmoid(2 * z)
    bell = jnp.where(jnp.abs(x) < 30, 2 * s * jax.nn.sigmoid(-2 * z) * c * x * (1 + 3 * 0.044715 * x * x), 0)
    return (dy * (s + bell),)


def mish_backward(x, dy):
    t = jnp.tanh(jax.nn.softplus(x))
    return (dy * (t + x * jax.nn.sigmoid(x) * (1 - t) * (1 + t)),)


def glu_backward(residuals, dy):
    a, s = residuals
    return (jnp.concatenate([dy * s, dy * a * s * (1 - s)], -1),)


def average_pool(x):
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4


def average_forward(x):
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4)), None


def upsample(dy):
    return jnp.repeat(jnp.repeat(dy, 2, 1), 2, 2)


def shuffle(x, r=2):
    n, h, w, c = x.shape
    return x.reshape(n, h, w, r, r, c // r**2).transpose(0, 1, 3, 2, 4, 5).reshape(n, h * r, w * r, c // r**2)


def unshuffle(dy, r=2):
    n, h, w, c = dy.shape
    return dy.reshape(n, h // r, r, w // r, r, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, h // r, w // r, c * r * r)


def weights(n, m, dtype):
    """The matrix of a linear resize."""
    return jax.image.resize(jnp.eye(n, dtype=dtype), (m, n), "linear", antialias=False)


def smooth_cost(x, labels, smoothing=0.1):
    target = (1 - smoothing) * jax.nn.one_hot(labels, x.shape[-1], dtype=x.dtype) + smoothing / x.shape[-1]
    return -(target * jax.nn.log_softmax(x)).sum(-1).mean()


def smooth_forward(x, labels, smoothing=0.1):
    each = logsumexp(x, axis=-1) - (1 - smoothing) * picked(x, labels) - smoothing * x.mean(-1)
    return each.mean(), (x, labels)


def smooth_backward(residuals, dy, smoothing=0.1):
    x, labels = residuals
    target = (1 - smoothing) * jax.nn.one_hot(labels, x.shape[-1], dtype=x.dtype) + smoothing / x.shape[-1]
    return (jax.nn.softmax(x) - target) * dy / len(x), None


def binary_forward(x, t):
    return jnp.maximum(x, 0) - x * t + jnp.log1p(jnp.exp(-jnp.abs(x))), (x, t)


def focal(x):
    p = jax.nn.sigmoid(x)
    return (1 - p) ** 2 * jax.nn.softplus(-x)


def focal_backward(x, dy):
    p, q = jax.nn.sigmoid(x), jax.nn.sigmoid(-x)
    return (-dy * q * q * (2 * p * jax.nn.softplus(-x) + q),)


def contrastive(a, b):
    """Each row of a finds its own row of b, and the other way round."""
    s = a @ b.T
    return -(jnp.diag(jax.nn.log_softmax(s)) + jnp.diag(jax.nn.log_softmax(s, 0))).mean()


def contrastive_backward(residuals, dy):
    a, b = residuals
    s = a @ b.T
    ds = (jax.nn.softmax(s) + jax.nn.softmax(s, 0) - 2 * jnp.eye(len(s), dtype=s.dtype)) * dy / len(s)
    return ds @ b, ds.T @ a


def sparsemax(x):
    z = jnp.sort(x, -1)[..., ::-1]
    k = jnp.arange(1, x.shape[-1] + 1)
    threshold = (jnp.cumsum(z, -1) - 1) / k.astype(x.dtype)
    count = (z > threshold).sum(-1, keepdims=True)
    return jnp.maximum(x - jnp.take_along_axis(threshold, count - 1, -1), 0)


def sparsemax_backward(on, dy):
    g = jnp.where(on, dy, 0)
    return (jnp.where(on, g - g.sum(-1, keepdims=True) / on.sum(-1, keepdims=True), 0),)


LAYERS = [
    Right(
        "conv, stride 2, padded",
        strided_pair,
        lambda x, w: sum(
            jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))[:, i : i + x.shape[1] : 2, j : j + x.shape[2] : 2] @ w[i, j]
            for i in range(3)
            for j in range(3)
        ),
        **drawn(lambda seed: (normal(seed, 2, 6, 8, 3), normal(seed + 1, 3, 3, 3, 4))),
    ),
    Right(
        "conv, dilated",
        dilated_pair,
        lambda x, w: sum(
            jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))[:, 2 * i : 2 * i + x.shape[1], 2 * j : 2 * j + x.shape[2]]
            @ w[i, j]
            for i in range(3)
            for j in range(3)
        ),
        **drawn(lambda seed: (normal(seed, 2, 6, 7, 3), normal(seed + 1, 3, 3, 3, 2))),
    ),
    Right(
        "conv, depthwise, tap by tap",
        (depthwise_forward, depthwise_backward),
        depthwise,
        lambda: (normal(2, 2, 5, 6, 3), normal(3, 3, 3, 3)),
    ),
    Right(
        "batch norm",
        (batch_norm_forward, batch_norm_backward),
        batch_norm,
        lambda: (normal(4, 10, 4, shift=1), normal(5, 4), normal(6, 4)),
        why_hard="sums over the batch; a batch of one",
    ),
    Right(
        "group norm",
        rule(group_norm_forward, group_norm_backward),
        group_norm,
        **drawn(lambda seed: (normal(seed, 3, 5, 6), normal(seed + 1, 6))),
    ),
    Right(
        "gelu by tanh",
        (lambda x: (jax.nn.gelu(x), x), gelu_tanh_backward),
        jax.nn.gelu,
        lambda: (normal(7, 4, 9, scale=2),),
        why_hard="a sigmoid for the tanh; cubes of large numbers",
    ),
    Right(
        "mish",
        (lambda x: (x * jnp.tanh(jax.nn.softplus(x)), x), mish_backward),
        jax.nn.mish,
        lambda: (normal(8, 4, 9, scale=2),),
        why_hard="1 - t^2 near one",
    ),
    Right(
        "glu",
        (
            lambda x: (jax.nn.glu(x), (x[..., : x.shape[-1] // 2], jax.nn.sigmoid(x[..., x.shape[-1] // 2 :]))),
            glu_backward,
        ),
        jax.nn.glu,
        lambda: (normal(9, 4, 10),),
    ),
    Right(
        "elu, its slope from the value",
        (lambda x: (jax.nn.elu(x),) * 2, lambda y, dy: (jnp.where(y > 0, dy, dy * (y + 1)),)),
        jax.nn.elu,
        lambda: (normal(10, 4, 9, scale=3),),
        why_hard="y + 1 cancels where y is -1; a kink in the slope at zero",
    ),
    Right(
        "selu",
        rule(
            lambda x: (jax.nn.selu(x), x),
            lambda x, dy: (
                1.0507009873554805 * dy * jnp.where(x > 0, 1, 1.6732632423543772 * jnp.exp(jnp.minimum(x, 0))),
            ),
        ),
        jax.nn.selu,
        **drawn(lambda seed: (normal(seed, 4, 9, scale=3),)),
    ),
    Right(
        "average pool",
        (average_forward, lambda _, dy: (upsample(dy) / 4,)),
        average_pool,
        lambda: (normal(11, 2, 4, 6, 3),),
    ),
    Right(
        "nearest upsampling",
        (lambda x: (upsample(x), None), lambda _, dy: (4 * average_forward(dy)[0],)),
        lambda x: jax.image.resize(x, (x.shape[0], 2 * x.shape[1], 2 * x.shape[2], x.shape[3]), "nearest"),
        lambda: (normal(12, 2, 3, 4, 2),),
    ),
    Right(
        "linear resize by two matrices",
        lambda x: jnp.einsum("hi,wj,nijc->nhwc", weights(x.shape[1], 7, x.dtype), weights(x.shape[2], 9, x.dtype), x),
        lambda x: jax.image.resize(x, (x.shape[0], 7, 9, x.shape[3]), "linear", antialias=False),
        lambda: (normal(13, 2, 4, 5, 3),),
    ),
    Right(
        "pixel shuffle",
        rule(lambda x: (shuffle(x), None), lambda _, dy: (unshuffle(dy),)),
        shuffle,
        lambda: (normal(14, 2, 3, 2, 8),),
    ),
    Right(
        "cross-entropy, labels smoothed",
        (smooth_forward, smooth_backward),
        smooth_cost,
        **drawn(lambda seed: (normal(seed, 5, 6), integers(seed, 5, high=6))),
    ),
    Right(
        "binary cross-entropy of logits",
        rule(binary_forward, lambda r, dy: (dy * (jax.nn.sigmoid(r[0]) - r[1]), -dy * r[0])),
        jax.vmap(lambda x, t: -t * jax.nn.log_sigmoid(x) - (1 - t) * jax.nn.log_sigmoid(-x)),
        lambda: (normal(15, 4, 9, scale=5), uniform(16, 4, 9)),
        why_hard="cancelling terms for large logits",
    ),
    Right(
        "focal loss",
        (lambda x: (focal(x), x), focal_backward),
        lambda x: -((1 - jax.nn.sigmoid(x)) ** 2) * jax.nn.log_sigmoid(x),
        lambda: (normal(17, 4, 9, scale=4),),
        why_hard="the reference's 1 - p cancels",
    ),
    Right(
        "contrastive loss",
        (lambda a, b: (contrastive(a, b), (a, b)), contrastive_backward),
        contrastive,
        **drawn(lambda seed: (normal(seed, 5, 4), normal(seed + 1, 5, 4))),
        why_hard="softmax over rows and over columns",
    ),
    Right(
        "squared error, its mean over an axis",
        (lambda a, b: (((a - b) ** 2).mean(-1), a - b), lambda d, dy: (g := 2 * col(dy) * d / d.shape[-1], -g)),
        jax.vmap(lambda a, b: (a * a - 2 * a * b + b * b).mean()),
        lambda: (normal(20, 4, 6, shift=30), normal(21, 4, 6, shift=30)),
        why_hard="the reference's value cancels",
    ),
    Right(
        "sparsemax",
        (lambda x: (sparsemax(x), sparsemax(x) > 0), sparsemax_backward),
        sparsemax,
        **drawn(lambda seed: (normal(seed, 5, 7),)),
        why_hard="exact zeros; the residual is a bool",
    ),
]
