"""A transformer that learns text, trained without autodiff: GPT-2 or today's architecture, gradients written by hand.

    python3 scripts/run.py gpt                              (a source of known entropy: how close can it come?)
    python3 scripts/run.py gpt --data python --size small   (the interpreter's own standard library, byte by byte)

The schedule of the backward pass is a choice: what is kept, in which pieces, and whether a layer is updated as soon as
its gradient is known. `--check-gradients N` compares with jax.grad of plain JAX code every N steps.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from rich.console import Console

import manual_backprop as mb
from manual_backprop import ops
from manual_backprop.errors import choose
from manual_backprop.inspection import every_value
from manual_backprop.models.gpt import SIZES, Schedule, Size, gpt, logits, training_flops
from manual_backprop.testing import gradient_difference
from manual_backprop.training import config, hosts, pictures, placing, plan, run, sharding, text
from manual_backprop.training.descent import StepInBackward
from manual_backprop.training.devices import describe, matmul_rate
from manual_backprop.training.environment import place
from manual_backprop.training.flow import layer_norms
from manual_backprop.training.loop import Step, next_batch, train
from manual_backprop.training.optimizers import averages, averaging
from manual_backprop.training.progress import Speed
from manual_backprop.training.weights import load_weights, save_weights

SCHEDULES = ("everything", "dear", "inputs", "last")
PRECISIONS = {"float32": None, "bfloat16": "bfloat16", "float16": "float16"}
DECAYED = ("w", "table", "weight")  # matrices; not biases and scales
SKIPS = 50  # gradients in a row that float16 may overflow in, while the scale of its cost is found


@dataclass(frozen=True)
class Config(config.Config):
    """Train a transformer on text with gradients written by hand."""

    size: str = "tiny"
    """A size by its name: tiny, small, gpt2-124m, …, modern-tiny, modern-124m, …"""
    data: str = "markov"
    """markov (a source of known entropy), python (the standard library's sources), files; or what is read while it
    trains: arrayrecord:PATTERN (texts) or tokens:FILE (ids)."""
    files: tuple[Path, ...] = ()
    """Text files, for --data files."""
    tokenizer: Path | None = None
    """A tokenizer.json of the tokenizers library, for files, records and ids; by default a token is a byte."""
    length: int | None = None
    """Tokens of an example; by default as many as the size has positions."""
    batch_size: int = 16
    """Examples that a step averages over."""
    accumulate: int = 1
    """Parts that a batch is cut in, one after another."""
    steps: int = 1500
    """Steps of AdamW."""
    learning_rate: float = 3e-3
    """The largest; it rises for the first twentieth of the steps, and falls along a cosine to a tenth."""
    weight_decay: float = 0.1
    """Of matrices."""
    clip: float = 1.0
    """The gradient's length, at most; 0 leaves it as it is."""
    schedule: str = "dear"
    """What the backward pass keeps: everything, dear, inputs, or last (reversible blocks)."""
    update_in_backward: bool = False
    """Update each layer as soon as its gradient is known; wants --clip 0."""
    precision: str = "float32"
    """Of matrix products: float32, bfloat16, or float16 with a cost scaled for it."""
    attention: str = "xla"
    """Its forward pass: xla, or cudnn: the fused kernel of NVIDIA GPUs, for bfloat16 and float16."""
    weights: Path | None = None
    """Start from these, a safetensors file in GPT-2's or LLaMA's names; such a file is written at the end."""
    check_gradients: int = 0
    """Compare with jax.grad every so many steps; 0: never."""
    sample: int = 120
    """Tokens of text to write, at four moments and at the end; 0: none."""
    profile: bool = False
    """Write a trace of a few steps into the folder."""


def check(config: Config) -> None:
    """Raises InputError for a value that no part of the program would catch in time."""
    config.check()
    choose("--size", config.size, SIZES)
    choose("--schedule", config.schedule, dict.fromkeys(SCHEDULES))
    choose("--precision", config.precision, PRECISIONS)
    choose("--attention", config.attention, dict.fromkeys(("xla", "cudnn")))
    for name in ("check_gradients", "sample", "clip", "weight_decay", "learning_rate"):
        if not 0 <= getattr(config, name) < math.inf:
            option = f"--{name.replace('_', '-')}"
            raise mb.InputError(f"{option} {getattr(config, name)} is out of range; wants 0, or a positive number")
    tokens = config.batch_size * (config.length or SIZES[config.size].length)
    if tokens >= 2**31:
        raise mb.InputError(f"--batch-size {config.batch_size}: {tokens:,} tokens a step; wants fewer than {2**31:,}")
    if config.attention == "cudnn" and config.precision == "float32":
        raise mb.InputError("--attention cudnn: its kernel takes bfloat16 and float16; wants --precision of these")
    if config.accumulate < 1:
        raise mb.InputError(f"--accumulate {config.accumulate} is out of range; wants at least 1")
    if config.length is not None and not 2 <= config.length <= SIZES[config.size].length:
        raise mb.InputError(
            f"--length {config.length}: {config.size} has {SIZES[config.size].length} positions; wants 2 to so many"
        )
    if config.batch_size % config.accumulate:
        raise mb.InputError(f"--accumulate {config.accumulate} does not divide --batch-size {config.batch_size}")
    if config.update_in_backward and (config.ema or config.skip_nonfinite):
        raise mb.InputError("--update-in-backward: wants --ema 0 --skip-nonfinite 0, which look at the whole gradient")
    if config.update_in_backward and (config.clip or config.accumulate > 1 or config.precision == "float16"):
        raise mb.InputError(
            "--update-in-backward: the length of the whole gradient, the sum over parts of a batch, and whether "
            "float16 has overflown, are known only at the end; wants --clip 0 --accumulate 1, and float32 or bfloat16; "
            "or leave it out: --schedule inputs is the leanest without it"
        )
    if config.mesh and "stage" in sharding.axes(config.mesh):
        want_stages(config)
    if config.check_gradients and config.schedule == "last":
        raise mb.InputError(
            "--check-gradients: --schedule last is another model, of two streams; wants another schedule"
        )


def want_stages(config: Config) -> None:
    """Raises InputError for what does not go with stages."""
    wants = {
        "--accumulate": (config.accumulate == 1, "1, and --stages.micro-batches"),
        "--precision": (config.precision != "float16", "float32 or bfloat16"),
        "--schedule": (config.schedule != "last", "everything, dear or inputs"),
        "--update-in-backward": (not config.update_in_backward, "none"),
    }
    for option, (fits, wanted) in wants.items():
        if not fits:
            raise mb.InputError(f"{option}: --mesh {config.mesh} has stages; wants {wanted}")


def optimizer(config: Config) -> optax.GradientTransformationExtraArgs:
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, max(1, config.steps // 20), max(2, config.steps), config.learning_rate / 10
    )
    decayed = lambda params: jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in DECAYED, params)
    adamw = optax.adamw(rate, b2=0.99, weight_decay=config.weight_decay, mask=decayed)
    clipped = optax.chain(optax.clip_by_global_norm(config.clip), adamw) if config.clip else adamw
    return averaging(clipped, config.ema) if config.ema else optax.with_extra_args_support(clipped)


def objective_of(config: Config, size: Size) -> mb.Layer:
    schedule, _ = plan.SCHEDULES[config.schedule]
    if config.attention == "cudnn":
        schedule = replace(schedule, attention=ops.chunked_attention(causal=True, implementation="cudnn"))
    objective = gpt(size, replace(schedule, compute=PRECISIONS[config.precision]))
    if config.precision == "float16":
        objective = mb.LossScale(objective)
    return mb.MicroBatches(objective, config.accumulate) if config.accumulate > 1 else objective


def reference(size: Size):
    """The same cost in plain JAX, for jax.grad: `cost(params, (ids, labels))`."""
    H = size.width // size.heads

    def norm(p, x):
        if size.architecture == "modern":
            return x * lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5) * p["scale"]
        mean = jnp.mean(x, -1, keepdims=True)
        return (x - mean) * lax.rsqrt(jnp.var(x, -1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]

    def dense(p, x):
        return x @ p["w"] + p.get("b", 0)

    def turned(x):
        angle = jnp.arange(x.shape[1])[:, None, None] * 10000.0 ** (-jnp.arange(0, H, 2) / H)
        a, b = jnp.split(x, 2, -1)
        return jnp.concatenate([a * jnp.cos(angle) - b * jnp.sin(angle), b * jnp.cos(angle) + a * jnp.sin(angle)], -1)

    def attention(p, x):
        h = dense(p[0][1], norm(p[0][0], x)).reshape(*x.shape[:2], -1, H)
        q, k, v = jnp.split(h, (size.heads, size.heads + size.key_heads), 2)
        q, k = (turned(q), turned(k)) if size.architecture == "modern" else (q, k)
        k, v = (jnp.repeat(x, size.heads // size.key_heads, 2) for x in (k, v))
        s = jnp.einsum("bthd,bshd->bhts", q, k) / H**0.5
        p_ = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones(s.shape[-2:], bool)), s, -jnp.inf))
        y = jnp.einsum("bhts,bshd->bthd", p_, v)
        return dense(p[-1], y.reshape(x.shape))

    def perceptron(p, x):
        h = dense(p[0][1], norm(p[0][0], x))
        if size.architecture == "modern":
            gate, value = jnp.split(h, 2, -1)
            return dense(p[-1][1], jax.nn.silu(gate) * value)
        return dense(p[-1][1], jax.nn.gelu(h))

    def cost(params, batch):
        ids, labels = batch
        (embedding, positions, blocks, last), head = params
        x = embedding["table"][ids]
        x = x + positions["table"][: ids.shape[1]] if positions else x
        for i in range(size.depth):
            of_attention, of_perceptron = jax.tree.map(lambda leaf, i=i: leaf[i], blocks)
            x = x + attention(of_attention, x)
            x = x + perceptron(of_perceptron, x)
        weight = embedding["table"] if head["weight"] is None else head["weight"]
        z = norm(last, x) @ weight.T
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(z), labels[..., None], -1))

    return cost


def main(stop: run.Stop) -> int:
    options, folder = config.parsed(Config, "gpt")
    check(options)
    with place(options) as mesh:
        try:
            return experiment(options, folder, mesh, stop, Console(highlight=False, soft_wrap=True, markup=False))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise mb.InputError(out_of_memory(options, mesh.devices.flat[0])) from None


def out_of_memory(config: Config, used: jax.Device) -> str:
    """What would have room."""
    size = replace(SIZES[config.size], length=config.length or SIZES[config.size].length)
    memory = (used.memory_stats() or {}).get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    schedule = config.schedule + ", update in backward" * config.update_in_backward
    told = plan.advice(size, config.batch_size, PRECISIONS[config.precision], schedule, memory, config.accumulate)
    return f"out of memory: {told.replace(chr(10), '; ')}"


def experiment(config: Config, folder: Path | None, mesh: Mesh, stop: run.Stop, console: Console) -> int:
    placing.want_divided(config.batch_size, mesh, config.accumulate)
    named = SIZES[config.size]
    length, compute = config.length or named.length, PRECISIONS[config.precision]
    data = text.load(config.data, length, config.files, config.tokenizer, config.seed)
    size = replace(named, vocabulary=data.vocabulary, length=length)
    objective = objective_of(config, size)
    known, drawn = placing.fed(data.train, data.draw, config.batch_size, mesh)
    held_out = placing.on_devices(data.held_out, mesh)
    skips = config.skip_nonfinite or (SKIPS if config.precision == "float16" else 0)
    kind = StepInBackward if config.update_in_backward else Step
    step = kind(
        placing.arranged(objective, mesh, config),
        optimizer(config),
        config.batch_size,
        config.seed,
        drawn,
        layer_norms(objective),
        skips,
        objective,
    )
    plain = gpt(size, Schedule(config.schedule, compute=compute))
    like = step.params(placing.shapes_of(step, known))
    weights = load_weights(config.weights, size, like) if config.weights else None
    used = mesh.devices.flat[0]
    speed = Speed("tokens", config.batch_size * length, training_flops(size, config.batch_size * length))

    @jax.jit
    def held_out_cost(params, held_out):
        keys = jax.random.split(jax.random.key(1), 8)
        costs = lambda key: plain.apply(params, state, data.draw(key, held_out, config.batch_size))
        return jnp.mean(lax.map(costs, keys))

    told = placing.told(data.train)
    with run.opened("gpt", config, folder, mesh, stop, console, speed, told) as here:
        training = placing.started(step, known, mesh, weights)
        count = sum(leaf.size for leaf in jax.tree.leaves(step.params(training)))
        here.print(f"device  {describe(mesh)}")
        here.print(f"model   {config.size}: {size.depth} blocks of width {size.width}, {count:,} parameters")
        here.print(f"data    {config.data}, {size.vocabulary} tokens, {config.batch_size} × {size.length} a step")
        here.print(f"keeps   {config.schedule}{', updates in the backward pass' * config.update_in_backward}")
        speed.limit = mesh.size * matmul_rate(used, compute or "float32")
        state = plain.init(jax.random.key(0), next_batch(step, known, training))[1]  # a transformer has none
        here.restore(training)
        chunk = config.check_gradients or min(max(1, config.steps // 50), 50)
        for training, metrics in here.chunks(step, known, chunk):
            params = averages(training.optimizer_state, step.params(training))
            row = {"held_out_cost": float(held_out_cost(params, held_out))}
            if config.check_gradients:
                batch = next_batch(step, known, training)
                row["gradient_difference"] = gradient_difference(plain, reference(size), params, state, batch)
            if config.sample and passed_a_fifth(int(training.step), len(metrics.cost), config.steps):
                row["sample"] = data.decode(sample(size, plain, params, state, config.sample, config.seed))
                here.print(f"sample  step {int(training.step)}: {row['sample']!r}")
            here.record(training, metrics, row, score=row["held_out_cost"])
        training, results = here.training, {}
        params = averages(training.optimizer_state, step.params(training))
        whole = hosts.gathered(params)  # on the host, where one process has it all
        if here.rows and hosts.is_first():
            pictures.text_curves(here.rows, data.entropy, here.folder / "curves.png")
            some = data.draw(jax.random.key(2), data.held_out, 4)
            lengths = sensitivities(plain, whole, state, some)
            pictures.text_sensitivities(lengths, here.folder / "sensitivities.png")
        if here.complete:
            if hosts.is_first():
                save_weights(here.file("weights.safetensors"), size, whole)
            if config.profile:
                with jax.profiler.trace(str(here.folder / "trace")):
                    list(train(step, training, known, config.steps + 3, 1))
            results = {"held_out_cost": float(held_out_cost(params, held_out)), "entropy": data.entropy}
            results |= results_of(here.rows, speed)
        code = here.finished(results)
        if results:
            tell(results, config.precision, here)
        return code


def sensitivities(objective: mb.Layer, params, state, batch) -> list[tuple[str, np.ndarray]]:
    """Of each layer by name, from the first: how long ∂C/∂a of its input is at every position, [length]."""
    found = []
    for where, values in every_value(objective, params, state, batch):
        if where.startswith("backward, at model") and getattr(values[1], "ndim", 0) == 3:
            lengths = jnp.linalg.norm(values[1].astype(jnp.float32), axis=-1)
            found.append((where.removeprefix("backward, at ").split("(")[0], np.asarray(lengths.mean(0))))
    return found[::-1]


def passed_a_fifth(step: int, taken: int, steps: int) -> bool:
    """Whether one of the five moments of a run is among the steps just taken."""
    return 5 * step // steps > 5 * (step - taken) // steps


def results_of(rows: list[dict], speed: Speed) -> dict:
    results = speed.results()
    if differences := [row["gradient_difference"] for row in rows if "gradient_difference" in row]:
        results["largest_gradient_difference"] = max(differences)
    if skipped := sum(row["skipped"] for row in rows):
        results["skipped_steps"] = skipped
    return results


def tell(results: dict, precision: str, here: run.Run) -> None:
    here.print(f"cost    {results['held_out_cost']:.4f} nats a token, held out")
    if results["entropy"] is not None:
        over = results["held_out_cost"] / results["entropy"] - 1
        here.print(f"entropy {results['entropy']:.4f}: the cost is {100 * over:+.2f} % from it")
    if "units_per_second" in results:
        here.print(
            f"speed   {results['units_per_second']:,.0f} tokens/s; {results['flops_per_second'] / 1e9:.1f} GFLOP/s in "
            f"matrix products, {100 * results['utilization']:.0f} % of what a large one reaches here (MFU)"
        )
    if skipped := results.get("skipped_steps"):
        here.print(f"skipped {skipped} steps, whose gradient was not finite in {precision}")
    if "largest_gradient_difference" in results:
        most = results["largest_gradient_difference"]
        here.print(f"largest difference to jax.grad's gradient, in float64: {most:.1e}")


def sample(size: Size, objective, params, state, count: int, seed: int) -> list[int]:
    """Tokens drawn one after another, each by the `length` before it at most."""

    @jax.jit
    def following(window, place, key):
        z = logits(objective, params, state, window[None])[0, place]
        return jax.random.categorical(key, z)

    ids = [0]
    for key in jax.random.split(jax.random.key(seed), count):
        window = ids[-size.length :]
        padded = jnp.asarray(window + [0] * (size.length - len(window)), jnp.int32)
        ids.append(int(following(padded, len(window) - 1, key)))
    return ids[1:]


if __name__ == "__main__":
    run.main(main)
