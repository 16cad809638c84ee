"""The device that a run was asked to use, never another."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from manual_backprop.errors import InputError


def device(platform: str | None) -> jax.Device:
    """The first device of a platform (cpu, gpu or tpu); None: JAX's default. Raises InputError when there is none."""
    try:
        return jax.devices(platform)[0]
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        if platform is None:
            raise InputError(f"jax has no device: {reason}") from None
        found = ", ".join(sorted({d.platform for d in jax.devices()}))
        raise InputError(
            f"device {platform!r}: this machine, with this jax, has none; found: {found} ({reason})"
        ) from None


def describe(mesh: Mesh) -> str:
    one, axes = mesh.devices.flat[0], ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    several = f"{mesh.size} × " if mesh.size > 1 else ""
    return f"{several}{one.device_kind} ({one.platform}{f', {axes}' if several else ''}), jax {jax.__version__}"


def matmul_rate(used: jax.Device, dtype: str = "float32") -> float:
    """Flops a second of a large matrix product on a device: the limit of a training step."""
    n = 3072 if used.platform == "cpu" else 8192
    return 2 * n**3 / seconds(lambda a: a @ a, jax.device_put(jnp.ones((n, n), dtype), used))


def copy_rate(used: jax.Device) -> float:
    """Bytes a second, read and written, of a large copy on a device."""
    large = jax.device_put(jnp.ones(1 << 25), used)
    return 2 * large.nbytes / seconds(lambda x: x + 1, large)


def seconds(function: Callable, x, rounds: int = 5, budget: float = 2.0) -> float:
    """The shortest time that the compiled function takes, of so many, as long as the budget lasts."""
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(x))
    times = []
    while len(times) < rounds and sum(times) < budget:
        start = time.perf_counter()
        jax.block_until_ready(compiled(x))
        times.append(time.perf_counter() - start)
    return min(times)
