"""experiments/sequence.py as a user runs it: every task and cell, cut short, gone on with, misused."""

import json
import shutil
from pathlib import Path

import matplotlib.image
import pytest

from experiment import ran
from manual_backprop.training import sequence_pictures, tasks

SMALL = "sequence", "--steps", 6, "--hidden", 5, "--batch-size", 8
FILES = {
    ".lock", "checkpoints", "config.json", "curves.png", "environment.json", "events.jsonl", "metrics.jsonl",
    "report.html", "result.json", "through_time.json", "through_time.png", "weights.safetensors",
}  # fmt: skip


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_drawn(file: Path):
    pixels = matplotlib.image.imread(file)
    assert pixels.shape[0] > 200 and pixels.shape[1] > 600
    assert pixels[..., :3].std() > 0.02  # not blank


def assert_ran(done, run: Path, length: int) -> dict:
    code, out, err = done
    assert (code, err) == (0, "")
    rows, result = rows_of(run), json.loads((run / "result.json").read_text())
    assert rows[-1]["step"] == 6
    assert all(0 < row["reach"] <= length and row["first_over_last"] >= 0 for row in rows)
    assert result["gradient_difference_first"] <= 1e-11 and result["gradient_difference_last"] <= 1e-11
    table = out.split("by hand")[1]
    for number in (
        f"{result['held_out_cost']:.5f}",
        f"{result['memoryless']:.5f}",
        f"{result['reach']:.0f} of {length}",
    ):
        assert number in table
    return result


def test_the_adding_problem(tmp_path, capsys):
    run = tmp_path / "run"
    result = assert_ran(ran(capsys, *SMALL, "--length", 14, "--folder", run), run, 14)
    assert {path.name for path in run.iterdir()} == FILES
    assert result["memoryless"] == 1 / 6 and result["solved"] is False and "accuracy" not in result
    found = json.loads((run / "through_time.json").read_text())
    assert {cell: {*curves} for cell, curves in found.items()} == {
        "lstm": {"0", "1", "3", "6"}, "gru": {"0"}, "rnn": {"0"}, "state_space": {"0"},
    }  # fmt: skip
    assert all(len(lengths) == 14 and lengths[-1] > 0 for curves in found.values() for lengths in curves.values())
    last = found["lstm"]["6"]
    assert result["first_over_last"] == pytest.approx(last[0] / last[-1], rel=1e-3)
    past = sequence_pictures.read(run, tasks.adding(14))
    sequence_pictures.beside([past, past], tasks.adding(14), tmp_path / "beside.png")
    for file in (run / "curves.png", run / "through_time.png", tmp_path / "beside.png"):
        assert_drawn(file)
    code, _, err = ran(capsys, *SMALL, "--length", 15, "--beside", run)
    assert code == 2 and err == f"error: --beside {run}: is of adding, 14 steps; wants adding, 15 steps\n"
    (run / "metrics.jsonl").write_text("")
    code, _, err = ran(capsys, *SMALL, "--length", 14, "--beside", run)
    assert code == 2 and f"--beside {run}: is damaged, or no run of sequence" in err and err.count("\n") == 1


FEW = ("--task", "copy", "--cell", "gru", "--length", 24, "--truncate", 8, "--learning-rate", 0.1)
MORE = [
    ("--task", "markov", "--cell", "gru", "--length", 12, "--depth", 2, "--ema", 0.9, "--clip", 0),
    ("--task", "adding", "--cell", "state_space", "--length", 12, "--mesh", "data=2"),
    ("--task", "copy", "--cell", "state_space", "--length", 24, "--truncate", 6),
    ("--task", "copy", "--cell", "lstm", "--length", 24, "--truncate", 24, "--depth", 3),
    ("--task", "markov", "--cell", "rnn", "--length", 12, "--truncate", 4, "--depth", 2, "--mesh", "model=2"),
]


@pytest.mark.parametrize("words", [FEW, *(pytest.param(words, marks=pytest.mark.slow) for words in MORE)], ids=str)
def test_other_tasks_and_cells(words, tmp_path, capsys):
    run, told = tmp_path / "run", dict(zip(words[::2], words[1::2], strict=True))
    result = assert_ran(ran(capsys, *SMALL, *words, "--folder", run), run, told["--length"])
    assert ("accuracy" in result) == (told["--task"] == "copy")
    assert result.get("accuracy", 0) < 0.3  # of blanks, which it knows by now, it would be higher
    assert (result["entropy"] is not None) == (told["--task"] == "markov")
    if truncate := told.get("--truncate"):
        lengths = json.loads((run / "through_time.json").read_text())[told["--cell"]]["6"]
        assert not any(lengths[:-truncate]) and all(lengths[-truncate:])
        assert result["reach"] <= truncate
    assert_drawn(run / "curves.png")


@pytest.mark.slow
def test_a_run_that_goes_on_ends_as_one_that_did_not_stop_and_is_drawn_beside_it(tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    words = *SMALL, "--length", 12, "--cell", "rnn", "--save.every", 3
    assert ran(capsys, *words, "--folder", whole).code == 0
    assert ran(capsys, *words, "--beside", whole, "--folder", parts).code == 0
    shutil.rmtree(parts / "checkpoints" / "6")
    (parts / "result.json").unlink()
    code, out, _ = ran(capsys, "sequence", "--resume", parts)
    assert code == 0 and "resumed at step 3 of 6" in out
    ends = [json.loads((folder / "result.json").read_text())["sha256"] for folder in (whole, parts)]
    assert ends[0] == ends[1]
    assert {path.name for path in parts.iterdir()} == FILES | {"beside.png"}


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["lstm", "gru", "state_space", "rnn"])
def test_gates_and_linear_states_solve_what_the_vanilla_network_does_not(cell, tmp_path, capsys):
    """The adding problem of length 200, with the defaults."""
    run = tmp_path / "run"
    assert ran(capsys, "sequence", "--cell", cell, "--folder", run).code == 0
    result = json.loads((run / "result.json").read_text())
    if cell == "rnn":
        assert not result["solved"] and result["held_out_cost"] > 0.1 and result["reach"] < 100
    else:
        assert result["solved"] and result["held_out_cost"] < 0.01 and result["reach"] == 200


def test_how_far_back_is_heard():
    assert sequence_pictures.reach([0.5, 0.5, 0.5]) == 3
    assert sequence_pictures.reach([1.0, 0.0, 1e-6, 1.0]) == 2  # not beyond a gap
    assert sequence_pictures.reach([0.0, 1e-11, 1e-3]) == 1


LINES = {
    "--task sum": "--task 'sum' is unknown; known: adding, copy, markov",
    "--cell lstn": "--cell 'lstn' is unknown; did you mean 'lstm'?",
    "--length 1": "--length 1: the task adding wants at least 2: a number to mark in each half",
    "--task copy --length 20": "--length 20: the task copy wants at least 21: ten symbols",
    "--length -3": "--length -3: the task adding wants at least 2",
    "--truncate 30": "--truncate 30 does not divide the 200 steps of a sequence; wants a divisor",
    "--truncate 400": "--truncate 400: a sequence has 200 steps; wants at most so many",
    "--truncate -1": "--truncate -1 is out of range; wants 0, or a number of steps",
    "--hidden 0": "--hidden 0 is out of range; wants at least 1",
    "--depth 0": "--depth 0 is out of range; wants at least 1",
    "--learning-rate -1": "--learning-rate -1.0 is out of range; wants a positive number",
    "--learning-rate nan": "--learning-rate nan is out of range",
    "--clip inf": "--clip inf is out of range; wants 0, or a positive number",
    "--beside nowhere": "--beside nowhere: config.json cannot be read: No such file or directory",
    "--batch-size 0": "--batch-size 0 is out of range",
    "--mesh data=3": "--batch-size 64: the mesh cuts it in 3 parts",
    "--length long": "long",
}


@pytest.mark.parametrize("words", LINES)
def test_a_command_line(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, err = ran(capsys, "sequence", *words.split())
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    assert LINES[words] in err
    assert not any(tmp_path.iterdir())
