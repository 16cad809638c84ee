"""Handwritten digits, read by the documented network: two hidden layers of 16 neurons, gradients written by hand.

    python3 scripts/run.py digits                     (installs what is needed first)
    python experiments/digits.py --hidden 256 128     (in an installed environment)

At the end our backward pass is held against jax.grad of an independent copy of the network: the largest difference of
the gradients, the time of a step, and the memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

import manual_backprop as mb
from manual_backprop.errors import choose
from manual_backprop.layers import Apply
from manual_backprop.testing import Program, compare, gradient_difference
from manual_backprop.training import config, hosts, images, pictures, placing, run
from manual_backprop.training.devices import describe
from manual_backprop.training.environment import place
from manual_backprop.training.flow import layer_norms
from manual_backprop.training.loop import Step, Training, examples
from manual_backprop.training.optimizers import averages, averaging, optimizer
from manual_backprop.training.progress import Speed
from manual_backprop.training.weights import save_params

# Those that jax.nn has by the same name: the gradient is compared with jax.grad's of a network in plain JAX.
ACTIVATIONS = {name: rule for name, rule in mb.ops.ACTIVATIONS.items() if hasattr(jax.nn, name)}
COSTS = {"squared_error": mb.ops.squared_error(), "softmax_cross_entropy": mb.ops.softmax_cross_entropy()}


@dataclass(frozen=True)
class Config(config.Config):
    """Train a network on handwritten digits with gradients written by hand."""

    hidden: tuple[int, ...] = (16, 16)
    """Neurons in each hidden layer."""
    data: str = "digits"
    """digits (8×8, no download), mnist or fashion-mnist."""
    data_dir: Path | None = None
    """Folder with the IDX files; by default they are downloaded and verified."""
    activation: str = "sigmoid"
    """sigmoid, tanh, relu, leaky_relu, softplus, silu or gelu."""
    cost: str = "squared_error"
    """squared_error (sigmoid outputs against 0 and 1) or softmax_cross_entropy (of logits)."""
    optimizer: str = "sgd"
    """Any of optax's aliases by its name."""
    learning_rate: float = 1.0
    """The length of a step. 1 suits sgd here; try 0.003 for adam."""
    steps: int = 8000
    """Steps of gradient descent."""


def network(config: Config, classes: int) -> mb.Objective:
    """The network and its cost. Under the squared error the outputs are sigmoids: opinions from 0 to 1."""
    last = mb.ops.sigmoid() if config.cost == "squared_error" else None
    model = mb.models.mlp(*config.hidden, classes, activation=ACTIVATIONS[config.activation](), last=last)
    return mb.Objective(model, Apply(COSTS[config.cost]))


def reference(config: Config):
    """The same cost in plain JAX, for jax.grad: `cost(params, (x, target))`."""
    f = getattr(jax.nn, config.activation)

    def cost(params, batch):
        a, target = batch
        *hidden, output = [p for p in params[0] if p]
        for p in hidden:
            a = f(a @ p["w"] + p["b"])
        z = a @ output["w"] + output["b"]
        if config.cost == "squared_error":
            return jnp.mean(jnp.sum((jax.nn.sigmoid(z) - target) ** 2, -1))
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(z), target[:, None], -1))

    return cost


def check(config: Config) -> None:
    """Raises InputError for a value that no part of the program would catch in time."""
    config.check()
    choose("activation", config.activation, ACTIVATIONS)
    choose("cost", config.cost, COSTS)
    choose("data", config.data, dict.fromkeys(images.GREY))
    if config.data == "digits" and config.data_dir:
        raise mb.InputError(f"--data-dir {config.data_dir}: --data digits needs no files; name mnist or fashion-mnist")
    if any(size < 1 for size in config.hidden):
        raise mb.InputError(f"--hidden {' '.join(map(str, config.hidden))}: every layer wants at least one neuron")


def main(stop: run.Stop) -> int:
    options, folder = config.parsed(Config, "digits")
    check(options)
    with place(options) as mesh:
        return experiment(options, folder, mesh, stop, Console(highlight=False, soft_wrap=True))


def experiment(config: Config, folder: Path | None, mesh: Mesh, stop: run.Stop, console: Console) -> int:
    placing.want_divided(config.batch_size, mesh)
    pixels = images.load(config.data, config.data_dir)
    objective = network(config, len(pixels.names))
    one_hot = config.cost == "squared_error"
    train, held_out = (
        (jnp.asarray(x), jax.nn.one_hot(labels, len(pixels.names)) if one_hot else jnp.asarray(labels))
        for x, labels in (
            (images.vectors(pixels.train_x, pixels.white), pixels.train_labels),
            (images.vectors(pixels.test_x, pixels.white), pixels.test_labels),
        )
    )
    data, drawn = placing.fed(train, examples, config.batch_size, mesh)
    held_out = placing.on_devices(held_out, mesh)
    descent = optimizer(config.optimizer, config.learning_rate, config.seed)
    step = Step(
        placing.arranged(objective, mesh, config),
        averaging(descent, config.ema) if config.ema else descent,
        config.batch_size,
        config.seed,
        drawn,
        layer_norms(objective),
        config.skip_nonfinite,
        objective,
    )

    @jax.jit
    def accuracy(params, state, x, labels):
        return jnp.mean(jnp.argmax(objective.model.apply(params[0], state[0], x), -1) == labels)

    speed = Speed("examples", config.batch_size)
    with run.opened("digits", config, folder, mesh, stop, console, speed, placing.told(train)) as here:
        first = placing.started(step, data, mesh)
        size = sum(leaf.size for leaf in jax.tree.leaves(first.params))
        here.print(f"device  {describe(mesh)}")
        here.print(f"model   {objective.model!r}, {data[0].shape[1]} inputs, {size:,} parameters")
        here.print(f"cost    {objective.cost.op!r}, minimised by {config.optimizer}")
        here.print(f"data    {config.data}, {len(data[0]):,} pictures to learn from, {len(held_out[0]):,} held out")
        here.restore(first)
        for training, metrics in here.chunks(step, data, min(max(1, config.steps // 100), 200)):
            params = averages(training.optimizer_state, training.params)
            right = float(accuracy(params, training.state, held_out[0], pixels.test_labels))
            right_of_known = accuracy(params, training.state, data[0][:2000], pixels.train_labels[:2000])
            here.record(training, metrics, {"train_accuracy": float(right_of_known), "accuracy": right}, -right)
        last, results = here.training, {}
        right = float(
            accuracy(averages(last.optimizer_state, last.params), last.state, held_out[0], pixels.test_labels)
        )
        batches = hosts.gathered([step.batch(data, training)[0] for training in (first, last)])
        first, last, held_out = hosts.gathered((first, last, held_out))  # on the host, where one process has it all
        if hosts.is_first():
            params = averages(last.optimizer_state, last.params)
            if here.rows:
                draw(objective, params, last.state, pixels, held_out, here.rows, here.folder)
            if here.complete:
                results = {"accuracy": right, **judge(config, objective, first, last, batches)}
                save_params(here.file("weights.safetensors"), params)
        code = here.finished(results)
        if results:
            here.print(table(results))
        return code


def draw(objective: mb.Objective, params, state, pixels: images.Images, held_out, rows, folder: Path) -> None:
    """The three pictures."""
    opinions = jax.jit(objective.model.apply)(params[0], state[0], held_out[0])

    @jax.jit
    def sensitivities(batch):
        cost, _, residuals = objective.forward(params, state, batch)
        dparams, (dx, _) = objective.backward(params, residuals, jnp.ones_like(cost))
        return dx, dparams[0][0]["w"]

    shown = jax.tree.map(lambda leaf: leaf[:16], held_out)
    dx, dw = sensitivities(shown)
    titles = [pixels.names[label] for label in pixels.test_labels[:16]]
    x, w = np.asarray(held_out[0]), np.asarray(params[0][0]["w"])
    pictures.curves(rows, folder / "curves.png")
    pictures.mistakes(x, pixels.test_labels, np.asarray(opinions), pixels.shape, pixels.names, folder / "mistakes.png")
    pictures.sensitivities(
        np.asarray(shown[0]), np.asarray(dx), w, np.asarray(dw), pixels.shape, titles, folder / "sensitivities.png"
    )


def judge(config: Config, objective: mb.Objective, first: Training, last: Training, batches) -> dict[str, float]:
    """Our backward pass against jax.grad's of the reference: how equal, how fast, how large."""
    cost = reference(config)
    differences = [
        gradient_difference(objective, cost, training.params, training.state, batch)
        for training, batch in zip((first, last), batches, strict=True)
    ]
    gradient = mb.value_and_grad(objective)
    ours = Program(lambda params, batch: gradient(params, last.state, batch), (last.params, batches[1]))
    theirs = Program(jax.value_and_grad(cost), (last.params, batches[1]))
    result = compare(ours, theirs, rounds=41)
    return {
        "gradient_difference_first": differences[0],
        "gradient_difference_last": differences[1],
        "step_ms": result.ours.step_s * 1e3,
        "step_ms_jax_grad": result.peer.step_s * 1e3,
        "temp_bytes": result.ours.temp_bytes,
        "temp_bytes_jax_grad": result.peer.temp_bytes,
    }


def table(results: dict[str, float]) -> Table:
    rows = Table("", "by hand", "jax.grad", "ratio", box=None, pad_edge=False)
    r = results
    ratio = r["step_ms"] / r["step_ms_jax_grad"]
    rows.add_row("accuracy on held-out pictures", f"{r['accuracy']:.4f}")
    rows.add_row("largest gradient difference, first step (float64)", f"{r['gradient_difference_first']:.1e}")
    rows.add_row("largest gradient difference, last step (float64)", f"{r['gradient_difference_last']:.1e}")
    rows.add_row(
        "cost and gradient of a batch, ms",
        f"{r['step_ms']:.3f}",
        f"{r['step_ms_jax_grad']:.3f}",
        f"{ratio:.2f}",
    )
    kb = [r["temp_bytes"] / 1e3, r["temp_bytes_jax_grad"] / 1e3]
    rows.add_row("temporary memory, kB", f"{kb[0]:.1f}", f"{kb[1]:.1f}", f"{kb[0] / kb[1]:.2f}" if kb[1] else "")
    return rows


if __name__ == "__main__":
    run.main(main)
