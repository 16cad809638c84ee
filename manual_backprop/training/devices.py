"""The device that a run was asked to use, never another."""

from __future__ import annotations

import jax

from manual_backprop.contract import InputError


def device(platform: str | None) -> jax.Device:
    """The first device of a platform (cpu, gpu or tpu); None: JAX's default. Raises InputError when there is none."""
    try:
        return jax.devices(platform)[0]
    except RuntimeError as error:
        if "Unknown backend" in str(error) or "not found" in str(error) or platform is None:
            found = ", ".join(sorted({d.platform for d in jax.devices()})) if platform else "none"
            raise InputError(f"device {platform!r}: this machine, with this jax, has none; found: {found}") from None
        raise InputError(f"device {platform!r}: {str(error).splitlines()[0]}") from None


def describe(device: jax.Device) -> str:
    return f"{device.device_kind} ({device.platform}), jax {jax.__version__}"
