"""experiments/images.py as a user runs it, and its parts. The models are tested in test_models.py and among the cases."""

import json
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from PIL import Image

import manual_backprop as mb
from experiment import ran
from experiments import images as experiment
from experiments.images import Config, in_batches, is_matrix, network, one_of_each, patch, schedule, settled, strides
from manual_backprop.layers import Apply
from manual_backprop.training import augment, images
from manual_backprop.training.run import Run
from manual_backprop.training.weights import load_params
from test_images import archive, made_cifar

PICTURES = {"curves.png", "filters.png", "saliency.png", "confusion.png", "mistakes.png"}
SMALL = "images", "--widths", 8, 16, "--depth", 1, "--size", 8, "--batch-size", 32
KEY = jax.random.key(0)


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def result_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def assert_pictures(folder: Path):
    for name in PICTURES:
        pixels = matplotlib.image.imread(folder / name)
        assert pixels.shape[0] > 200 and pixels.shape[1] > 300
        assert pixels[..., :3].std() > 0.02  # not blank


def test_the_experiment(tmp_path, capsys):
    run = tmp_path / "run"
    code, out, err = ran(capsys, *SMALL, "--steps", 150, "--folder", run)
    assert (code, err) == (0, "")
    assert "model   vgg, 8×8×1 in, 10 classes" in out and "1,438 pictures to learn from, 359 held out" in out
    files = {"config.json", "environment.json", "events.jsonl", "metrics.jsonl", "result.json", "report.html", ".lock"}
    assert {path.name for path in run.iterdir()} == files | {"checkpoints", "weights.safetensors"} | PICTURES
    rows, result = rows_of(run), result_of(run)
    assert rows[-1]["step"] == 150 and len(rows) == 25
    assert rows[-1]["accuracy"] == pytest.approx(result["accuracy"]) and result["accuracy"] > 0.9
    assert rows[-1]["held_out_cost"] < 0.3 * rows[0]["held_out_cost"]
    rates = [row["learning_rate"] for row in rows]
    assert max(rates) == pytest.approx(0.1, rel=0.01) and rates[-1] < 1e-3 and rates[2:] == sorted(rates[2:])[::-1]
    assert result["gradient_difference_first"] <= 1e-11 and result["gradient_difference_last"] <= 1e-11
    table = out.split("by hand")[1]
    for number in (f"{result['accuracy']:.4f}", f"{result['step_ms']:.3f}", "temporary memory"):
        assert number in table
    assert_pictures(run)
    assert all(f"<h3>{name}: " in (run / "report.html").read_text() for name in ("Saliency", "Filters", "Confusion"))
    assert accuracy_of(run / "weights.safetensors") == pytest.approx(result["accuracy"])


def accuracy_of(file: Path) -> float:
    """Of what the file holds, weights and running statistics, as somebody else would use it."""
    pixels = images.load("digits", size=8)
    moments = augment.moments(pixels.train_x, pixels.white)
    model = mb.models.convnet.vgg(10, widths=(8, 16), depth=1)
    objective = mb.Objective(model, Apply(mb.ops.softmax_cross_entropy()))
    x = augment.standardised(jnp.asarray(pixels.test_x), *moments, pixels.white)
    params, state = load_params(file, objective.init(KEY, (x, jnp.asarray(pixels.test_labels))))
    return float(np.mean(model.apply(params[0], state[0], x).argmax(-1) == pixels.test_labels))


OTHERS = {
    "bfloat16": ("--precision", "bfloat16"),
    "mixed": ("--mixup", 0.2, "--label-smoothing", 0.1, "--optimizer", "adamw", "--learning-rate", 0.01),
    "mirrored": ("--flip", "--crop", 0, "--ema", 0.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("words", OTHERS.values(), ids=OTHERS)
def test_other_choices(words, tmp_path, capsys):
    run = tmp_path / "run"
    code, out, _ = ran(capsys, *SMALL, *words, "--steps", 60, "--folder", run)
    assert code == 0
    result = result_of(run)
    assert result["accuracy"] > 0.5
    assert result["gradient_difference_last"] <= 1e-11  # with the targets as they were mixed and smoothed
    assert ("in bfloat16" in out) == ("bfloat16" in words)


def at_row(monkeypatch, number: int):
    """Sends a signal after so many rows of a run."""
    record, count = Run.record, []

    def counted(self, *args):
        record(self, *args)
        count.append(1)
        if len(count) == number:
            signal.raise_signal(signal.SIGTERM)
            deadline = time.monotonic() + 10
            while not self.stop.requested and time.monotonic() < deadline:
                time.sleep(0.01)

    monkeypatch.setattr(Run, "record", counted)


def test_a_run_that_goes_on_ends_as_one_that_did_not_stop(tmp_path, monkeypatch, capsys):
    """The running statistics, the momentum, the average and the schedule with it."""
    words = "images", "--widths", 4, "--depth", 1, "--size", 8, "--batch-size", 8, "--steps", 12, "--log.every", 3
    words = *words, "--ema", 0.9
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert ran(capsys, *words, "--folder", whole).code == 0
    with monkeypatch.context() as patched:
        at_row(patched, 2)
        assert ran(capsys, *words, "--folder", parts).code == 143
    code, out, _ = ran(capsys, "images", "--resume", parts)
    assert code == 0 and "resumed at step 9 of 12" in out
    assert result_of(parts)["sha256"] == result_of(whole)["sha256"]
    assert (parts / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_cifar(tmp_path, capsys):
    made_cifar(tmp_path / "files", "cifar10")
    run, words = tmp_path / "run", ("--data", "cifar10", "--data-dir", tmp_path / "files", "--flip")
    words = *words, "--precision", "bfloat16", "--widths", 4, 8, "--depth", 1, "--batch-size", 4, "--steps", 2
    code, out, _ = ran(capsys, "images", *words, "--folder", run)
    assert code == 0 and "32×32×3 in, 10 classes" in out and "in bfloat16" in out
    assert result_of(run)["gradient_difference_last"] <= 1e-11
    assert_pictures(run)


@pytest.mark.slow
def test_idx_files_on_a_mesh(tmp_path, capsys):
    """Batch norm's statistics are those of the whole batch, so one device and two go the same way."""
    archive(tmp_path / "files")
    words = "images", "--data", "mnist", "--data-dir", tmp_path / "files", "--widths", 8, 8, "--depth", 1
    words = *words, "--steps", 8, "--log.every", 4
    for name, mesh in (("one", ()), ("two", ("--mesh", "data=2"))):
        assert ran(capsys, *words, *mesh, "--folder", tmp_path / name).code == 0
    costs = [[row["cost"] for row in rows_of(tmp_path / name)] for name in ("one", "two")]
    np.testing.assert_allclose(*costs, rtol=1e-3)


def pictures(folder: Path, mode: str, sizes=(20, 20, 20, 20)) -> Path:
    """Two classes, light and dark."""
    rng = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 128)):
        (folder / name).mkdir(parents=True)
        for i, size in enumerate(sizes):
            shape = (size, size, 3) if mode == "RGB" else (size, size)
            Image.fromarray(rng.integers(low, low + 128, shape).astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.mark.slow
def test_a_folder(tmp_path, capsys):
    folder, run = pictures(tmp_path / "files", "L"), tmp_path / "run"
    words = "--widths", 4, 4, "--depth", 1, "--size", 8, "--batch-size", 4, "--steps", 3
    code, out, _ = ran(capsys, "images", "--data", "folder", "--data-dir", folder, *words, "--folder", run)
    assert code == 0 and "8×8×1 in, 2 classes" in out and "6 pictures to learn from, 2 held out" in out
    assert_pictures(run)


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("n", [1, 5, 10, 11, 23])
def test_pictures_are_judged_batch_by_batch(n):
    x = jax.random.normal(KEY, (n, 2, 3, 1))
    logits = lambda x: jnp.cumsum(x.reshape(len(x), -1), 1)
    np.testing.assert_array_equal(in_batches(logits, x, 5), logits(x))
    assert all(size <= 5 for size in sizes_seen(logits, x))


def sizes_seen(logits, x):
    seen = []
    in_batches(lambda x: seen.append(len(x)) or logits(x), x, 5)
    return seen


def test_running_statistics_settle_to_those_of_the_weights():
    model = mb.Serial(mb.layers.Dense(3), mb.layers.BatchNorm(momentum=0.9))
    x = 2 + jax.random.normal(KEY, (500, 2))
    params, state = model.init(KEY, x)
    state = jax.tree.map(lambda leaf: leaf + 7, state)  # far off
    batch = lambda key: x[jax.random.randint(key, (200,), 0, len(x))]
    moved = settled(model, params, state, batch, KEY)[1]
    z = x @ params[0]["w"] + params[0]["b"]
    np.testing.assert_allclose(moved["mean"], z.mean(0), atol=0.1)
    np.testing.assert_allclose(moved["variance"], z.var(0), rtol=0.1, atol=0.05)


def test_decay_is_of_matrices():
    objective = network(Config(model="resnet18"), 10, 8)
    batch = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)
    params, _ = jax.eval_shape(lambda: objective.init(KEY, batch))
    decayed = is_matrix(params)
    for (path, leaf), decays in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(decayed), strict=True):
        assert decays == (path[-1].key == "w") and (not decays or leaf.ndim >= 2)
    assert 0 < sum(jax.tree.leaves(decayed)) < len(jax.tree.leaves(decayed))


def test_the_rate_rises_and_falls():
    rate = schedule(Config(steps=100, learning_rate=0.4))
    assert [float(rate(i)) for i in (0, 5)] == pytest.approx([0, 0.4])
    assert float(rate(52)) == pytest.approx(0.2, abs=0.01) and float(rate(100)) == pytest.approx(0, abs=1e-6)
    assert float(schedule(Config(steps=1))(1)) == pytest.approx(0.1)


def test_one_of_each_class_first():
    labels = np.array([2, 2, 0, 1, 0])
    assert one_of_each(labels, 5).tolist() == [2, 3, 0, 1, 4]
    assert one_of_each(labels, 2).tolist() == [2, 3]
    assert one_of_each(labels, 7).tolist() == [2, 3, 0, 1, 4, 2, 3]


@pytest.mark.parametrize("model", ["vgg", "resnet18", "resnet50", "convnext-atto"])
@pytest.mark.parametrize("side", [16, 32, 64])
def test_a_model_fits_pictures_of_its_strides(model, side):
    """What the network divides a side by is what it is said to: that many pixels become one, before the mean."""
    config = Config(model=model)
    layers = network(config, 7, side).model.layers
    place = next(i for i, layer in enumerate(layers) if "global_average_pool" in repr(layer))
    x = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    least = strides(config, side)
    if model in experiment.CONVNEXTS:
        assert least == 8 * patch(side)
    trunk = mb.Serial(*layers[:place])
    made = jax.eval_shape(lambda x: trunk.forward(*trunk.init(KEY, x), x)[0], x)
    assert made.shape[1:3] == (side // least, side // least)


@pytest.mark.slow
def test_accuracy_over_five_seeds(tmp_path, capsys):
    found = []
    for seed in range(5):
        assert ran(capsys, "images", "--seed", seed, "--folder", tmp_path / str(seed)).code == 0
        found.append(result_of(tmp_path / str(seed))["accuracy"])
    assert np.median(found) >= 0.985, found


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────────────────────────────

LINES = {
    "--model resnet19": "--model 'resnet19' is unknown; did you mean 'resnet1",
    "--data mnits": "data 'mnits' is unknown; did you mean 'mnist'?",
    "--data-dir nowhere": "--data digits needs no files",
    "--data folder": "--data folder: wants --data-dir",
    "--data cifar10 --data-dir nowhere": "nowhere: cannot be read: No such file",
    "--size 12": "--size 12: the pictures have 8×8 pixels; wants a multiple of that",
    "--size 0": "size is 0; wants a whole number",
    "--size 8 --widths 8 8 8 8": "--model vgg: halves pictures until one pixel is left of 16, but they have 8×8",
    "--model convnext-atto --size 8 --crop 8": "--crop 8 is out of range; pictures have 8×8 pixels: wants 0 … 7",
    "--crop 16": "--crop 16 is out of range; pictures have 16×16 pixels: wants 0 … 15",
    "--crop -1": "--crop -1 is out of range",
    "--mixup -0.2": "--mixup -0.2 is out of range; wants 0, or a positive number",
    "--mixup nan": "--mixup nan is out of range",
    "--label-smoothing 1": "--label-smoothing 1.0 is out of range; wants 0, or a number below 1",
    "--weight-decay -1": "--weight-decay -1.0 is out of range",
    "--learning-rate 0": "--learning-rate 0.0 is out of range; wants a positive number",
    "--precision float16": "--precision 'float16' is unknown; did you mean 'bfloat16'? known: bfloat16, float32",
    "--optimizer adam": "--optimizer 'adam' is unknown; did you mean 'adamw'?",
    "--keep input": "--keep 'input' is unknown; did you mean 'inputs'?",
    "--keep inputs": "--keep inputs: vgg keeps everything; wants a resnet",
    "--model resnet18 --widths 8": "--widths, --depth: resnet18 has its own",
    "--widths 8 0": "--widths 8 0: wants one or more, at least 1",
    "--depth 0": "--depth 0 is out of range; wants at least 1",
    "--batch-size 1": "--batch-size 1: batch norm takes its statistics over a batch; wants at least 2",
    "--ema 1": "--ema 1.0 is out of range",
    "--mesh data=3": "--batch-size 64: the mesh cuts it in 3 parts",
    "--flip perhaps": "perhaps",
    "--mesh stage=2": "there are no Repeats",
    "--model resnet18 --size 8 --mesh stage=2": "BatchNorm(momentum=0.9) keeps state, which stages do not",
}  # fmt: skip


def assert_one_line(answer, message: str):
    code, out, err = answer
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    assert message in err


@pytest.mark.parametrize("words", LINES)
def test_a_command_line(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert_one_line(ran(capsys, "images", *words.split()), LINES[words])
    assert not any(tmp_path.iterdir())


def cut_cifar(folder: Path) -> tuple:
    made_cifar(folder, "cifar10")
    file = folder / "data_batch_3.bin"
    file.write_bytes(file.read_bytes()[:-100])
    return "--data", "cifar10"


def foreign_classes(folder: Path) -> tuple:
    made_cifar(folder, "cifar10")
    file = folder / "test_batch.bin"
    file.write_bytes(b"\x0b" + file.read_bytes()[1:])
    return "--data", "cifar10"


def sizes_that_differ(folder: Path) -> tuple:
    pictures(folder, "RGB", (20, 20, 24, 20))
    return "--data", "folder"


def small_pictures(folder: Path) -> tuple:
    pictures(folder, "RGB", (4, 4, 4, 4))
    return "--data", "folder", "--model", "resnet18"


FILES = {
    cut_cifar: "data_batch_3.bin: has",
    foreign_classes: "label 11 of example 0 is outside 0 … 9",
    sizes_that_differ: "has 24×24 pixels, but",
    small_pictures: "--model resnet18: halves pictures until one pixel is left of 8, but they have 4×4",
}


@pytest.mark.parametrize("files", FILES, ids=lambda files: files.__name__)
def test_files_that_do_not_fit(files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = files(tmp_path / "files")
    assert_one_line(ran(capsys, "images", *words, "--data-dir", tmp_path / "files"), FILES[files])
    assert {path.name for path in tmp_path.iterdir()} == {"files"}


def test_the_embedded_digits_are_enlarged_to_sixteen():
    assert images.load("digits", size=experiment.SIDE).shape == (16, 16)
