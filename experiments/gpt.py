"""A transformer that learns text, trained without autodiff: GPT-2 or today's architecture, gradients written by hand.

    python3 scripts/run.py gpt                              (a source of known entropy: how close can it come?)
    python3 scripts/run.py gpt --data python --size small   (the interpreter's own standard library, byte by byte)

The schedule of the backward pass is a choice: what is kept, in which pieces, and whether a layer is updated as soon as
its gradient is known. `--check-gradients N` compares with jax.grad of plain JAX code every N steps.
"""

from __future__ import annotations

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
from manual_backprop.training import pictures, run, text
from manual_backprop.training.descent import StepInBackward
from manual_backprop.training.devices import describe, device
from manual_backprop.training.loop import NonFinite, Step, train
from manual_backprop.training.progress import progress

SCHEDULES = ("everything", "dear", "inputs", "last")
PRECISIONS = {"float32": None, "bfloat16": "bfloat16"}
DECAYED = ("w", "table", "weight")  # matrices; not biases and scales


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
    """Of matrix products: float32 or bfloat16."""
    check_gradients: int = 0
    """Compare with jax.grad every so many steps; 0: never."""
    sample: int = 120
    """Tokens of text to write at the end."""
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
    run.want_seed(config.seed)
    for name in ("steps", "batch_size", "accumulate"):
        if getattr(config, name) < 1:
            raise mb.InputError(f"--{name.replace('_', '-')} {getattr(config, name)} is out of range; wants at least 1")
    if config.length is not None and not 2 <= config.length <= SIZES[config.size].length:
        raise mb.InputError(
            f"--length {config.length}: {config.size} has {SIZES[config.size].length} positions; wants 2 to so many"
        )
    if config.batch_size % config.accumulate:
        raise mb.InputError(f"--accumulate {config.accumulate} does not divide --batch-size {config.batch_size}")
    if config.update_in_backward and (config.clip or config.accumulate > 1):
        raise mb.InputError(
            "--update-in-backward: the length of the whole gradient, and the sum over parts of a batch, are known only "
            "at the end; wants --clip 0 --accumulate 1"
        )
    if config.check_gradients and config.schedule == "last":
        raise mb.InputError(
            "--check-gradients: --schedule last is another model, of two streams; wants another schedule"
        )


def optimizer(config: Config) -> optax.GradientTransformationExtraArgs:
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, max(1, config.steps // 20), config.steps, config.learning_rate / 10
    )
    decayed = lambda params: jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in DECAYED, params)
    adamw = optax.adamw(rate, b2=0.99, weight_decay=config.weight_decay, mask=decayed)
    clipped = optax.chain(optax.clip_by_global_norm(config.clip), adamw) if config.clip else adamw
    return optax.with_extra_args_support(clipped)


def objective_of(config: Config, size: Size) -> mb.Layer:
    attention = ops.chunked_attention(causal=True, chunk=min(128, max(16, size.length // 4)))
    schedule = Schedule(config.schedule, attention, compute=PRECISIONS[config.precision])
    objective = gpt(size, schedule)
    return objective if config.accumulate == 1 else mb.MicroBatches(objective, config.accumulate)


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
    with jax.default_device(device(config.device)):
        return experiment(config, Console(highlight=False, soft_wrap=True))


def experiment(config: Config, console: Console) -> int:
    named = SIZES[config.size]
    data = text.load(config.data, config.length or named.length, config.files, config.tokenizer, config.seed)
    size = replace(named, vocabulary=data.vocabulary, length=config.length or named.length)
    objective = objective_of(config, size)
    kind = StepInBackward if config.update_in_backward else Step
    step = kind(objective, optimizer(config), config.batch_size, config.seed, data.draw, block_norms)
    training = first = jax.jit(step.start)(data.train)

    used = jax.devices()[0] if config.device is None else jax.devices(config.device)[0]
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
    state = training.state
    differences, rows, failure, begin = [], [], None, None
    chunk = config.check_gradients or min(max(1, config.steps // 50), 50)
    with (
        run.stop_on_interrupt() as stop,
        (folder / "metrics.jsonl").open("x") as metrics_file,
        progress(console, config.steps) as update,
    ):
        try:
            for training, metrics in train(step, first, data.train, config.steps, chunk):
                begin = begin or (int(training.step), time.perf_counter())
                params = step.params(training)
                if config.check_gradients:
                    batch, _ = step.batch(data.train, training.step)
                    differences.append(gradient_difference(plain, reference(size), params, state, batch))
                row = {
                    "step": int(training.step),
                    "cost": float(metrics.cost.mean()),
                    "held_out_cost": float(held_out_cost(params)),
                    "gradient_norm": float(metrics.gradient_norm.mean()),
                    "block_norms": [float(norm) for norm in metrics.more.mean(0)] if len(metrics.more) else [],
                }
                rows.append(row)
                run.append_row(metrics_file, row)
                update(row["step"], f"cost {row['cost']:.4f}  held out {row['held_out_cost']:.4f}")
                if stop.requested:
                    break
        except NonFinite as error:
            failure = error
    seconds = time.perf_counter() - begin[1] if begin else 0.0
    if rows:
        pictures.text_curves(rows, data.entropy, folder / "curves.png")
    console.print(f"wrote   {folder}/")
    if failure:
        raise failure
    if stop.requested:
        console.print(f"stopped by Ctrl-C after step {int(training.step)}; its files are finished")
        return 130
    if config.profile:
        with jax.profiler.trace(str(folder / "trace")):
            list(train(step, training, data.train, config.steps + 3, 1))
    tell(config, console, size, data, plain, step.params(training), state, rows, differences, folder, seconds, begin)
    return 0


def block_norms(gradient):
    """The length of the gradient of each block, [depth]."""
    blocks = gradient[0][2]
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf), tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(blocks)))


def tell(config, console, size, data, plain, params, state, rows, differences, folder, seconds, begin) -> None:
    """The results: in a file, and on the console."""
    tokens = (rows[-1]["step"] - begin[0]) * config.batch_size * size.length
    results = {"held_out_cost": rows[-1]["held_out_cost"], "entropy": data.entropy}
    if tokens:
        flops = training_flops(size, 1) * tokens / seconds
        results |= {"tokens_per_second": tokens / seconds, "matmul_flops_per_second": flops}
    if differences:
        results["largest_gradient_difference"] = max(differences)
    run.write_json(folder / "result.json", results)
    written = data.decode(sample(size, plain, params, state, config.sample, config.seed))
    (folder / "sample.txt").write_text(written + "\n")
    console.print(f"cost    {results['held_out_cost']:.4f} nats a token, held out")
    if data.entropy is not None:
        over = results["held_out_cost"] / data.entropy - 1
        console.print(f"entropy {data.entropy:.4f}: the cost is {100 * over:+.2f} % from it")
    if tokens:
        console.print(
            f"speed   {tokens / seconds:,.0f} tokens/s with evaluation, {flops / 1e9:.1f} GFLOP/s in matrix products"
        )
    if differences:
        console.print(f"largest difference to jax.grad's gradient, in float64: {max(differences):.1e}")
    console.print(f"sample  {written!r}")


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
