"""Our backward passes against autodiff's: `python scripts/benchmark.py [mlp] [repeat] [--json FILE]`.

Both sides do the same work, checked by equal results, and run in turns in one process. Prints ratios ours / peer.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import manual_backprop as mb
from manual_backprop.errors import choose
from manual_backprop.layers import Apply, Dense, LayerNorm
from manual_backprop.testing.timing import Comparison, Program, compare

Row = tuple[str, str, Program, Program]  # name, peer, our program, the peer's
BATCH = 256


class FlaxMLP(nn.Module):
    sizes: tuple[int, ...]
    activation: str

    @nn.compact
    def __call__(self, x):
        *hidden, outputs = self.sizes
        for size in hidden:
            x = getattr(nn, self.activation)(nn.Dense(size)(x))
        return nn.Dense(outputs)(x)


def mlp() -> Iterator[Row]:
    """Training steps of 784-16-16-10 and 784-512-512-10 networks: a flax model, jax.value_and_grad and optax."""
    for sizes, activation in (((16, 16, 10), "sigmoid"), ((512, 512, 10), "relu")):
        for cost in ("squared_error", "softmax_cross_entropy"):
            yield mlp_step(sizes, activation, cost)


def mlp_step(sizes, activation, cost) -> Row:
    key = jax.random.key(0)
    x = jax.random.normal(key, (BATCH, 784))
    labels = jax.random.randint(key, (BATCH,), 0, sizes[-1])
    target = jax.nn.one_hot(labels, sizes[-1]) if cost == "squared_error" else labels
    optimizer = optax.sgd(0.1)

    flax_model = FlaxMLP(sizes, activation)
    variables = flax_model.init(key, x)

    def peer_cost(variables, x, target):
        z = flax_model.apply(variables, x)
        if cost == "squared_error":
            return jnp.mean(jnp.sum(jnp.square(z - target), -1))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(z, target))

    def peer_step(training, x, target):
        variables, optimizer_state = training
        value, gradient = jax.value_and_grad(peer_cost)(variables, x, target)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, variables)
        return (optax.apply_updates(variables, updates), optimizer_state), value

    model = mb.models.mlp(*sizes, activation=getattr(mb.ops, activation)())
    objective = mb.Objective(model, Apply(getattr(mb.ops, cost)()))
    _, state = objective.init(key, (x, target))

    def our_step(training, x, target):
        params, optimizer_state = training
        (value, _), gradient = mb.value_and_grad(objective)(params, state, (x, target))
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), value

    params = (from_flax(model, variables["params"]), {})
    name = f"784-{'-'.join(map(str, sizes))} {activation} {cost}, batch {BATCH}"
    return (
        name,
        "flax + jax.value_and_grad + optax",
        Program(our_step, ((params, optimizer.init(params)), x, target), donate=True),
        Program(peer_step, ((variables, optimizer.init(variables)), x, target), donate=True),
    )


def from_flax(model: mb.Serial, params) -> tuple:
    """Parameters of a flax network of nn.Dense layers, in our model's structure."""
    ours, number = [], 0
    for layer in model.layers:
        if isinstance(layer, Dense):
            dense = params[f"Dense_{number}"]
            ours.append({"w": dense["kernel"], "b": dense["bias"]})
            number += 1
        else:
            ours.append({})
    return tuple(ours)


def repeat() -> Iterator[Row]:
    """Twelve residual blocks of layer norm, dense and gelu: jax.value_and_grad of the same lax.scan."""
    width, batch, n = 256, 512, 12
    block = mb.Residual(mb.Serial(LayerNorm(), Dense(width), Apply(mb.ops.gelu())))
    objective = mb.Objective(mb.Repeat(block, n), Apply(mb.ops.squared_error()))
    x = jax.random.normal(jax.random.key(0), (batch, width))
    target = jnp.zeros_like(x)
    params, state = objective.init(jax.random.key(1), (x, target))

    def our_step(params, x, target):
        (value, _), gradient = mb.value_and_grad(objective)(params, state, (x, target))
        return gradient, value

    def peer_cost(params, x, target):
        def step(x, p):
            norm, dense, _ = p
            mean = jnp.mean(x, -1, keepdims=True)
            variance = jnp.var(x, -1, keepdims=True)
            h = (x - mean) * lax.rsqrt(variance + 1e-5) * norm["scale"] + norm["bias"]
            return x + jax.nn.gelu(h @ dense["w"] + dense["b"]), None

        y, _ = lax.scan(step, x, params[0])
        return jnp.mean(jnp.sum(jnp.square(y - target), -1))

    def peer_step(params, x, target):
        value, gradient = jax.value_and_grad(peer_cost)(params, x, target)
        return gradient, value

    args = (params, x, target)
    yield (
        f"Repeat of {n} blocks, width {width}, batch {batch}",
        "jax.value_and_grad of lax.scan",
        Program(our_step, args),
        Program(peer_step, args),
    )


def same_result(ours: Program, peer: Program) -> None:
    """Stops when the two sides do not compute the same: a ratio of different work says nothing.

    Their trees differ in structure, so what is compared is the cost and every other result's norm, sorted.
    """
    results = [jax.jit(program.function)(*program.args) for program in (ours, peer)]
    norms = [sorted(float(jnp.linalg.norm(leaf.ravel())) for leaf in jax.tree.leaves(result)) for result in results]
    np.testing.assert_allclose(*norms, rtol=1e-4)


def main() -> None:
    benchmarks = {"mlp": mlp, "repeat": repeat}
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("benchmark", nargs="*", help=f"{', '.join(benchmarks)}; default: all")
    parser.add_argument("--json", metavar="FILE", help="write the rows there too")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a look, not a result")
    options = parser.parse_args()

    chosen = [choose("benchmark", name, benchmarks) for name in options.benchmark or benchmarks]
    device = jax.devices()[0]
    machine = f"{device.device_kind}, {os.cpu_count()} cores, {platform.machine()}"
    print(f"jax {jax.__version__}, Python {platform.python_version()}, {machine}; ratios are ours / peer, medians")
    print(f"{'':58} {'step':>6} {'memory':>6} {'trace':>6} {'compile':>7} {'step ms':>9} {'temp MB':>8}")
    rows = []
    for rows_of in chosen:
        for title, peer_name, ours, peer in rows_of():
            same_result(ours, peer)
            result = compare(ours, peer, rounds=7 if options.quick else 101, tracing_rounds=2 if options.quick else 7)
            print(line(title, result), flush=True)
            rows.append(as_json(rows_of.__name__, title, peer_name, result, machine))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


def line(title: str, result: Comparison) -> str:
    return (
        f"{title:58} {result.step_time_ratio:6.2f} {result.temp_memory_ratio:6.2f} {result.trace_ratio:6.2f} "
        f"{result.compile_ratio:7.2f} {result.ours.step_s * 1e3:9.3f} {result.ours.temp_bytes / 1e6:8.2f}"
    )


def as_json(benchmark: str, title: str, peer_name: str, result: Comparison, machine: str) -> dict:
    ratios = ("step_time_ratio", "temp_memory_ratio", "trace_ratio", "compile_ratio")
    return {
        "benchmark": benchmark,
        "case": title,
        "ours": result.ours._asdict(),
        "peer": {"name": peer_name, **result.peer._asdict()},
        **{ratio: getattr(result, ratio) for ratio in ratios},
        "versions": {"jax": jax.__version__, "python": platform.python_version(), "optax": optax.__version__},
        "machine": machine,
    }


if __name__ == "__main__":
    try:
        main()
    except mb.InputError as error:
        sys.exit(print(f"error: {error}", file=sys.stderr) or 2)
