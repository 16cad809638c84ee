"""What a run costs over the bare compiled step: `python3 scripts/run.py overhead`.

In turns, in one process: the step in a plain loop; the same steps in a run, which writes rows, events and a line now
and then; and in a run that saves its whole state every second, too. Times are of a step, medians over the rounds; the
first chunk, in which the program is compiled, is not counted on either side.
"""

from __future__ import annotations

import argparse
import io
import platform
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from rich.console import Console

import manual_backprop as mb
from manual_backprop.layers import Apply
from manual_backprop.training import placing
from manual_backprop.training.config import Config, Log, Save
from manual_backprop.training.environment import place
from manual_backprop.training.flow import layer_norms
from manual_backprop.training.loop import Step
from manual_backprop.training.progress import Speed
from manual_backprop.training.run import opened
from manual_backprop.training.signals import Stop

CHUNK = 10  # steps of a row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=200, help="of a round")
    parser.add_argument("--width", type=int, default=768, help="of the three hidden layers; 768 takes 20 ms on 4 cores")
    options = parser.parse_args()
    objective = mb.Objective(mb.models.mlp(*[options.width] * 3, 10), Apply(mb.ops.softmax_cross_entropy()))
    adam = optax.with_extra_args_support(optax.adam(1e-3))
    step = Step(objective, adam, 512, 0, measure=layer_norms(objective))
    data = jax.random.normal(jax.random.key(0), (8192, 784)), jnp.arange(8192) % 10
    sides = {"bare step": bare, "run": run, "run that saves": saving}
    times = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, side in sides.items():
            times[name].append(side(step, data, options.steps) * 1e3)
    medians = {name: statistics.median(values) for name, values in times.items()}
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(jax.jit(step.start)(data)) if hasattr(leaf, "nbytes")) / 1e6
    print(f"{jax.devices()[0].device_kind}, {platform.machine()}, jax {jax.__version__}, state {size:.0f} MB")
    for name, value in medians.items():
        print(f"{name:16} {value:8.2f} ms a step   {value / medians['bare step']:.3f}")


def bare(step: Step, data, steps: int) -> float:
    once = jax.jit(step)
    training, _ = once(jax.jit(step.start)(data), data)
    jax.block_until_ready(training.params)
    begin = time.perf_counter()
    for _ in range(steps):
        training, metrics = once(training, data)
    jax.block_until_ready((training.params, metrics))
    return (time.perf_counter() - begin) / steps


def run(step: Step, data, steps: int) -> float:
    return _run(step, data, steps, Save(10**9))


def saving(step: Step, data, steps: int) -> float:
    return _run(step, data, steps, Save(50))


def _run(step: Step, data, steps: int, save: Save) -> float:
    console = Console(file=io.StringIO())
    with tempfile.TemporaryDirectory() as folder:
        config = Config(steps=steps + 2 * CHUNK, save=save, log=Log(CHUNK), folder=Path(folder, "run"))
        speed = Speed("examples", step.batch_size)
        with place(config) as mesh, opened("overhead", config, None, mesh, Stop(), console, speed) as here:
            resident, _ = placing.fed(data, step.draw, step.batch_size, mesh)
            here.restore(placing.started(step, resident, mesh))
            for n, (training, metrics) in enumerate(here.chunks(step, resident, CHUNK)):
                if n == 1:
                    begin = time.perf_counter()
                if n == steps // CHUNK + 1:  # the last row, after which all is saved anyway
                    took = time.perf_counter() - begin
                here.record(training, metrics, {})
    return took / steps


if __name__ == "__main__":
    main()
