"""The device that a run was asked to use, never another."""

from __future__ import annotations

import jax

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


def describe(device: jax.Device) -> str:
    return f"{device.device_kind} ({device.platform}), jax {jax.__version__}"
