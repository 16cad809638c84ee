"""The bubble of a pipeline: how long stages wait for each other, by the tables, and what each table keeps.

    python3 scripts/bubble.py [--stages 4] [--micro-batches 8] [--picture FILE.png] [--measure]

A row a schedule: its ticks; in how many of them a stage waits; how long it takes where a tick lasts as long as its
longest stage, and y, dx and dw as long as one another; which share of that a stage does nothing; and how many
micro-batches' residuals it keeps.

--measure adds, for a transformer of 2 blocks a stage on simulated devices: how long y, dx and dw of one stage take on
this machine, alone; how long the stages would take with devices of their own, by the table; the time of a whole step,
with the embedding and the head; and memory beside the arguments, for M and for 4 M micro-batches. Simulated devices
share the cores of one machine, so a step tells what the program costs, not what a pipeline saves.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

import manual_backprop as mb
from manual_backprop.combinators import Repeat, split
from manual_backprop.combinators.split import settled
from manual_backprop.models.gpt import Schedule, Size, gpt
from manual_backprop.training.pipeline import Pipeline
from manual_backprop.training.sharding import mesh_of, of_params, placed
from manual_backprop.training.timetable import SCHEDULES, Timetable, places, timetable

COLOURS = {"y": "#1f4e79", "dx": "#c0392b", "dw": "#2e8b57"}
EACH = 2  # examples in a micro-batch


def row(name: str, table: Timetable) -> str:
    kept = places(table.forward, table.backward)
    if table.weights is not None:
        kept = f"{kept}, dw {places(table.backward, table.weights)}"
    return f"| {name} | {table.ticks} | {table.waiting:.1%} | {table.length():g} | {table.idle():.1%} | {kept} |"


def picture(tables: dict[str, Timetable], path: Path) -> None:
    """Each stage over time: what it does in each tick, which lasts as long as it does on the longest stage."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    S = len(next(iter(tables.values())).forward)
    figure, axes = plt.subplots(
        len(tables), 1, figsize=(13, len(tables) * (0.5 + 0.34 * S)), sharex=True, layout="constrained"
    )
    for axis, (name, table) in zip(axes, tables.items(), strict=True):
        apart = table.weights is not None
        kinds = {"y": (table.forward, 1), "dx": (table.backward, 1 if apart else 2)}
        kinds |= {"dw": (table.weights, 1)} if apart else {}
        now = {kind: (table.at_work(when), length) for kind, (when, length) in kinds.items()}
        start = 0.0
        for t in range(table.ticks):
            ends = []
            for s in range(S):
                at = start
                for kind, (found, length) in now.items():
                    if found[t, s] >= 0:
                        axis.barh(
                            s, length, left=at, height=0.86, color=COLOURS[kind], edgecolor="white", linewidth=0.6
                        )
                        axis.text(at + length / 2, s, found[t, s], color="white", ha="center", va="center", fontsize=7)
                        at += length
                ends.append(at)
            start = max(ends)
        axis.set_yticks(range(S), [f"stage {s}" for s in range(S)], fontsize=8)
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(f"{name}: {start:g} long, {table.idle():.0%} of it idle", loc="left", fontsize=10)
    axes[-1].set_xlabel("time; y (blue), dx (red) and dw (green) take 1 each, dx and dw at once 2 (red)")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def seconds(run: Callable, *args, rounds: int = 15) -> float:
    jax.block_until_ready(run(*args))
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(run(*args))
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def measured(stages: int, micro_batches: int) -> None:
    size = Size(256, 64, 2 * stages, 128, 4)
    objective, mesh = gpt(size, Schedule("everything")), mesh_of({"stage": stages})
    shape = lambda n: (jax.ShapeDtypeStruct((n, size.length), jnp.int32),) * 2
    params, state = jax.jit(objective.init)(jax.random.key(0), shape(EACH))
    there = placed(of_params(objective, params, mesh), mesh)

    block = objective.layer.model.layers[2].layer
    layers, halves = Repeat(block, 2), split(Repeat(block, 2))
    of_stage = jax.tree.map(lambda leaf: leaf[:2], params[0][2])
    x = jax.random.normal(jax.random.key(1), (EACH, size.length, size.width))
    forward = jax.jit(lambda params, x: layers.forward(params, state[0][2], x)[::2])
    _, residuals = forward(of_stage, x)
    owed, _ = jax.jit(halves.backward)(of_stage, residuals, x)
    y = seconds(forward, of_stage, x)
    dx = seconds(jax.jit(lambda *args: halves.backward(*args)[1]), of_stage, residuals, x)
    dw = seconds(jax.jit(lambda params, owed: settled(halves, params, owed)), of_stage, owed)
    both = seconds(jax.jit(layers.backward), of_stage, residuals, x)
    print(f"\nOf one stage: y {1e3 * y:.2f} ms, dx {1e3 * dx:.2f}, dw {1e3 * dw:.2f}, dx and dw {1e3 * both:.2f}.\n")
    print(f"| schedule | ms, by the table | idle | ms a step, cores shared | MiB, M = {micro_batches} | 4 M |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, rule in SCHEDULES.items():
        times = (y, dx, dw) if rule.apart else (y, both, 0)
        table = timetable(name, stages, micro_batches)
        found = []
        for M in (micro_batches, 4 * micro_batches):
            step = jax.jit(mb.value_and_grad(Pipeline(objective, mesh, M, name)), out_shardings=(None, there))
            found.append(step.lower(params, state, shape(EACH * M)).compile())
        ids = jax.random.randint(jax.random.key(2), (EACH * micro_batches, size.length), 0, size.vocabulary)
        took = seconds(
            found[0],
            *jax.device_put((params, state, (ids, jnp.roll(ids, -1, 1))), found[0].input_shardings[0]),
            rounds=7,
        )
        memory = [f"{each.memory_analysis().temp_size_in_bytes / 2**20:.1f}" for each in found]
        numbers = f"{1e3 * table.length(*times):.0f}", f"{table.idle(*times):.1%}", f"{1e3 * took:.0f}", *memory
        print(f"| {name} | {' | '.join(numbers)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stages", type=int, default=4, metavar="S")
    parser.add_argument("--micro-batches", type=int, default=8, metavar="M")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="all tables, drawn")
    parser.add_argument("--measure", action="store_true", help="compile and run them on simulated devices")
    options = parser.parse_args()
    tables = {name: timetable(name, options.stages, options.micro_batches) for name in SCHEDULES}
    for name, table in tables.items():
        print(f"{name}\n{table}\n")
    print("| schedule | ticks | waits | length | idle | residuals of |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, table in tables.items():
        print(row(name, table))
    if options.picture:
        picture(tables, options.picture)
        print(f"wrote {options.picture}")
    if options.measure:
        jax.config.update("jax_num_cpu_devices", options.stages)
        jax.config.update("jax_platforms", "cpu")
        measured(options.stages, options.micro_batches)


if __name__ == "__main__":
    try:
        main()
    except mb.InputError as error:
        sys.exit(print(f"error: {error}", file=sys.stderr) or 2)
