"""Batches of what does not fit on the device: read on the host, ahead of the steps that want them.

A batch is a function of the step alone, as the seed is bound in its source. So nothing of it has to be saved, a step
can be drawn again, and to go on at step 10⁶ costs no more than to begin. A thread makes the chunks that come next while
the device works on this one; how many, and how long they are, changes no value.

    stream = Stream(source, 16, SingleDeviceSharding(device))            or NamedSharding(mesh, of_batch(mesh))
    for chunk in stream.chunks(0, [10, 20, 25]):       each array [10, 16, …], on the device: `lax.scan` walks along it
        ...
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from manual_backprop.errors import InputError, want_count

ALL = slice(None)


@dataclass(frozen=True)
class Source:
    """Examples by their numbers: 0, 1, 2, … without end.

    examples: numbers [n] -> a pytree of NumPy arrays, each [n, …]. A row depends on its number alone. It is called from
    another thread, and raises InputError that names the file for what cannot be read.
    told: what it reads, in a few words.
    """

    examples: Callable[[np.ndarray], Any]
    told: str


@dataclass(frozen=True)
class Stream:
    """The batches of a source: step s has the examples s · batch_size … (s + 1) · batch_size - 1.

    sharding: of each array of a batch, the same in all processes; it names the devices.
    ahead: so many chunks are made, or being made, beside the one that is in use.
    """

    source: Source
    batch_size: int
    sharding: NamedSharding | SingleDeviceSharding
    ahead: int = 2

    def __post_init__(self):
        want_count("batch size", self.batch_size)
        want_count("ahead", self.ahead)

    def batch(self, step: int, rows: slice = ALL):
        """A pytree of NumPy arrays, each [batch_size, …]; or such of their rows alone, and nothing else is read."""
        return self.source.examples(int(step) * self.batch_size + np.arange(self.batch_size)[rows])

    def like(self):
        """The shapes and dtypes of a batch. Reads one example."""
        one = self.batch(0, slice(0, 1))
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((self.batch_size, *leaf.shape[1:]), leaf.dtype), one)

    def chunks(self, first: int, ends: Sequence[int]) -> Iterator[Any]:
        """The batches of the steps `first` … ends[0] - 1, then ends[0] … ends[1] - 1, and so on; stacked, on devices.

        A process reads from the first to the last row that its own devices hold. Raises InputError where the mesh does
        not divide the batch; and what the source raises, when its chunk is due.
        """
        rows, put = placing(self.like(), self.sharding)
        return prefetched(lambda step: self.batch(step, rows), first, ends, put, self.ahead)


def prefetched(
    batch: Callable[[int], Any], first: int, ends: Sequence[int], put: Callable[[Any], Any], ahead: int
) -> Iterator[Any]:
    """put(the stacked batches) of each chunk of steps, in order, made ahead by a thread.

    One, as a second would wait for the interpreter more than it read. `put` is called in it, too, where the caller's
    `jax.default_device` does not hold: it has to name a device.
    No thread is left when the generator ends or is closed, or when an exception such as Ctrl-C passes through it.
    """
    closed = threading.Event()

    def made(start: int, end: int):
        batches = []
        for step in range(start, end):
            if closed.is_set():  # nobody waits for it any more
                return None
            batches.append(batch(step))
        return put(jax.tree.map(lambda *leaves: np.stack(leaves), *batches))

    pending: deque[Future] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        try:
            for start, end in pairwise((int(first), *ends)):
                pending.append(pool.submit(made, start, end))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            closed.set()


def placing(like, sharding: NamedSharding | SingleDeviceSharding) -> tuple[slice, Callable[[Any], Any]]:
    """(rows, put): what this process holds of each batch, and how such rows of a chunk of batches get on its devices.

    like: a batch's shapes and dtypes. What `put` gives are the arrays of all processes together, [steps, batch, …].
    """
    shape = jax.tree.leaves(like)[0].shape
    try:
        held = [index[0].indices(shape[0]) for index in sharding.addressable_devices_indices_map(shape).values()]
    except ValueError:
        mesh = ",".join(f"{name}={size}" for name, size in sharding.mesh.shape.items())
        raise InputError(f"--batch-size {shape[0]}: the mesh {mesh} does not divide it evenly") from None
    first, last = min(begin for begin, *_ in held), max(end for _, end, _ in held)
    stacked = sharding
    if isinstance(sharding, NamedSharding):
        stacked = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))

    def one(leaf: np.ndarray) -> jax.Array:
        def part(index):  # of the whole array; the leaf has the rows from `first` on
            steps, rows, *rest = index
            begin, end, _ = rows.indices(shape[0])
            return leaf[(steps, slice(begin - first, end - first), *rest)]

        return jax.make_array_from_callback((len(leaf), shape[0], *leaf.shape[2:]), stacked, part)

    return slice(first, last), lambda chunk: jax.tree.map(one, chunk)
