"""experiments/digits.py as a user runs it: from another folder, on a terminal and off it, interrupted, misused."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

import experiments.digits
from manual_backprop import training
from test_images import archive

EXPERIMENT = Path(__file__).parents[1] / "experiments" / "digits.py"
PICTURES = "curves.png", "mistakes.png", "sensitivities.png"


def digits(*arguments, cwd):
    return subprocess.run(
        [sys.executable, EXPERIMENT, *arguments], capture_output=True, text=True, timeout=300, cwd=cwd
    )


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_pictures(folder: Path):
    for name in PICTURES:
        pixels = matplotlib.image.imread(folder / name)
        assert pixels.shape[0] > 200 and pixels.shape[1] > 600
        assert pixels[..., :3].std() > 0.02  # not blank


def test_the_main_job(tmp_path):
    """With its defaults: device and model first, the digits read, a table against jax.grad, and its files."""
    done = digits(cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert re.match(r"device  .+ \((cpu|gpu|tpu)\), jax \d", lines[0])
    assert lines[1].startswith("model   Serial(Dense(16), Apply(sigmoid()), Dense(16), Apply(sigmoid()), Dense(10)")
    assert "1,482 parameters" in lines[1]

    (folder,) = (tmp_path / "runs" / "digits").iterdir()
    files = {"config.json", "environment.json", "events.jsonl", "metrics.jsonl", "result.json", "report.html"}
    files |= {".lock", "checkpoints", "weights.safetensors"}
    assert {path.name for path in folder.iterdir()} == files | set(PICTURES)
    rows = rows_of(folder)
    assert [row["step"] for row in rows] == list(range(80, 8001, 80))
    assert rows[-1]["cost"] < 0.1 * rows[0]["cost"]
    assert rows[-1]["accuracy"] >= 0.94
    config = json.loads((folder / "config.json").read_text())
    assert config["hidden"] == [16, 16] and config["optimizer"] == "sgd"
    assert json.loads((folder / "environment.json").read_text())["versions"]["jax"]
    assert_pictures(folder)

    result = json.loads((folder / "result.json").read_text())
    assert f"state   sha256 {result['sha256']}" in lines
    assert result["gradient_difference_first"] <= 1e-12 and result["gradient_difference_last"] <= 1e-12
    table = done.stdout.split("by hand")[1]
    ratio = result["step_ms"] / result["step_ms_jax_grad"]
    for number in (f"{result['accuracy']:.4f}", f"{result['step_ms']:.3f}", f"{ratio:.2f}", "temporary memory"):
        assert number in table


def test_other_choices_from_idx_files(tmp_path):
    archive(tmp_path / "mnist")
    options = (
        "--activation relu --cost softmax_cross_entropy --optimizer adam --learning-rate 0.003 --steps 300 --hidden 32"
    )
    done = digits(
        *options.split(),
        "--data",
        "mnist",
        "--data-dir",
        tmp_path / "mnist",
        "--folder",
        tmp_path / "run",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "784 inputs" in done.stdout and "Dense(32)" in done.stdout
    assert rows_of(tmp_path / "run")[-1]["accuracy"] > 0.8
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["gradient_difference_last"] <= 1e-12
    assert_pictures(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "least"),
    [((), 0.94), (("--hidden", "256", "128"), 0.97)],
    ids=["16-16", "256-128"],
)
def test_accuracy_over_five_seeds(options, least, tmp_path):
    accuracies = []
    for seed in range(5):
        folder = tmp_path / str(seed)
        assert digits(*options, "--seed", str(seed), "--folder", folder, cwd=tmp_path).returncode == 0
        accuracies.append(rows_of(folder)[-1]["accuracy"])
    assert np.median(accuracies) >= least, accuracies


MISTAKES = {
    "--hidden 0": "--hidden 0: every layer wants at least one neuron",
    "--activation rellu": "activation 'rellu' is unknown; did you mean 'relu'?",
    "--cost square_error": "cost 'square_error' is unknown; did you mean 'squared_error'?",
    "--optimizer adm": "optimizer 'adm' is unknown; did you mean 'adam'?",
    "--learning-rate -1": "learning rate -1.0 is out of range",
    "--batch-size 0": "--batch-size 0 is out of range",
    "--steps 0": "--steps 0 is out of range",
    "--data mnits": "data 'mnits' is unknown; did you mean 'mnist'?",
    "--data mnist --data-dir nowhere": "nowhere: has no train-images-idx3-ubyte.gz",
    "--data-dir nowhere": "--data digits needs no files",
    "--seed -1": "--seed -1 is out of range",
    "--device tpu": "device 'tpu'",
    "--folder .": "run folder . exists; nothing is overwritten",
    "--folder /dev/null/run": "run folder /dev/null/run cannot be made: Not a directory",
    "--step 3": "--steps",
    "--steps many": "many",
}  # fmt: skip


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_answered_and_writes_nothing(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(EXPERIMENT), *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        training.run.main(experiments.digits.main)
    assert ended.value.code == 2
    assert MISTAKES[arguments] in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_in_the_shell_shows_no_traceback(tmp_path):
    done = digits("--optimizer", "adm", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: optimizer 'adm' is unknown")


def test_divergence_stops_with_step_and_layer_and_keeps_what_was_saved(tmp_path):
    """Every row before stays; the pictures are of the last good state."""
    options = [
        "--activation",
        "relu",
        "--cost",
        "softmax_cross_entropy",
        "--optimizer",
        "sgd",
        "--learning-rate",
        "1e25",
        "--steps",
        "500",
    ]
    done = digits(*options, "--folder", tmp_path / "run", cwd=tmp_path)
    assert done.returncode == 1
    assert re.search(
        r"^stopped: step \d+: the cost or the gradient is not finite, .*(model\[\d\]|cost)", done.stderr, re.M
    )
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / "config.json").exists()
    for row in rows_of(tmp_path / "run"):
        assert np.isfinite(row["cost"])


def test_ctrl_c_finishes_the_files_and_exits_130(tmp_path):
    command = [sys.executable, "-u", EXPERIMENT, "--steps", "100000000", "--hidden", "16", "--folder", "run"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 2, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "stopped by Ctrl-C after step" in out and "Traceback" not in err
    assert rows_of(tmp_path / "run")
    assert_pictures(tmp_path / "run")


def test_ctrl_c_before_the_training_exits_130(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-u", EXPERIMENT], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()  # the device
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_on_a_terminal_it_draws_a_bar(tmp_path):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, EXPERIMENT, "--steps", "2000"],
        cwd=tmp_path,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux's way to say that the other side is closed
            break
        if not part:
            break
        shown += part
    assert process.wait() == 0
    text = shown.decode()
    assert "━" in text and "2000/2000" in text and "steps/s" in text and re.search(r"0:0\d:\d\d", text)
    assert "s left" not in text  # that is for plain lines


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    done = subprocess.run(
        f"{sys.executable} {EXPERIMENT} --steps 100 | head -1", shell=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert "Traceback" not in done.stderr and done.stdout.startswith("device")
