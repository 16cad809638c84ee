"""Handwritten digits through two numbers and back: a variational autoencoder, gradients written by hand.

    python3 scripts/run.py autoencoder                               (a map of the digits in a plane)
    python3 scripts/run.py autoencoder --latent 10 --hidden 256
    python3 scripts/run.py autoencoder --no-variational              (without samples: no distribution to draw from)

At the end our backward pass, through the sample, is held against jax.grad of an independent copy of the network, with
the same noise: the largest difference of the gradients, the time of a step, and the memory.
"""

from __future__ import annotations

import math
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
from manual_backprop.models.autoencoder import (
    autoencoder,
    cross_entropy,
    decode,
    encode,
    negative_bound,
    variational_autoencoder,
)
from manual_backprop.testing import Program, compare, gradient_difference
from manual_backprop.training import config, hosts, images, latent_pictures, placing, run
from manual_backprop.training.devices import describe
from manual_backprop.training.environment import place
from manual_backprop.training.flow import layer_norms
from manual_backprop.training.loop import Step, Training, examples
from manual_backprop.training.optimizers import averages, averaging, optimizer
from manual_backprop.training.progress import Speed
from manual_backprop.training.weights import save_params

NOISE = 1  # the seed of what is drawn where two numbers are to be compared


@dataclass(frozen=True)
class Config(config.Config):
    """Train an autoencoder on handwritten digits with gradients written by hand."""

    variational: bool = True
    """With a distribution of the latent variables, of which a sample is decoded; without: their values."""
    latent: int = 2
    """How many latent variables; of two there is a map."""
    hidden: tuple[int, ...] = (128, 64)
    """Neurons in each hidden layer of the encoder; the decoder has them in reverse."""
    beta: float = 1.0
    """What the divergence of the latent variables counts; 1 makes the cost a bound of -log p(x)."""
    data: str = "digits"
    """digits (8×8, no download), mnist or fashion-mnist."""
    data_dir: Path | None = None
    """Folder with the files; by default they are downloaded and verified."""
    optimizer: str = "adam"
    """Any of optax's aliases by its name."""
    learning_rate: float = 1e-3
    """The length of a step."""
    steps: int = 8000
    """Steps of gradient descent."""


def network(config: Config, pixels: int) -> mb.Objective:
    if config.variational:
        return mb.Objective(variational_autoencoder(pixels, config.hidden, config.latent), negative_bound(config.beta))
    return mb.Objective(autoencoder(pixels, config.hidden, config.latent), cross_entropy())


def reference(config: Config):
    """The same cost in plain JAX, for jax.grad, with the noise of `Noisy`: `cost(params, (x, target))`."""

    def dense(layers, a):
        *hidden, output = [p for p in layers if p]
        for p in hidden:
            a = jax.nn.relu(a @ p["w"] + p["b"])
        return a @ output["w"] + output["b"]

    def nats(logits, target):
        return jnp.mean(jnp.sum(jax.nn.softplus(logits) - target * logits, -1))

    def cost(params, batch):
        x, target = batch
        if not config.variational:
            encoder, decoder = params[0]
            return nats(dense(decoder, dense(encoder, x)), target)
        (encoder, _), ((_, decoder), _) = params[0]
        mean, log_variance = jnp.split(dense(encoder, x), 2, -1)
        key = jax.random.key(NOISE)
        for branch in (0, 1, 0, 0):  # the objective's model, its second part, there the first path, and its first layer
            key = jax.random.split(key)[branch]
        z = mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape, jnp.float32)
        divergence = 0.5 * jnp.sum(mean**2 + jnp.exp(log_variance) - log_variance - 1, -1)
        return nats(dense(decoder, z), target) + config.beta * jnp.mean(divergence)

    return cost


@dataclass(frozen=True, repr=False)
class Noisy(mb.Layer):
    """The objective with the same noise in every step."""

    objective: mb.Layer

    def forward(self, params, state, batch, key=None):
        return self.objective.forward(params, state, batch, jax.random.key(NOISE))

    def backward(self, params, residuals, dy):
        return self.objective.backward(params, residuals, dy)


def check(config: Config) -> None:
    """Raises InputError for a value that no part of the program would catch in time."""
    config.check()
    choose("data", config.data, dict.fromkeys(images.GREY))
    if config.data == "digits" and config.data_dir:
        raise mb.InputError(f"--data-dir {config.data_dir}: --data digits needs no files; name another, say mnist")
    if any(size < 1 for size in config.hidden):
        raise mb.InputError(f"--hidden {' '.join(map(str, config.hidden))}: every layer wants at least one neuron")
    if config.latent < 1:
        raise mb.InputError(f"--latent {config.latent} is out of range; wants at least 1")
    if not 0 <= config.beta < math.inf:
        raise mb.InputError(f"--beta {config.beta} is out of range; wants 0, or a positive number")
    if not config.variational and config.beta != Config.beta:
        raise mb.InputError(f"--beta {config.beta}: --no-variational has no divergence to weigh; leave out one of them")


def main(stop: run.Stop) -> int:
    options, folder = config.parsed(Config, "autoencoder")
    check(options)
    with place(options) as mesh:
        return experiment(options, folder, mesh, stop, Console(highlight=False, soft_wrap=True))


def experiment(config: Config, folder: Path | None, mesh: Mesh, stop: run.Stop, console: Console) -> int:
    placing.want_divided(config.batch_size, mesh)
    pixels = images.load(config.data, config.data_dir)
    train, held_out = (images.vectors(x, pixels.white) for x in (pixels.train_x, pixels.test_x))
    least = entropy(held_out)
    objective = network(config, train.shape[1])
    data, drawn = placing.fed(train, pairs, config.batch_size, mesh)
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
    def judged(params, state, x) -> dict[str, jax.Array]:
        """The cost held out, and its two parts."""
        if not config.variational:
            return {"held_out_cost": objective.apply(params, state, (x, x))}
        made, _, _ = objective.model.forward(params[0], state[0], x, jax.random.key(NOISE))
        reconstruction, divergence = objective.cost.parts(params[1], state[1], (made, x))
        cost = reconstruction + config.beta * divergence
        return {"held_out_cost": cost, "reconstruction": reconstruction, "divergence": divergence}

    speed = Speed("examples", config.batch_size)
    with run.opened("autoencoder", config, folder, mesh, stop, console, speed, placing.told(train)) as here:
        first = placing.started(step, data, mesh)
        size = sum(leaf.size for leaf in jax.tree.leaves(first.params))
        here.print(f"device  {describe(mesh)}")
        here.print(f"model   {objective.model!r}, {data.shape[1]} pixels, {size:,} parameters")
        here.print(f"cost    {objective.cost!r}, minimised by {config.optimizer}")
        here.print(f"data    {config.data}, {len(data):,} pictures to learn from, {len(held_out):,} held out")
        here.restore(first)
        for training, metrics in here.chunks(step, data, min(max(1, config.steps // 100), 200)):
            params = averages(training.optimizer_state, training.params)
            row = jax.tree.map(float, judged(params, training.state, held_out))
            here.record(training, metrics, row, row["held_out_cost"])
        last, results = here.training, {}
        params = averages(last.optimizer_state, last.params)
        numbers = {"least": least} | jax.tree.map(float, judged(params, last.state, held_out))
        batches = hosts.gathered([step.batch(data, training)[0] for training in (first, last)])
        first, last, held_out = hosts.gathered((first, last, held_out))  # on the host, where one process has it all
        if hosts.is_first():
            params = averages(last.optimizer_state, last.params)
            if here.rows:
                draw(config, objective.model, params[0], last.state[0], pixels, held_out, here.rows, least, here.folder)
            if here.complete:
                results = numbers | judge(config, objective, first, last, batches)
                save_params(here.file("weights.safetensors"), params)
        code = here.finished(results)
        if results:
            here.print(table(results))
        return code


def pairs(key, data, n: int):
    """n examples, each its own target."""
    x = examples(key, data, n)
    return x, x


def entropy(x) -> float:
    """-Σ x ln x + (1 - x) ln(1 - x) over the pixels of a picture, on average: no reconstruction costs less."""
    white, black = np.maximum(1 - x, 1e-30), np.maximum(x, 1e-30)
    return float(-np.mean(np.sum(x * np.log(black) + (1 - x) * np.log(white), -1)))


def draw(config: Config, model, params, state, pixels: images.Images, held_out, rows, least: float, folder: Path):
    """The three pictures."""
    shape = pixels.train_x.shape[1:]
    pictures_of = jax.jit(lambda z: jax.nn.sigmoid(decode(model, params, state, z)).reshape(-1, *shape))
    found = jax.jit(lambda x: encode(model, params, state, x))(held_out)
    z = found[0] if config.variational else found
    n, key = min(16, len(held_out)), jax.random.key(config.seed)
    drawn = pictures_of(jax.random.normal(key, (2 * n, config.latent))) if config.variational else None
    shown = np.asarray(held_out[:n]).reshape(-1, *shape)
    latent_pictures.curves(rows, least, folder / "curves.png")
    latent_pictures.reconstructions(shown, pictures_of(z[:n]), drawn, folder / "reconstructions.png")
    plane = pictures_of if config.latent == 2 else None
    latent_pictures.latent_map(np.asarray(z), pixels.test_labels, pixels.names, plane, folder / "latent.png")


def judge(config: Config, objective: mb.Objective, first: Training, last: Training, batches) -> dict[str, float]:
    """Our backward pass against jax.grad's of the reference: how equal, how fast, how large."""
    cost, ours = reference(config), Noisy(objective)
    differences = [
        gradient_difference(ours, cost, training.params, training.state, batch)
        for training, batch in zip((first, last), batches, strict=True)
    ]
    gradient = mb.value_and_grad(ours)
    by_hand = Program(lambda params, batch: gradient(params, last.state, batch), (last.params, batches[1]))
    result = compare(by_hand, Program(jax.value_and_grad(cost), (last.params, batches[1])), rounds=41)
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
    if "divergence" in r:
        rows.add_row("bound of -log p(x) held out, nats a picture", f"{r['reconstruction'] + r['divergence']:.3f}")
        rows.add_row("    of these E[-log p(x|z)]", f"{r['reconstruction']:.3f}")
        rows.add_row("    and KL(q(z|x) ‖ p(z))", f"{r['divergence']:.3f}")
    else:
        rows.add_row("cost held out, nats a picture", f"{r['held_out_cost']:.3f}")
    rows.add_row("entropy of the grey pixels, the least there can be", f"{r['least']:.3f}")
    rows.add_row("largest gradient difference, first step (float64)", f"{r['gradient_difference_first']:.1e}")
    rows.add_row("largest gradient difference, last step (float64)", f"{r['gradient_difference_last']:.1e}")
    ms = [r["step_ms"], r["step_ms_jax_grad"]]
    rows.add_row("cost and gradient of a batch, ms", f"{ms[0]:.3f}", f"{ms[1]:.3f}", f"{ms[0] / ms[1]:.2f}")
    kb = [r["temp_bytes"] / 1e3, r["temp_bytes_jax_grad"] / 1e3]
    rows.add_row("temporary memory, kB", f"{kb[0]:.1f}", f"{kb[1]:.1f}", f"{kb[0] / kb[1]:.2f}" if kb[1] else "")
    return rows


if __name__ == "__main__":
    run.main(main)
