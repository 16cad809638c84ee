"""Several processes that train together, each with its own devices: `jax.distributed`, and who is still there.

The processes meet first, at the address of process 0, over connections of their own: there it shows who is missing, who
came twice, and whose options differ, before JAX waits for anybody. The connections stay. Over them small values are
exchanged, and every process says each second that it lives:

    killed      the kernel closes its connections: the others know at once
    stopped, or its network gone      nothing is heard of it for `patience` seconds

Then all the others end, with one line and the exit code LOST: a collective operation whose partner has gone may wait
for ever. JAX's own service would end them too, by abort() and with a stack trace: after 100 s, or at once where it dies
with process 0, in which it lives. So the others reach it over a relay of their own, which does not tell.

    hosts.join("10.0.0.5:1234", count=4, index=2)       before JAX is used; nothing given: as the cluster says (SLURM …)
    stop = hosts.agreed(asked_to_stop)                  the same answer in all, at the same call
    hosts.leave()                                       when all is done; or hosts.fail(code, line)

Alone, a process needs none of this: then all here is trivial. Connections are neither encrypted nor signed, like JAX's.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from manual_backprop.errors import InputError, want_count
from manual_backprop.training.meeting import LEAVE, Company, arrive, is_loopback, receive, written
from manual_backprop.training.meeting import LOST as LOST  # the exit code of a process that lost another

_company: Company | None = None
_index = 0


# ── what the training calls ──────────────────────────────────────────────────────────────────────────────────────────


def is_first() -> bool:
    """Whether this process is the one that prints, and writes what is written once."""
    return _index == 0


def exchanged(name: str, value: Any) -> list:
    """What every process says, by index; it has to be JSON. Each waits until all have said it, as long as they live.

    Calls of one name meet in their order; calls of different names, as in different threads, do not disturb each other.
    """
    value = json.loads(json.dumps(value))  # alike here and there
    return [value] if _company is None else _company.exchange(name, value)


def barrier(name: str) -> None:
    """Until all processes are there."""
    exchanged(name, None)


def agreed(flag: bool) -> bool:
    """Whether any process says so: all get the same answer at the same call."""
    return any(exchanged("agreed", bool(flag)))


def from_first(make: Callable[[], Any]) -> Any:
    """What process 0 makes, in all of them; it has to be JSON. An InputError of its is raised in all."""
    made, error = None, None
    if is_first():
        try:
            made = make()
        except InputError as problem:
            error = str(problem)
    made, error = exchanged("from_first", [made, error])[0]
    if error is not None:
        raise InputError(error)
    return made


# ── arrays on a mesh that spans processes ────────────────────────────────────────────────────────────────────────────


def spread(tree, shardings):
    """Values that all processes have alike, as arrays where the shardings say; each process fills its own devices.

    Nothing is sent, where `jax.device_put` would compare the values of all. Batches of which each process reads its own
    rows: see `stream`.
    """

    def one(leaf, sharding):
        if _is_key(leaf):
            data = jax.random.key_data(leaf)
            return jax.random.wrap_key_data(one(data, sharding), impl=jax.random.key_impl(leaf))
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(one, tree, shardings)


def gathered(tree):
    """All of every array as numpy's, in every process; of a key its numbers. All processes must call it."""

    def one(leaf):
        if _is_key(leaf):
            leaf = jax.random.key_data(leaf)
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            leaf = process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(one, tree)


def _is_key(leaf) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


# ── to come and to go ────────────────────────────────────────────────────────────────────────────────────────────────


def join(
    address: str | None = None,
    count: int | None = None,
    index: int | None = None,
    configuration: Mapping[str, Any] | None = None,
    wait: float = 120.0,
    patience: float = 20.0,
) -> None:
    """Meets the other processes, and makes their devices one. Before JAX is used for anything else.

    address: HOST:PORT of process 0, free for it to listen at.  count: how many processes.  index: which one this is.
    What is not given is asked of the cluster, where JAX knows it.
    configuration: what has to be the same in all of them.  wait: seconds until all are there.
    patience: seconds without a sign of life, after which a process counts as lost.
    Raises InputError for what does not fit, and where the processes do not find each other.
    """
    global _company, _index
    if _company is not None or jax.distributed.is_initialized():
        raise InputError("hosts: the processes have been joined already; wants to be called once")
    address, count, index = _known(address, count, index, wait)
    if count == 1:
        return
    mine = {"count": count, "jax": jax.__version__, "configuration": _plain(configuration or {})}
    if index == 0:
        lines, port = receive(address, count, mine, wait)
    else:
        line, port = arrive(address, index, mine, wait)
        lines = {0: line}
    _company, _index, host = Company(count, index, lines, patience), index, address[0]
    service = (host, port) if index == 0 else ("127.0.0.1", _relay((host, port)))
    atexit.register(_at_exit)
    sys.excepthook = _on_error
    with suppress(AttributeError):
        jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from the training
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            written(service),
            count,
            index,
            coordinator_bind_address=written(service) if is_loopback(host) else None,
            initialization_timeout=max(1, int(wait)),
            shutdown_timeout_seconds=10,
        )
    except Exception as error:
        raise InputError(f"hosts: JAX cannot join the processes: {str(error).splitlines()[0]}") from None


def leave() -> None:
    """Waits until all processes have come so far, and parts from them."""
    global _company
    if _company is None:
        return
    _company.exchange(LEAVE, None)
    jax.distributed.shutdown()
    _company.part()
    _company = None


def fail(code: int, why: str) -> None:
    """Ends this process because of an error of its own. Where the others do not end likewise, they are told.

    Does nothing for a process that is alone.
    """
    if _company is not None:
        _company.fail(code, why)


def _on_error(kind, error, trace) -> None:
    """For what nobody catches. A collective operation may raise because another process is lost: then that counts."""
    if _company is not None:
        _company.settle()
    sys.__excepthook__(kind, error, trace)
    fail(1, f"{kind.__name__}: {error}")


def _at_exit() -> None:
    fail(1, "it ended without hosts.leave()")


def _known(address, count, index, wait: float) -> tuple[tuple[str, int], int, int]:
    address = address or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if None in (address, count, index):
        address, count, index = _of_cluster(address, count, index, wait)
    count = want_count("hosts: count", count)
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
        raise InputError(f"hosts: index is {index!r}; wants one of 0 … {count - 1}, for there are {count} processes")
    host, _, port = str(address).rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    understood = re.fullmatch(r"[\w.:%-]+", host) and re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 65536
    if not understood or (":" in host and "[" not in address):
        raise InputError(
            f"hosts: address {address!r} is not understood; wants HOST:PORT of process 0, say 10.0.0.5:1234"
        )
    return (host, int(port)), count, index


def _of_cluster(address, count, index, wait: float):
    """What is not given, as JAX knows it. There is no public way to ask without joining."""
    try:
        from jax._src.clusters import ClusterEnv

        found = ClusterEnv.auto_detect_unset_distributed_params(address, count, index, [], None, max(1, int(wait)))[:3]
    except Exception as error:
        raise InputError(f"hosts: the cluster cannot be asked: {error}; give address, count and index") from None
    for what, value in zip(("address", "count", "index"), found, strict=True):
        if value is None:
            raise InputError(f"hosts: {what} is not given, and no cluster is known here that would tell; give it")
    return found


def _plain(tree: Any, at: str = "") -> dict[str, str]:
    """{"save.every": "10"}: in text, to be sent and shown."""
    if not isinstance(tree, Mapping):
        return {at: str(tree)}
    inner = (_plain(value, f"{at}.{key}" if at else str(key)) for key, value in tree.items())
    return {key: value for part in inner for key, value in part.items()}


def _relay(address: tuple[str, int]) -> int:
    """A port of this machine that leads to an address. What ends there does not end here.

    JAX ends a process by abort() as soon as its connection to process 0 breaks; here the watch is to end it.
    """
    server = socket.create_server(("127.0.0.1", 0))
    kept = []  # what nobody refers to any more would be closed

    def serve() -> None:
        while True:
            here = server.accept()[0]
            kept.append(here)
            threading.Thread(target=connect, args=(here,), daemon=True).start()

    def connect(here: socket.socket) -> None:
        while True:
            try:
                there = socket.create_connection(address)
                break
            except OSError:
                time.sleep(0.05)  # process 0 is about to listen
        for one in (here, there):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=pump, args=(there, here), daemon=True).start()
        pump(here, there)
        with suppress(OSError):
            there.shutdown(socket.SHUT_WR)

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)

    threading.Thread(target=serve, name="relay", daemon=True).start()
    return server.getsockname()[1]
