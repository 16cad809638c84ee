"""What the bits of a run depend on besides its configuration: packages, device, topology. And where it computes."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

import manual_backprop as mb
from manual_backprop.errors import InputError
from manual_backprop.training import hosts, sharding
from manual_backprop.training.config import Config, Hosts
from manual_backprop.training.devices import device

NAMED = ("jax", "jaxlib", "numpy", "optax", "orbax-checkpoint", "flax")
SAME_BITS = ("lock", "python", "machine", "device", "devices", "processes", "mesh", "arrangement", "settings", "data")
SETTINGS = ("XLA_FLAGS", "JAX_", "NVIDIA_TF32_OVERRIDE")  # variables of the environment
NO_SETTINGS = ("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE", "JAX_COORDINATOR", "JAX_NUM_CPU", "JAX_PLATFORMS")


@contextmanager
def place(config: Config) -> Iterator[Mesh]:
    """The mesh that a run computes on, of one device unless it is told otherwise; within it, JAX's default device.

    Compiled programs are kept. Raises InputError for devices that are not there, and where processes do not meet.
    """
    compiled_programs_in(config.cache)
    axes = sharding.axes(config.mesh) if config.mesh else {"data": 1}
    wanted = math.prod(axes.values())
    if config.hosts.count > 1 or wanted > 1:
        with suppress(RuntimeError):  # there are devices already: `mesh_of` says if they are too few
            jax.config.update("jax_num_cpu_devices", -(-wanted // config.hosts.count))
    if wanted % config.hosts.count:
        raise InputError(
            f"--hosts.count {config.hosts.count}: so many processes do not divide the {wanted} devices of --mesh "
            f"{config.mesh}; wants, say, --mesh data={config.hosts.count}"
        )
    if config.hosts != Hosts():
        address, count, index, cluster = dataclasses.astuple(config.hosts)
        same = dataclasses.asdict(dataclasses.replace(config, hosts=Hosts()))
        hosts.join(*(None, None, None) if cluster else (address, count, index), configuration=same)
        if wanted % jax.process_count():
            raise InputError(
                f"--mesh {config.mesh}: {jax.process_count()} processes do not divide its {wanted} devices"
            )
    first = device(config.device)
    if wanted == 1:
        mesh = Mesh(np.array([first]), ("data",), axis_types=(AxisType.Auto,))
    else:
        mesh = sharding.mesh_of(axes, config.device)
    with jax.default_device(jax.local_devices(backend=first.platform)[0]):
        yield mesh
    hosts.leave()  # where an error passes, `run.main` tells the others


def compiled_programs_in(folder: Path | None) -> None:
    """Keeps compiled programs in a folder that nobody else can read or write; by default in the user's cache folder.

    JAX_COMPILATION_CACHE_DIR is left as it is. A folder that cannot be made, or is another user's, is not used.
    """
    if folder is None and jax.config.jax_compilation_cache_dir:
        return
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    chosen = folder or Path(home) / "manual_backprop" / "compiled"
    try:
        chosen.mkdir(mode=0o700, parents=True, exist_ok=True)
        if chosen.stat().st_uid != os.getuid():
            raise PermissionError(1, "it is another user's")
        if not folder:
            chosen.chmod(0o700)
    except OSError as error:
        if folder:
            raise InputError(f"--cache {folder} cannot be used: {error.strerror}") from None
        return
    jax.config.update("jax_compilation_cache_dir", str(chosen))


def environment(experiment: str, config: Config, mesh: Mesh, data: str = "") -> dict[str, Any]:
    """What environment.json holds. data: what was read, in a few words."""
    of_jax = [name for name in sorted(os.environ) if name.startswith(SETTINGS) and not name.startswith(NO_SETTINGS)]
    installed = sorted(f"{found.name}=={found.version}".lower() for found in metadata.distributions())
    versions = {name: metadata.version(name) for name in NAMED}
    one = mesh.devices.flat[0]
    return {
        "experiment": experiment,
        "device": one.device_kind,
        "platform": one.platform,
        "devices": mesh.size,
        "processes": jax.process_count(),
        "mesh": ",".join(f"{name}={size}" for name, size in mesh.shape.items()),
        "arrangement": f"sequence {config.sequence}, {config.stages}",
        "settings": " ".join(f"{name}={os.environ[name]}" for name in of_jax),
        "data": data,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": versions | {"python": platform.python_version(), "manual_backprop": mb.__version__},
        "lock": hashlib.sha256("\n".join(dict.fromkeys(installed)).encode()).hexdigest(),
    }


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Of what the bits depend on."""
    short = lambda value: value[:12] if isinstance(value, str) and len(value) == 64 else value
    return [
        f"{name} {short(old.get(name))}, now {short(new[name])}" for name in SAME_BITS if old.get(name) != new[name]
    ]
