"""A slice of the head of `linear_cross_entropy`: some tokens against some classes. The formulas are derived there."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.ops.arrays import wide_dtype


class Head(NamedTuple):
    label_smoothing: float  # ε
    z_loss: float  # ζ
    softcap: float | None

    def logits(self, h, w) -> tuple[jax.Array, jax.Array | None]:
        """z [tokens, classes] of h [tokens, d] and w [classes, d], and t = tanh(u / softcap) where there is a cap."""
        u = product(h, 1, w, 1)
        if self.softcap is None:
            return u, None
        t = jnp.tanh(u / self.softcap)
        return self.softcap * t, t

    def costs(self, m, total, right, mean) -> jax.Array:
        """c, from the logit of the right class and the mean of all logits; everything [tokens, 1]."""
        e, s = self.label_smoothing, jnp.log(total)
        c = s - (right - m) if not e else s - ((1 - e) * (right - m) + e * (mean - m))
        return c + self.z_loss * jnp.square(m + s) if self.z_loss else c

    def dlogits(self, z, t, m, total, is_label, classes: int) -> jax.Array:
        """du / dc of the slice z; is_label [tokens, classes] is true at the class of the label."""
        e, whole = self.label_smoothing, 1 + 2 * self.z_loss * (m + jnp.log(total)) if self.z_loss else 1
        share = (1 - e) * is_label + e / classes if e else is_label
        slope = jnp.exp(z - m) * (whole / total) - share
        return slope if t is None else slope * ((1 - t) * (1 + t))


def over_largest(dc) -> tuple[jax.Array, jax.Array]:
    """dc over the size of its largest entry, and that size: of 1 / W a narrow dtype may leave nothing, of 1 it does."""
    largest = lax.stop_gradient(jnp.max(jnp.abs(dc), initial=0))
    largest = jnp.where(largest == 0, 1, largest)
    return dc / largest, largest


def product(a, axis_of_a: int, b, axis_of_b: int) -> jax.Array:
    """Σ over one axis of each, in at least float32."""
    wide = wide_dtype(jnp.result_type(a, b))
    return lax.dot_general(a, b, (((axis_of_a,), (axis_of_b,)), ((), ())), preferred_element_type=wide)


def starts(size: int, chunk: int) -> tuple[int, jax.Array, jax.Array]:
    """Slices of one length that cover `size`: (the length, where each starts, where each is new).

    The last one starts early enough to be whole, and is new from where the one before ended.
    """
    length = min(chunk, size)
    new = jnp.arange(0, max(size, 1), max(length, 1))
    return length, jnp.minimum(new, size - length), new


def filled(value: float, shape: tuple[int, ...], dtype, *of) -> jax.Array:
    """What a scan over the slices of these arrays starts from.

    Inside `jax.shard_map` it must vary over the devices as they do, so it is made of them: of none of their entries.
    """
    return jnp.full(shape, value, dtype) + sum(jnp.sum(jnp.ravel(x)[:0], dtype=dtype) for x in of)


def take(x, start, length: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(x, start, length)


def put(x, piece, start) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(x, piece.astype(x.dtype), start, 0)
