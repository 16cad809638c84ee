"""A transformer that learns text, trained without autodiff: GPT-2 or today's architecture, gradients written by hand.

    python3 scripts/run.py gpt                              (a source of known entropy: how close can it come?)
    python3 scripts/run.py gpt --data python --size small   (the interpreter's own standard library, byte by byte)

The schedule of the backward pass is a choice: what is kept, in which pieces, and whether a layer is updated as soon as
its gradient is known. `--check-gradients N` compares with jax.grad of plain JAX code every N steps.
"""

from __future__ import annotations

import math
import os
import platform
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import tyro
from jax import lax
from rich.console import Console

import manual_backprop as mb
from manual_backprop import ops
from manual_backprop.errors import choose
from manual_backprop.models.gpt import SIZES, Schedule, Size, gpt, logits, training_flops
from manual_backprop.testing import gradient_difference
from manual_backprop.training import pictures, plan, run, text
from manual_backprop.training.descent import StepInBackward
from manual_backprop.training.devices import describe, device, matmul_rate
from manual_backprop.training.loop import NonFinite, Step, train
from manual_backprop.training.progress import progress
from manual_backprop.training.weights import load_weights, save_weights

SCHEDULES = ("everything", "dear", "inputs", "last")
PRECISIONS = {"float32": None, "bfloat16": "bfloat16", "float16": "float16"}
DECAYED = ("w", "table", "weight")  # matrices; not biases and scales
SKIPS = 50  # gradients in a row that float16 may overflow in, while the scale of its cost is found


@dataclass(frozen=True)
class Config:
    """Train a transformer on text with gradients written by hand."""

    size: str = "tiny"
    """A size by its name: tiny, small, gpt2-124m, …, modern-tiny, modern-124m, …"""
    data: str = "markov"
    """markov (a source of known entropy), python (the standard library's sources) or files."""
    files: tuple[Path, ...] = ()
    """Text files, for --data files."""
    tokenizer: Path | None = None
    """A tokenizer.json of the tokenizers library, for --data files; by default a token is a byte."""
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
    seed: int = 0
    """Of the first weights and of the batches."""
    device: str | None = None
    """cpu, gpu or tpu; by default JAX chooses."""
    folder: Path | None = None
    """Folder for the results, which must not exist; by default runs/gpt/<time>."""


def check(config: Config) -> None:
    """Raises InputError for a value that no part of the program would catch in time."""
    choose("--size", config.size, SIZES)
    choose("--schedule", config.schedule, dict.fromkeys(SCHEDULES))
    choose("--precision", config.precision, PRECISIONS)
    choose("--attention", config.attention, dict.fromkeys(("xla", "cudnn")))
    run.want_seed(config.seed)
    for name in ("check_gradients", "sample", "clip", "weight_decay", "learning_rate"):
        if not 0 <= getattr(config, name) < math.inf:
            option = f"--{name.replace('_', '-')}"
            raise mb.InputError(f"{option} {getattr(config, name)} is out of range; wants 0, or a positive number")
    tokens = config.batch_size * (config.length or SIZES[config.size].length)
    if tokens >= 2**31:
        raise mb.InputError(f"--batch-size {config.batch_size}: {tokens:,} tokens a step; wants fewer than {2**31:,}")
    if config.attention == "cudnn" and config.precision == "float32":
        raise mb.InputError("--attention cudnn: its kernel takes bfloat16 and float16; wants --precision of these")
    for name in ("steps", "batch_size", "accumulate"):
        if getattr(config, name) < 1:
            raise mb.InputError(f"--{name.replace('_', '-')} {getattr(config, name)} is out of range; wants at least 1")
    if config.length is not None and not 2 <= config.length <= SIZES[config.size].length:
        raise mb.InputError(
            f"--length {config.length}: {config.size} has {SIZES[config.size].length} positions; wants 2 to so many"
        )
    if config.batch_size % config.accumulate:
        raise mb.InputError(f"--accumulate {config.accumulate} does not divide --batch-size {config.batch_size}")
    if config.update_in_backward and (config.clip or config.accumulate > 1 or config.precision == "float16"):
        raise mb.InputError(
            "--update-in-backward: the length of the whole gradient, the sum over parts of a batch, and whether "
            "float16 has overflown, are known only at the end; wants --clip 0 --accumulate 1, and float32 or bfloat16; "
            "or leave it out: --schedule inputs is the leanest without it"
        )
    if config.check_gradients and config.schedule == "last":
        raise mb.InputError(
            "--check-gradients: --schedule last is another model, of two streams; wants another schedule"
        )


def optimizer(config: Config) -> optax.GradientTransformationExtraArgs:
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, max(1, config.steps // 20), max(2, config.steps), config.learning_rate / 10
    )
    decayed = lambda params: jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in DECAYED, params)
    adamw = optax.adamw(rate, b2=0.99, weight_decay=config.weight_decay, mask=decayed)
    clipped = optax.chain(optax.clip_by_global_norm(config.clip), adamw) if config.clip else adamw
    return optax.with_extra_args_support(clipped)


def objective_of(config: Config, size: Size) -> mb.Layer:
    schedule, _ = plan.SCHEDULES[config.schedule]
    if config.attention == "cudnn":
        schedule = replace(schedule, attention=ops.chunked_attention(causal=True, implementation="cudnn"))
    objective = gpt(size, replace(schedule, compute=PRECISIONS[config.precision]))
    if config.accumulate > 1:
        objective = mb.MicroBatches(objective, config.accumulate)
    return mb.LossScale(objective) if config.precision == "float16" else objective


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


def main() -> int:
    config = tyro.cli(Config, description=Config.__doc__)
    check(config)
    used = device(config.device)
    with jax.default_device(used):
        try:
            return experiment(config, used, Console(highlight=False, soft_wrap=True, markup=False))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise mb.InputError(out_of_memory(config, used)) from None


def out_of_memory(config: Config, used: jax.Device) -> str:
    """What would have room."""
    size = replace(SIZES[config.size], length=config.length or SIZES[config.size].length)
    memory = (used.memory_stats() or {}).get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    schedule = config.schedule + ", update in backward" * config.update_in_backward
    told = plan.advice(size, config.batch_size, PRECISIONS[config.precision], schedule, memory, config.accumulate)
    return f"out of memory: {told.replace(chr(10), '; ')}"


def experiment(config: Config, used: jax.Device, console: Console) -> int:
    named = SIZES[config.size]
    data = text.load(config.data, config.length or named.length, config.files, config.tokenizer, config.seed)
    size = replace(named, vocabulary=data.vocabulary, length=config.length or named.length)
    objective = objective_of(config, size)
    kind = StepInBackward if config.update_in_backward else Step
    skips = SKIPS if config.precision == "float16" else 0
    step = kind(objective, optimizer(config), config.batch_size, config.seed, data.draw, block_norms, skips)
    training = jax.jit(step.start)(data.train)
    if config.weights:
        training = jax.jit(step.started)(load_weights(config.weights, size, step.params(training)), training.state)
    first = training

    count = sum(leaf.size for leaf in jax.tree.leaves(step.params(training)))
    console.print(f"device  {describe(used)}")
    console.print(f"model   {config.size}: {size.depth} blocks of width {size.width}, {count:,} parameters")
    console.print(f"data    {config.data}, {size.vocabulary} tokens, {config.batch_size} × {size.length} a step")
    console.print(f"keeps   {config.schedule}{', updates in the backward pass' * config.update_in_backward}")
    folder = run.new_folder("gpt", config.folder)
    versions = {"jax": jax.__version__, "python": platform.python_version(), "manual_backprop": mb.__version__}
    run.write_json(folder / "config.json", asdict(config) | {"device_used": str(used), "versions": versions})

    @jax.jit
    def held_out_cost(params):
        keys = jax.random.split(jax.random.key(1), 8)
        costs = lambda key: plain.apply(params, state, data.draw(key, data.held_out, config.batch_size))
        return jnp.mean(lax.map(costs, keys))

    plain = gpt(size, Schedule(config.schedule, compute=PRECISIONS[config.precision]))
    state = jax.eval_shape(plain.init, jax.random.key(0), step.batch(data.train, 0)[0])[1]  # a transformer has none
    differences, rows, failure, clock = [], [], None, Clock()
    chunk = config.check_gradients or min(max(1, config.steps // 50), 50)
    with (
        run.stop_on_interrupt() as stop,
        (folder / "metrics.jsonl").open("x") as metrics_file,
        progress(console, config.steps) as update,
    ):
        try:
            for training, metrics in clock.timed(train(step, first, data.train, config.steps, chunk)):
                params = step.params(training)
                if config.check_gradients:
                    batch, _ = step.batch(data.train, training.step)
                    differences.append(gradient_difference(plain, reference(size), params, state, batch))
                row = {
                    "step": int(training.step),
                    "cost": float(metrics.cost.mean()),
                    "held_out_cost": float(held_out_cost(params)),
                    **gradient_norms(metrics),
                }
                rows.append(row)
                run.append_row(metrics_file, row)
                update(row["step"], f"cost {row['cost']:.4f}  held out {row['held_out_cost']:.4f}")
                if (
                    config.sample
                    and 5 * row["step"] // config.steps > 5 * (row["step"] - len(metrics.cost)) // config.steps
                ):
                    written = data.decode(sample(size, plain, params, state, config.sample, config.seed))
                    with (folder / "samples.txt").open("a") as samples:
                        samples.write(f"step {row['step']}\n{written}\n\n")
                    console.print(f"sample  step {row['step']}: {written!r}")
                if stop.requested:
                    break
        except NonFinite as error:
            failure = error
    if rows:
        pictures.text_curves(rows, data.entropy, folder / "curves.png")
    if not failure:
        save_weights(folder / "weights.safetensors", size, step.params(training))
    console.print(f"wrote   {folder}/")
    if failure:
        raise failure
    if stop.requested:
        console.print(f"stopped by Ctrl-C after step {int(training.step)}; its files are finished")
        return 130
    if config.profile:
        with jax.profiler.trace(str(folder / "trace")):
            list(train(step, training, data.train, config.steps + 3, 1))
    tell(config, used, console, size, data, rows, differences, folder, clock)
    return 0


class Clock:
    """Time and steps of training alone: without evaluation, and without what compiles in the first chunk."""

    def __init__(self):
        self.steps, self.seconds = 0, 0.0

    def timed(self, chunks):
        first, resumed = True, time.perf_counter()
        for training, metrics in chunks:
            if not first:
                self.steps += len(metrics.cost)
                self.seconds += time.perf_counter() - resumed
            first = False
            yield training, metrics
            resumed = time.perf_counter()


def gradient_norms(metrics) -> dict:
    """Means over the steps of a chunk that were not left out; null where all were."""
    kept = ~metrics.skipped
    mean = lambda values: float(values[kept].mean()) if kept.any() else None
    blocks = [mean(norms) for norms in metrics.more.T] if len(metrics.more) and kept.any() else []
    return {"gradient_norm": mean(metrics.gradient_norm), "block_norms": blocks, "skipped": int(metrics.skipped.sum())}


def block_norms(gradient):
    """The length of the gradient of each block, [depth]."""
    blocks = gradient[0][2]
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf), tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(blocks)))


def tell(config, used, console, size, data, rows, differences, folder, clock) -> None:
    """The results: in a file, and on the console."""
    tokens = clock.steps * config.batch_size * size.length
    results = {"held_out_cost": rows[-1]["held_out_cost"], "entropy": data.entropy}
    if tokens:
        speed = tokens / clock.seconds
        flops, most = training_flops(size, 1) * speed, matmul_rate(used, PRECISIONS[config.precision] or "float32")
        results |= {
            "tokens_per_second": speed,
            "matmul_flops_per_second": flops,
            "model_flops_utilization": flops / most,
        }
    if differences:
        results["largest_gradient_difference"] = max(differences)
    if any(row["skipped"] for row in rows):
        results["skipped_steps"] = sum(row["skipped"] for row in rows)
    run.write_json(folder / "result.json", results)
    console.print(f"cost    {results['held_out_cost']:.4f} nats a token, held out")
    if data.entropy is not None:
        over = results["held_out_cost"] / data.entropy - 1
        console.print(f"entropy {data.entropy:.4f}: the cost is {100 * over:+.2f} % from it")
    if tokens:
        console.print(
            f"speed   {speed:,.0f} tokens/s; {flops / 1e9:.1f} GFLOP/s in matrix products, "
            f"{100 * flops / most:.0f} % of what a large one reaches here (MFU)"
        )
    if skipped := results.get("skipped_steps"):
        console.print(f"skipped {skipped} steps, whose gradient was not finite in {config.precision}")
    if differences:
        console.print(f"largest difference to jax.grad's gradient, in float64: {max(differences):.1e}")


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
