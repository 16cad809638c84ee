"""One of several processes, as tests/test_hosts.py starts it: MODE ADDRESS COUNT INDEX DEVICES PATIENCE FOLDER.

What it finds out it prints as lines of JSON, after RESULT.
"""

import json
import os
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

import manual_backprop as mb
from manual_backprop import ops
from manual_backprop.layers import Apply
from manual_backprop.models.gpt import Schedule, Size, gpt
from manual_backprop.training import hosts, sharding
from manual_backprop.training.checkpoints import Checkpoints, digest
from manual_backprop.training.loop import Step, examples, train
from manual_backprop.training.placing import fed, started
from manual_backprop.training.sharding import axes, mesh_of, on_mesh
from manual_backprop.training.stream import Source, Stream

SIZE = Size(64, 8, 2, 32, 2, 2, architecture="modern")
MESHES = ["data=4", "data=2,model=2"]
BATCH, STEPS, HALF = 8, 20, 10


def found(**values) -> None:
    print("RESULT", json.dumps(values), flush=True)


def task(model: str):
    """An objective, and the data for it."""
    rng = np.random.default_rng(0)
    if model == "gpt":
        ids = rng.integers(0, SIZE.vocabulary, (64, SIZE.length)).astype(np.int32)
        return gpt(SIZE, Schedule("dear", ops.attention(causal=True))), (ids, np.roll(ids, -1, 1))
    network = mb.models.mlp(16, 12, 4, activation=ops.gelu())
    arrays = rng.standard_normal((64, 8)).astype(np.float32), rng.integers(0, 4, 64).astype(np.int32)
    return mb.Objective(network, Apply(ops.softmax_cross_entropy())), arrays


def trained(model: str, text: str, begin=lambda first: first, each=lambda training: None):
    """(training, costs) on the mesh; begin: from what it makes of the beginning; each: called every five steps."""
    mesh = mesh_of(axes(text))
    objective, arrays = task(model)
    arrays, draw = fed(arrays, examples, BATCH, mesh)
    step, costs = Step(on_mesh(objective, mesh), optax.adamw(1e-2), BATCH, 3, draw), []
    for training, metrics in train(step, begin(started(step, arrays, mesh)), arrays, STEPS, 5):
        costs += metrics.cost.tolist()
        each(training)
    return training, costs


def streamed(mesh) -> list[float]:
    """The batches of a stream, of which each process reads its own rows: how many it read, and their sum."""
    read = set()

    def some(numbers):
        read.update(numbers.tolist())
        return np.stack([numbers, numbers**2], 1).astype(np.float32)

    stream = Stream(Source(some, "squares"), BATCH, NamedSharding(mesh, sharding.of_batch(mesh)))
    totals = [float(jnp.sum(chunk)) for chunk in stream.chunks(0, [2, 3])]
    return [len(read), *totals]


def learn(folder: Path) -> None:
    """All that can be seen in one start: what processes say to each other, arrays, training, checkpoints."""
    index = jax.process_index()
    stops = [hosts.agreed(index == 1 and call == 2) for call in range(4)]
    said = hosts.exchanged("name", {"index": index})
    told = hosts.from_first(lambda: [index, "first"])
    try:
        refused = str(hosts.from_first(wrong))
    except mb.InputError as error:
        refused = str(error)
    begin = time.perf_counter()
    for _ in range(200):
        hosts.agreed(False)
    found(stops=stops, said=said, told=told, refused=refused, agreed=(time.perf_counter() - begin) / 200)

    mesh = mesh_of(axes("data=4"))
    values = np.arange(24.0, dtype=np.float32).reshape(8, 3)
    cut = hosts.spread(values, NamedSharding(mesh, PartitionSpec("data")))
    key = hosts.spread(jax.random.key(7), NamedSharding(mesh, PartitionSpec()))
    back = hosts.gathered({"cut": cut, "key": key})
    here = sum(shard.data.size for shard in cut.addressable_shards)
    found(back={name: leaf.tolist() for name, leaf in back.items()}, here=here, streamed=streamed(mesh))

    for text in MESHES:
        found(mesh=text, costs=trained("mlp", text)[1])
    checkpoints = Checkpoints(folder / "own", say=lambda line: None)
    training, costs = trained(
        "mlp", "fsdp=4", each=lambda training: training.step == HALF and checkpoints.save(training)
    )
    checkpoints.close()
    found(mesh="fsdp=4", costs=costs, sha256=digest(training))


def wrong():
    raise mb.InputError("it is wrong")


def go_on(folder: Path) -> None:
    """From a checkpoint that another number of processes wrote."""
    checkpoints = Checkpoints(folder / "own", say=lambda line: None)
    _, costs = trained("mlp", "fsdp=4", begin=checkpoints.restore)
    checkpoints.close()
    found(costs=costs)


def endless(folder: Path) -> None:
    """Steps that send something, until the process is ended; `fail` in the folder asks process 1 to fail."""
    mesh = mesh_of(axes(f"data={jax.device_count()}"))
    x = hosts.spread(np.ones((mesh.size, 100)), NamedSharding(mesh, PartitionSpec("data")))
    step = jax.jit(lambda x: x - 1e-3 * jnp.sum(x), out_shardings=x.sharding)
    for n in range(10**9):
        x = jax.block_until_ready(step(x))
        if n == 3:
            (folder / f"ready-{jax.process_index()}").write_text(str(os.getpid()))
        if jax.process_index() == 1 and (folder / "fail").exists():
            raise ValueError("its own mistake")


def transformer(folder: Path) -> None:
    for text in ("fsdp=4", "data=2,model=2"):
        found(mesh=text, costs=trained("gpt", text)[1])


def twice(folder: Path) -> None:
    try:
        hosts.join(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    except mb.InputError as error:
        found(twice=str(error))


if __name__ == "__main__":
    mode, address, count, index, devices, patience, folder = sys.argv[1:]
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", int(devices))
    try:
        hosts.join(address, int(count), int(index), {"mode": mode}, wait=60, patience=float(patience))
    except mb.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    {"learn": learn, "go_on": go_on, "endless": endless, "twice": twice, "transformer": transformer}[mode](Path(folder))
    hosts.leave()
