"""Pictures made new on the device: cropped, mirrored, cut out, mixed. Each is a pure function of a key.

    draw = augmented(white, *moments(train_x, white), flip=True, crop=4, mix=0.2)
    step = Step(objective, optimizer, 128, seed, draw)              the data: (train_x as bytes, targets)

The key of a batch is one of (seed, step), so a batch can be drawn again, bit for bit, on one device or on a mesh.
x is [examples, height, width, channels]; each example has draws of its own. What moves pixels alone is done with bytes:
a quarter of the memory traffic, and what comes in from outside a picture is black.

Targets may be labels, or distributions over the classes, which `mixup` wants: `jax.nn.one_hot`. To smooth them is an
option of the cost, `ops.softmax_cross_entropy(label_smoothing=0.1)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from manual_backprop.errors import InputError
from manual_backprop.training.loop import examples


def random_crop(key, x, padding: int):
    """A window of each picture's own size out of the picture with so many black pixels around it.

    All (2 padding + 1)² windows are equally likely.  (Krizhevsky, Sutskever & Hinton 2012; the padding of He et al.
    2015, arXiv:1512.03385.)  Of gathers, masked sums and slices, slices were the fastest on a CPU.
    """
    _want_pictures("random_crop", x)
    _want_within("random_crop: padding", padding, 0, min(x.shape[1:3]) - 1)
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    corners = jax.random.randint(key, (len(x), 2), 0, 2 * padding + 1)
    return jax.vmap(lambda one, at: lax.dynamic_slice(one, (*at, 0), x.shape[1:]))(padded, corners)


def random_flip(key, x):
    """Each picture, or its mirror image, left for right: one as likely as the other."""
    _want_pictures("random_flip", x)
    flipped = jax.random.bernoulli(key, 0.5, (len(x), 1, 1, 1))
    return jnp.where(flipped, x[:, :, ::-1], x)


def cutout(key, x, size: int):
    """Each picture with a square of zeros in it, centred at any of its pixels.

    size: the square's side; near an edge less of it is seen.  (DeVries & Taylor 2017, arXiv:1708.04552.)
    """
    _want_pictures("cutout", x)
    n, height, width, _ = x.shape
    _want_within("cutout: size", size, 0, min(height, width))
    by_height, by_width = jax.random.split(key)
    first = [jax.random.randint(k, (n, 1), 0, m) - size // 2 for k, m in ((by_height, height), (by_width, width))]
    rows, columns = ((at <= i) & (i < at + size) for at, i in zip(first, map(jnp.arange, (height, width)), strict=True))
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], 0, x)


def mixup(key, x, targets, alpha: float):
    """λ x + (1 - λ) x′ and λ t + (1 - λ) t′: x′, t′ are the batch in another order, λ ~ Beta(α, α) for each example.

    x of floating point, targets t [examples, classes]: distributions, as what comes out.
    (Zhang, Cissé, Dauphin & Lopez-Paz 2018, arXiv:1710.09412.)
    """
    _want_pictures("mixup", x)
    if not alpha > 0:
        raise InputError(f"mixup: alpha is {alpha}; wants a number above 0, such as 0.2")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(f"mixup: x is {x.dtype}; wants floating point: standardised(x, mean, std, white)")
    if targets.ndim != 2 or len(targets) != len(x) or not jnp.issubdtype(targets.dtype, jnp.floating):
        raise InputError(
            f"mixup: targets are {targets.dtype}{list(targets.shape)} for {len(x)} pictures; wants distributions "
            "[examples, classes], such as jax.nn.one_hot(labels, classes)"
        )
    by_order, by_share = jax.random.split(key)
    order = jax.random.permutation(by_order, len(x))
    share = jax.random.beta(by_share, alpha, alpha, (len(x),), jnp.float32)

    def mixed(a):
        own = share.astype(a.dtype).reshape(-1, *[1] * (a.ndim - 1))
        return own * a + (1 - own) * a[order]

    return mixed(x), mixed(targets)


def standardised(x, mean: Sequence[float], std: Sequence[float], white: int = 1):
    """(x / white - mean) / std in float32, with a mean and a standard deviation for each channel.

    Written as a difference and a product, which every program rounds alike.
    """
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    if mean.shape != x.shape[-1:] or std.shape != mean.shape or not (std > 0).all():
        raise InputError(
            f"standardised: mean {mean.tolist()}, std {std.tolist()} for {x.shape[-1]} channels; wants one of each for "
            "each channel, and no std of 0"
        )
    return (x.astype(jnp.float32) - np.float32(white * mean)) * np.float32(1 / (white * std))


def moments(x: np.ndarray, white: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the standard deviation of each channel, of bytes [n, height, width, channels] as 0 … 1.

    From how often each level occurs, a thousand pictures at a time: no large array of numbers is made.
    A channel of one level has the deviation 1.
    """
    levels, (*_, channels) = np.arange(256) / white, x.shape
    counts = np.zeros((channels, 256))
    for first in range(0, len(x), 1000):
        for channel in range(channels):
            counts[channel] += np.bincount(x[first : first + 1000, ..., channel].ravel(), minlength=256)
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ levels
    std = np.sqrt(np.sum(share * (levels - mean[:, None]) ** 2, 1))
    return tuple(mean.tolist()), tuple(np.where(share.max(1) < 1, std, 1).tolist())


def augmented(
    white: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    flip: bool = False,
    crop: int = 0,
    cut: int = 0,
    mix: float = 0.0,
) -> Callable:
    """`draw(key, data, n)` for `training.loop.Step`: examples of (bytes, targets), standardised and made new.

    flip: mirror half of them.  crop: the padding of `random_crop`.  cut: the side of `cutout`'s square, which has the
    mean colour.  mix: the α of `mixup`, for targets that are distributions.  0 leaves any of them out.
    Each has a key of its own: with one left out, the others draw the same.
    """

    def draw(key, data, n: int):
        chosen, *keys = jax.random.split(key, 5)
        x, targets = examples(chosen, data, n)
        x = random_crop(keys[0], x, crop) if crop else x
        x = random_flip(keys[1], x) if flip else x
        x = standardised(x, mean, std, white)
        x = cutout(keys[2], x, cut) if cut else x
        return mixup(keys[3], x, targets, mix) if mix else (x, targets)

    return draw


def both_ways(logits: Callable) -> Callable:
    """x → the mean of logits(x) and of logits(x mirrored): what a network says that need not know left from right."""

    def averaged(x):
        _want_pictures("both_ways", x)
        return (logits(x) + logits(x[:, :, ::-1])) / 2

    return averaged


def _want_pictures(who: str, x) -> None:
    if x.ndim != 4:
        raise InputError(f"{who}: x has shape {x.shape}; wants [examples, height, width, channels]")


def _want_within(who: str, n: int, least: int, most: int) -> None:
    if not least <= n <= most:
        raise InputError(f"{who} is {n}; wants {least} … {most} for pictures of this size")
