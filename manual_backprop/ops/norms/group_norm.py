"""Group normalisation, and instance normalisation, its case of one channel a group.

x [batch, *positions, channels]; the channels are split into groups of neighbours. For each example and each group,
⟨·⟩ the mean over positions and over the channels of the group:

    y = scale · x̂ + bias,    x̂ = (x - mean) · rstd,    mean = ⟨x⟩,    rstd = 1/√(⟨(x - mean)²⟩ + eps)

The paths are those of `layer_norm`: with g = dy · scale

    dx = rstd · (g - ⟨g⟩ - x̂ · ⟨g · x̂⟩),    dscale = Σ dy · x̂,    dbias = Σ dy      (Σ over batch and positions)

Every ⟨·⟩ is taken in two steps, over the m positions and then over the channels of a group: x is never cut into groups.
In the first step scale and rstd are constant. With p = Σ dy and q = rstd · Σ dy · (x - mean) over the positions,

    ⟨g⟩ = ⟨scale · p / m⟩,    ⟨g · x̂⟩ = ⟨scale · q / m⟩      (⟨·⟩ now over the channels of the group alone)

and summed over the batch p and q are dbias and dscale.

Source: Wu & He 2018, arXiv:1803.08494, eqs. 1-6; Ulyanov, Vedaldi & Lempitsky 2016, arXiv:1607.08022, eq. 5.
Saved: x, and two numbers for each example and group.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from manual_backprop.contract import op
from manual_backprop.errors import InputError, want_count
from manual_backprop.ops.arrays import wide
from manual_backprop.ops.norms.affine import affine, given, result_dtype, taking, want_parameters
from manual_backprop.options import want_not_negative


class Residuals(NamedTuple):
    x: jax.Array  # [batch, *positions, channels]
    scale: jax.Array | None  # [channels]
    bias: jax.Array | None  # [channels]
    mean: jax.Array  # [batch, *1, groups]
    rstd: jax.Array  # [batch, *1, groups]


@op
def group_norm(*, groups: int = 32, eps: float = 1e-5, scale: bool = True, bias: bool = True):
    """x [batch, *positions, channels], scale [channels], bias [channels] → y; statistics for each example and group.

    `scale=False` and `bias=False` take no such argument. Statistics in at least float32, in two passes.
    Derivation: the module, from  dx = rstd · (g - ⟨g⟩ - x̂ · ⟨g · x̂⟩);  Saved: x, mean, rstd.  (Wu & He 2018.)
    Raises InputError when groups do not divide the channels, when scale or bias do not fit them, for a negative eps.
    """
    groups = want_count("group_norm: groups", groups)

    def groups_of(x):
        check("group_norm", x)
        if x.shape[-1] % groups:
            raise InputError(f"group_norm: x has {x.shape[-1]} channels; wants a multiple of {groups}, the groups")
        return groups

    return by_groups("group_norm", groups_of, eps, scale, bias)


@op
def instance_norm(*, eps: float = 1e-5, scale: bool = True, bias: bool = True):
    """x [batch, *positions, channels], scale [channels], bias [channels] → y; statistics for each example and channel.

    `scale=False` and `bias=False` take no such argument. Statistics in at least float32, in two passes.
    Derivation: the module, from  dx = rstd · (g - ⟨g⟩ - x̂ · ⟨g · x̂⟩);  Saved: x, mean, rstd.  (Ulyanov et al. 2016.)
    Raises InputError where a statistic has one value alone, when scale or bias do not fit, for a negative eps.
    """

    def groups_of(x):
        check("instance_norm", x)
        if math.prod(x.shape[1:-1]) == 1:
            raise InputError(f"instance_norm: x has shape {x.shape}, one position; a variance wants at least two")
        return x.shape[-1]

    return by_groups("instance_norm", groups_of, eps, scale, bias)


def by_groups(name: str, groups_of: Callable, eps: float, scale: bool, bias: bool):
    """The pair of both ops. groups_of(x): how many groups x's channels make."""
    want_not_negative(name, eps=eps)

    def forward(x, scale, bias):
        groups, channels = groups_of(x), x.shape[-1]
        want_parameters(name, x, (channels,), scale=scale, bias=bias)
        positions = tuple(range(1, x.ndim - 1))
        x_ = wide(x)
        mean = pool(jnp.mean(x_, positions, keepdims=True), groups)
        centred = x_ - spread(mean, channels)
        rstd = lax.rsqrt(pool(jnp.mean(jnp.square(centred), positions, keepdims=True), groups) + eps)
        y = affine(centred * spread(rstd, channels), scale, bias)
        return y.astype(result_dtype(x, scale, bias)), Residuals(x, scale, bias, mean, rstd)

    def backward(residuals, dy):
        x, scale, bias, mean, rstd = residuals
        groups, channels = mean.shape[-1], x.shape[-1]
        positions = tuple(range(1, x.ndim - 1))
        m = math.prod(x.shape[1:-1])
        dy, rstd = wide(dy), spread(rstd, channels)
        centred = wide(x) - spread(mean, channels)
        p = jnp.sum(dy, positions, keepdims=True)
        q = jnp.sum(dy * centred, positions, keepdims=True) * rstd
        weight = 1 if scale is None else scale
        mean_g = spread(pool(weight * p / m, groups), channels)
        mean_g_x_hat = spread(pool(weight * q / m, groups), channels)
        dx = rstd * (weight * dy - mean_g - centred * (rstd * mean_g_x_hat))
        leading = tuple(range(x.ndim - 1))
        dscale = None if scale is None else jnp.sum(q, leading).astype(scale.dtype)
        dbias = None if bias is None else jnp.sum(p, leading).astype(bias.dtype)
        return given(dx.astype(x.dtype), dscale, dbias)

    return taking(forward, scale, bias), backward


def pool(v, groups: int) -> jax.Array:
    """The mean over the channels of each group: [..., channels] → [..., groups]."""
    return jnp.mean(v.reshape(*v.shape[:-1], groups, v.shape[-1] // groups), -1)


def spread(v, channels: int) -> jax.Array:
    """To every channel what its group has: [..., groups] → [..., channels]."""
    return jnp.repeat(v, channels // v.shape[-1], -1)


def check(op: str, x) -> None:
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise InputError(f"{op}: x has shape {x.shape}; wants [batch, *positions, channels], none but the batch empty")
