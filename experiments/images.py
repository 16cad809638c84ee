"""Pictures, read by a convolutional network: VGG, ResNet or ConvNeXt, gradients written by hand, batch norm included.

    python3 scripts/run.py images                                            (handwritten digits, enlarged)
    python3 scripts/run.py images --data cifar10 --model resnet18 --flip --precision bfloat16 --steps 20000
    python3 scripts/run.py images --data folder --data-dir pictures --size 64 --flip

At the end of a vgg our backward pass is held against jax.grad of an independent copy of the network: the largest
difference of the gradients, the time of a step, and the memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

import manual_backprop as mb
from manual_backprop.errors import choose
from manual_backprop.layers import Apply
from manual_backprop.models.convnet import CONVNEXTS, RESNETS, convnext, resnet, vgg
from manual_backprop.testing import Program, compare, gradient_difference
from manual_backprop.training import augment, config, hosts, image_pictures, images, placing, run
from manual_backprop.training.devices import describe
from manual_backprop.training.environment import place
from manual_backprop.training.flow import layer_norms
from manual_backprop.training.loop import Step, Training
from manual_backprop.training.optimizers import averages, averaging
from manual_backprop.training.progress import Speed
from manual_backprop.training.weights import save_params

MODELS = ("vgg", *RESNETS, *CONVNEXTS)
PRECISIONS = ("float32", "bfloat16")
KEEPS = ("everything", "dear", "inputs")
SIDE = 16  # pixels that digits are enlarged to
KNOWN = 1000  # pictures to learn from that are judged too
SETTLING = 50  # batches that batch norm's running statistics are made of, for weights that are averages


@dataclass(frozen=True)
class Config(config.Config):
    """Train a convolutional network on pictures with gradients written by hand."""

    model: str = "vgg"
    """vgg, resnet18, resnet34, resnet50, resnet101, resnet152, convnext-atto, convnext-tiny, …"""
    widths: tuple[int, ...] = (32, 64, 128)
    """Of vgg: channels, which are more each time that height and width are halved."""
    depth: int = 2
    """Of vgg: convolutions of each width."""
    data: str = "digits"
    """digits (no download), mnist, fashion-mnist, cifar10, cifar100, or folder: pictures of one's own."""
    data_dir: Path | None = None
    """Folder with the files; by default they are downloaded and verified."""
    size: int | None = None
    """Pixels a side: a folder's pictures are resized, others enlarged; by default digits to 16, others as they are."""
    optimizer: str = "sgd"
    """sgd (with Nesterov's momentum of 0.9) or adamw."""
    learning_rate: float = 0.1
    """The largest; it rises for the first twentieth of the steps, and falls along a cosine to zero."""
    weight_decay: float = 5e-4
    """Of matrices; not of biases and scales."""
    precision: str = "float32"
    """What the network computes in: float32 or bfloat16; sums, statistics and parameters are float32 in any case."""
    keep: str = "everything"
    """Of a resnet, what its backward pass keeps: everything, dear (what costs little is computed again), inputs."""
    crop: int | None = None
    """Pixels that pictures are moved by at random, at most; by default an eighth of a side."""
    flip: bool = False
    """Mirror half of the pictures; and judge by the mean over a picture and its mirror image."""
    mixup: float = 0.0
    """Mix pairs of pictures, shares drawn from Beta(α, α) with this α; 0: none."""
    label_smoothing: float = 0.0
    """A share of each target that goes to all classes alike."""
    steps: int = 500
    """Steps of gradient descent."""


def check(config: Config) -> None:
    """Raises InputError for a value that no part of the program would catch in time."""
    config.check()
    choose("--model", config.model, dict.fromkeys(MODELS))
    choose("--optimizer", config.optimizer, OPTIMIZERS)
    choose("--precision", config.precision, dict.fromkeys(PRECISIONS))
    choose("--keep", config.keep, dict.fromkeys(KEEPS))
    if config.data == "digits" and config.data_dir:
        raise mb.InputError(f"--data-dir {config.data_dir}: --data digits needs no files; name another, say mnist")
    for name in ("weight_decay", "mixup"):
        if not 0 <= getattr(config, name) < math.inf:
            option = f"--{name.replace('_', '-')}"
            raise mb.InputError(f"{option} {getattr(config, name)} is out of range; wants 0, or a positive number")
    if not 0 < config.learning_rate < math.inf:
        raise mb.InputError(f"--learning-rate {config.learning_rate} is out of range; wants a positive number")
    if not 0 <= config.label_smoothing < 1:
        raise mb.InputError(f"--label-smoothing {config.label_smoothing} is out of range; wants 0, or a number below 1")
    if any(width < 1 for width in config.widths) or not config.widths:
        raise mb.InputError(f"--widths {' '.join(map(str, config.widths)) or '(none)'}: wants one or more, at least 1")
    if config.depth < 1:
        raise mb.InputError(f"--depth {config.depth} is out of range; wants at least 1")
    if config.model != "vgg" and (config.widths, config.depth) != (Config.widths, Config.depth):
        raise mb.InputError(f"--widths, --depth: {config.model} has its own; leave them out, or take --model vgg")
    if config.model not in RESNETS and config.keep != "everything":
        raise mb.InputError(f"--keep {config.keep}: {config.model} keeps everything; wants a resnet")
    if config.batch_size == 1 and config.model not in CONVNEXTS:
        raise mb.InputError("--batch-size 1: batch norm takes its statistics over a batch; wants at least 2")


def want_room(config: Config, pixels: images.Images) -> None:
    """Raises InputError for pictures that are too small for the network or for the crop."""
    least, (height, width) = strides(config, min(pixels.shape)), pixels.shape
    if min(height, width) < least:
        raise mb.InputError(
            f"--model {config.model}: halves pictures until one pixel is left of {least}, but they have "
            f"{height}×{width}; wants a larger --size{' or fewer --widths' * (config.model == 'vgg')}"
        )
    if not 0 <= crop_of(config, pixels) < min(height, width):
        raise mb.InputError(
            f"--crop {config.crop} is out of range; pictures have {height}×{width} pixels: wants 0 … "
            f"{min(height, width) - 1}"
        )


def strides(config: Config, side: int) -> int:
    """What the network divides height and width by."""
    if config.model == "vgg":
        return 2 ** len(config.widths)
    return 8 * (patch(side) if config.model in CONVNEXTS else 4 if side >= 64 else 1)


def patch(side: int) -> int:
    """Pixels that become one at the start of a convnext."""
    return 4 if side >= 64 else 2 if side >= 32 else 1


def crop_of(config: Config, pixels: images.Images) -> int:
    """Pixels that pictures are moved by, at most."""
    return min(pixels.shape) // 8 if config.crop is None else config.crop


def network(config: Config, classes: int, side: int) -> mb.Objective:
    """The model and its cost. In bfloat16 the cost stays in float32."""
    if config.model == "vgg":
        model = vgg(classes, widths=config.widths, depth=config.depth)
    elif config.model in RESNETS:
        model = resnet(config.model, classes, stem="large" if side >= 64 else "small", keep=config.keep)
    else:
        model = convnext(config.model, classes, patch=patch(side))
    if config.precision != "float32":
        model = mb.Serial(*(mb.Precision(layer, config.precision) for layer in model.layers))
    return mb.Objective(model, Apply(mb.ops.softmax_cross_entropy(label_smoothing=config.label_smoothing)))


def reference(config: Config):
    """The cost of a vgg in plain JAX, for jax.grad: `cost(params, (x, target))`."""

    def cost(params, batch):
        (x, target), leaves = batch, jax.tree.leaves(params)
        for _ in config.widths:
            for _ in range(config.depth):
                w, bias, scale, *leaves = leaves
                x = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
                mean, variance = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
                x = jax.nn.relu((x - mean) / jnp.sqrt(variance + 1e-5) * scale + bias)
            x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        b, w = leaves
        z = jnp.mean(x, (1, 2)) @ w + b
        p = target if target.ndim == 2 else jax.nn.one_hot(target, z.shape[-1])
        p = (1 - config.label_smoothing) * p + config.label_smoothing / z.shape[-1]
        return -jnp.mean(jnp.sum(p * jax.nn.log_softmax(z), -1))

    return cost


def schedule(config: Config) -> optax.Schedule:
    warm_up = max(1, config.steps // 20)
    return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warm_up, max(warm_up + 1, config.steps))


def is_matrix(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "w", params)


def sgd(rate: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    decay = optax.add_decayed_weights(weight_decay, is_matrix)
    return optax.chain(decay, optax.sgd(rate, momentum=0.9, nesterov=True))


def adamw(rate: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    return optax.adamw(rate, weight_decay=weight_decay, mask=is_matrix)


OPTIMIZERS = {"sgd": sgd, "adamw": adamw}


def main(stop: run.Stop) -> int:
    options, folder = config.parsed(Config, "images")
    check(options)
    with place(options) as mesh:
        try:
            return experiment(options, folder, mesh, stop, Console(highlight=False, soft_wrap=True))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            wanted = "a smaller --batch-size, --precision bfloat16, or of a resnet --keep inputs"
            raise mb.InputError(f"out of memory: wants {wanted}") from None


def experiment(config: Config, folder: Path | None, mesh: Mesh, stop: run.Stop, console: Console) -> int:
    placing.want_divided(config.batch_size, mesh)
    size = SIDE if config.data == "digits" and config.size is None else config.size
    pixels = images.load(config.data, config.data_dir, size)
    want_room(config, pixels)
    classes, moments = len(pixels.names), augment.moments(pixels.train_x, pixels.white)
    objective = network(config, classes, min(pixels.shape))
    targets = np.eye(classes, dtype=np.float32)[pixels.train_labels] if config.mixup else pixels.train_labels
    draw = augment.augmented(pixels.white, *moments, flip=config.flip, crop=crop_of(config, pixels), mix=config.mixup)
    data, drawn = placing.fed((pixels.train_x, targets), draw, config.batch_size, mesh)
    known = placing.on_devices((pixels.train_x[:KNOWN], pixels.train_labels[:KNOWN]), mesh)
    held_out = placing.on_devices((pixels.test_x, pixels.test_labels), mesh)
    rate = schedule(config)
    descent = optax.with_extra_args_support(OPTIMIZERS[config.optimizer](rate, config.weight_decay))
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

    def logits(params, state, x):
        """Of pictures as bytes [n, …], a batch at a time."""
        scaled = lambda x: augment.standardised(x, *moments, pixels.white)
        of = lambda x: objective.model.apply(params[0], state[0], scaled(x)).astype(jnp.float32)
        return in_batches(augment.both_ways(of) if config.flip else of, x, config.batch_size)

    @jax.jit
    def judged(params, state, x, labels):
        """The cost, and the share that is read right, of pictures as they are."""
        z = logits(params, state, x)
        costs = optax.losses.softmax_cross_entropy_with_integer_labels(z, labels)
        return jnp.mean(costs), jnp.mean(z.argmax(-1) == labels)

    @jax.jit
    def settled_state(params, state, data):
        batch = lambda key: drawn(key, data, config.batch_size)[0]
        return settled(objective.model, params[0], state[0], batch, jax.random.key(config.seed)), state[1]

    def to_judge(training):
        """Weights and state: those of the training, or the average of the weights and statistics of its own."""
        if not config.ema:
            return training.params, training.state
        params = averages(training.optimizer_state, training.params)
        return params, settled_state(params, training.state, data)

    placing.shapes_of(step, data)  # what does not fit is told before there is a folder
    speed = Speed("pictures", config.batch_size)
    told = placing.told((pixels.train_x, targets))
    with run.opened("images", config, folder, mesh, stop, console, speed, told) as here:
        first = placing.started(step, data, mesh)
        count = sum(leaf.size for leaf in jax.tree.leaves(first.params))
        (height, width), channels = pixels.shape, pixels.train_x.shape[-1]
        here.print(f"device  {describe(mesh)}")
        here.print(f"model   {config.model}, {height}×{width}×{channels} in, {classes} classes, {count:,} parameters")
        here.print(f"cost    {objective.cost!r}, minimised by {config.optimizer}, in {config.precision}")
        here.print(f"data    {config.data}, {len(data[0]):,} pictures to learn from, {len(held_out[0]):,} held out")
        here.restore(first)
        for training, metrics in here.chunks(step, data, min(max(1, config.steps // 25), 200)):
            weights = to_judge(training)
            cost, right = map(float, judged(*weights, *held_out))
            row = {"held_out_cost": cost, "train_accuracy": float(judged(*weights, *known)[1]), "accuracy": right}
            here.record(training, metrics, row | {"learning_rate": float(rate(int(training.step) - 1))}, -right)
        last, results = here.training, {}
        weights = to_judge(last)
        numbers = dict(zip(("held_out_cost", "accuracy"), map(float, judged(*weights, *held_out)), strict=True))
        z = jax.jit(logits)(*weights, held_out[0])
        drawn_again = jax.jit(lambda data, training: step.batch(data, training)[0])
        batches = hosts.gathered([drawn_again(data, training) for training in (first, last)])
        first, last, weights, z = hosts.gathered((first, last, weights, z))  # on the host, where one process has it all
        if hosts.is_first():
            if here.rows:
                draw_pictures(config, objective, first, weights, batches, pixels, moments, z, here.rows, here.folder)
            if here.complete:
                save_params(here.file("weights.safetensors"), weights)
                results = numbers | speed.results()
                if config.model == "vgg":
                    results |= judge(config, objective.cost, classes, first, last, batches)
        code = here.finished(results)
        if results:
            here.print(table(results))
        return code


def settled(model: mb.Layer, params, state, batch, key):
    """The state after passes of these weights, forward alone, through batches such as those of the training.

    batch: a function of a key.  What is left of the state before, under batch norm with momentum 0.9, is 0.9⁵⁰ = 0.5 %.
    """
    move = lambda state, key: (model.forward(params, state, batch(key), None)[1], None)
    return lax.scan(move, state, jax.random.split(key, SETTLING))[0]


def in_batches(logits, x, size: int):
    """logits(x) of each `size` examples after the other, and of the rest."""
    whole = len(x) - len(x) % size
    parts = [lax.map(logits, x[:whole].reshape(-1, size, *x.shape[1:])).reshape(whole, -1)] if whole else []
    return jnp.concatenate(parts + ([logits(x[whole:])] if whole < len(x) else []))


def draw_pictures(
    config: Config, objective, first: Training, weights, batches, pixels: images.Images, moments, z, rows, folder: Path
):
    """The five pictures."""

    @jax.jit
    def sensitivities(params, state, batch):
        cost, _, residuals = objective.forward(params, state, batch)
        dparams, (dx, _) = objective.backward(params, residuals, jnp.ones_like(cost))
        return first_filters(dparams), dx

    image_pictures.curves(rows, folder / "curves.png")
    found = []
    for each, batch in zip(((first.params, first.state), weights), batches, strict=True):
        found += [np.asarray(first_filters(each[0])), np.asarray(sensitivities(*each, batch)[0])]
    image_pictures.filters(*found, folder / "filters.png")
    labels, names, grey = pixels.test_labels, pixels.names, "gray_r" if config.data in images.GREY else "gray"
    shown = one_of_each(labels, len(batches[0][0]))
    x, label = pixels.test_x[shown], labels[shown]
    _, dx = sensitivities(*weights, (augment.standardised(x, *moments, pixels.white), label))
    titles = [names[i] for i in label[:10]]
    image_pictures.saliency(x[:10] / pixels.white, np.asarray(dx[:10]), titles, grey, folder / "saliency.png")
    probabilities = np.asarray(jax.nn.softmax(np.asarray(z, np.float32)))
    image_pictures.confusion(labels, probabilities.argmax(-1), names, folder / "confusion.png")
    image_pictures.mistakes(pixels, probabilities, grey, folder / "mistakes.png")


def first_filters(params):
    """w of the first convolution, [height, width, channels, filters]."""
    return next(leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 4)


def one_of_each(labels, n: int) -> np.ndarray:
    """The places of n examples: first one of each class, then others; some again where there are fewer."""
    _, firsts = np.unique(labels, return_index=True)
    others = np.setdiff1d(np.arange(len(labels)), firsts)
    return np.resize(np.concatenate([firsts, others]), n)


def judge(config: Config, cost, classes: int, first: Training, last: Training, batches) -> dict[str, float]:
    """Our backward pass against jax.grad's of the reference: how equal, how fast, how large. In float32 and float64."""
    plain = mb.Objective(vgg(classes, widths=config.widths, depth=config.depth), cost)
    differences = [
        gradient_difference(plain, reference(config), training.params, training.state, batch)
        for training, batch in zip((first, last), batches, strict=True)
    ]
    gradient = mb.value_and_grad(plain)
    ours = Program(lambda params, batch: gradient(params, last.state, batch), (last.params, batches[1]))
    result = compare(ours, Program(jax.value_and_grad(reference(config)), (last.params, batches[1])), rounds=15)
    return {
        "gradient_difference_first": differences[0],
        "gradient_difference_last": differences[1],
        "step_ms": result.ours.step_s * 1e3,
        "step_ms_jax_grad": result.peer.step_s * 1e3,
        "temp_bytes": result.ours.temp_bytes,
        "temp_bytes_jax_grad": result.peer.temp_bytes,
    }


def table(results: dict[str, float]) -> Table:
    r = results
    compared = "step_ms" in r
    rows = Table("", "by hand", "jax.grad" * compared, "ratio" * compared, box=None, pad_edge=False)
    rows.add_row("accuracy on held-out pictures", f"{r['accuracy']:.4f}")
    rows.add_row("cost held out", f"{r['held_out_cost']:.4f}")
    if "units_per_second" in r:
        rows.add_row("pictures a second, in training", f"{r['units_per_second']:,.0f}")
    if not compared:
        rows.add_row("(gradients are held against jax.grad's for --model vgg alone)")
        return rows
    rows.add_row("largest gradient difference, first step (float64)", f"{r['gradient_difference_first']:.1e}")
    rows.add_row("largest gradient difference, last step (float64)", f"{r['gradient_difference_last']:.1e}")
    ms = [r["step_ms"], r["step_ms_jax_grad"]]
    rows.add_row("cost and gradient of a batch, ms", f"{ms[0]:.3f}", f"{ms[1]:.3f}", f"{ms[0] / ms[1]:.2f}")
    mb_ = [r["temp_bytes"] / 1e6, r["temp_bytes_jax_grad"] / 1e6]
    rows.add_row("temporary memory, MB", f"{mb_[0]:.1f}", f"{mb_[1]:.1f}", f"{mb_[0] / mb_[1]:.2f}" if mb_[1] else "")
    return rows


if __name__ == "__main__":
    run.main(main)
