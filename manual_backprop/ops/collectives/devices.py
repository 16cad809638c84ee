"""What the collectives share: the axis of devices, parts of an array, and JAX's types of what differs by device.

Along an axis of a mesh an array is one of four things. Its cotangent is the thing on the right:

    whole      every device holds the same value               whole: every device holds the same ∂C/∂x
    cut        a device holds its own part along one `dim`      cut: a device holds ∂C of its own part
    copies     every device holds the value, and goes on by     partial: what came by its own path; ∂C/∂x is their sum,
               a path of its own                                for a value that n devices use has n paths to C
    partial    every device holds a term; x is their sum        copies: ∂C of each term is ∂C of the sum, 1 path each

C itself is whole: one number, counted once, not once a device. A collective turns one thing into another, and its
backward pass turns the cotangent's thing back:

    all_reduce       partial → whole      whole → copies      (nothing is sent)
    copy_to_devices  whole → copies       partial → whole     (an all-reduce; forward, nothing is sent)
    all_gather       cut → copies         partial → cut       (a reduce-scatter)
    reduce_scatter   partial → cut        cut → copies        (an all-gather)
    gather_parts     cut → whole          whole → cut         (nothing is sent)
    own_part         whole → cut          cut → whole         (an all-gather; forward, nothing is sent)
    all_to_all       cut → cut            cut → cut           (an all-to-all)
    collective_permute                                        (the permutation turned round)

Under `jax.shard_map` and under `jax.vmap(axis_name=…)` alike. Sums run in at least float32.
"""

from __future__ import annotations

from contextlib import suppress

import jax
from jax import lax

from manual_backprop.errors import InputError
from manual_backprop.ops.arrays import want_axis, want_float

Axes = str | tuple[str, ...]


def devices(op: str, axis: Axes) -> int:
    """How many devices there are along the axis. Raises InputError where there is none of that name."""
    try:
        return lax.axis_size(axis)
    except NameError:
        raise InputError(
            f"{op}: axis {axis!r} is unknown here; wants the name of an axis of jax.shard_map's mesh, or axis_name of "
            "jax.vmap"
        ) from None


def is_of_mesh(axis: str) -> bool:
    """Whether the axis is one of jax.shard_map's mesh, and not one of jax.vmap's."""
    return axis in jax.sharding.get_abstract_mesh().manual_axes


def want_dim(op: str, x, dim: int) -> int:
    """The dim of x, a float, counted from 0."""
    want_float(op, x=x)
    if not -x.ndim <= dim < x.ndim:
        raise InputError(f"{op}: dim {dim} is out of range; wants -{x.ndim} … {x.ndim - 1} for x of shape {x.shape}")
    return want_axis(op, dim, x.ndim)


def want_parts(op: str, x, dim: int, axis: str) -> tuple[int, int]:
    """The dim counted from 0, and the size of a device's part along it."""
    dim, n = want_dim(op, x, dim), devices(op, axis)
    if x.shape[dim] % n:
        raise InputError(f"{op}: x has shape {x.shape}; the {n} devices of {axis!r} do not divide dim {dim}")
    return dim, x.shape[dim] // n


def summed(x, axis: Axes) -> jax.Array:
    return lax.psum(x, axis)


def gathered(x, axis: str, dim: int) -> jax.Array:
    return lax.all_gather(x, axis, axis=dim, tiled=True)


def gathered_whole(x, axis: str, dim: int) -> jax.Array:
    """As `gathered`, in JAX's types the same value on every device. There are no such types under vmap."""
    to = "invarying" if is_of_mesh(axis) else "varying"
    return lax.all_gather(x, axis, axis=dim, tiled=True, to=to)


def scattered(x, axis: str, dim: int) -> jax.Array:
    return lax.psum_scatter(x, axis, scatter_dimension=dim, tiled=True)


def part(x, axis: str, dim: int) -> jax.Array:
    """The device's own part of what every device has."""
    size = x.shape[dim] // lax.axis_size(axis)
    return lax.dynamic_slice_in_dim(x, lax.axis_index(axis) * size, size, dim)


def varying(x, axis: Axes) -> jax.Array:
    """x, in JAX's types a value that may differ by device; where it is one already, or there are no types, x itself."""
    for name in (axis,) if isinstance(axis, str) else axis:
        with suppress(ValueError):
            x = lax.pcast(x, name, to="varying") if is_of_mesh(name) else x
    return x
