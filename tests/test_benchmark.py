"""The benchmark: nonsense is one line before anything is measured, a row is safe once measured, PyTorch does our work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import benchmark
import manual_backprop as mb
from benchmarks import pytorch
from benchmarks.gpt import stepping, torch_row
from benchmarks.row import Row, TorchTraining
from manual_backprop.models import gpt as models
from manual_backprop.models.gpt import Schedule, Size
from manual_backprop.testing.timing import Program

SIZE = Size(37, 16, 2, 12, 3)
DOUBLE = Program(jax.jit(lambda x: 2 * x), (jnp.ones(5),))


@pytest.fixture
def run(monkeypatch):
    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, arguments)])
        benchmark.main()

    return main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gtp"], "did you mean 'gpt'"),
        (["--quik", "now"], "--quik"),
        (["--threads", "many"], "invalid int value: 'many'"),
        (["--threads", "0"], "--threads is 0; wants a whole number, at least 1"),
        (["--threads", "9999"], "--threads is 9999, but there are"),
        (["--torch", "no/such/python"], "'no/such/python' does not start"),
        (["--json", "no/such/folder/rows.json"], "name a new file, in a folder that exists"),
    ],
    ids=str,
)
def test_nonsense_is_one_line(run, monkeypatch, arguments, message):
    monkeypatch.setattr(benchmark, "measured", None)  # nothing comes so far
    with pytest.raises(mb.InputError, match=message) as caught:
        run("mlp", *arguments)
    assert "\n" not in str(caught.value)


def test_a_python_without_torch_is_one_line(run, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho first >&2; echo No module named torch >&2; exit 1")
    python.chmod(0o755)
    with pytest.raises(mb.InputError, match=r"does not import PyTorch and NumPy: No module named torch$"):
        run("mlp", "--torch", python)


def test_a_file_is_not_overwritten(run, tmp_path):
    rows = tmp_path / "rows.json"
    rows.write_text("mine")
    with pytest.raises(mb.InputError, match="File exists; name a new file"):
        run("mlp", "--json", rows)
    assert rows.read_text() == "mine"


def test_what_was_measured_before_an_interruption_is_kept(run, tmp_path, monkeypatch, capsys):
    def rows():
        yield Row("twice", "jax", DOUBLE, DOUBLE, flops=5.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "BENCHMARKS", {"some": rows})
    with pytest.raises(KeyboardInterrupt):
        run("some", "--quick", "--json", tmp_path / "rows.json")
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert {"step_time_ratio", "temp_memory_ratio", "trace_ratio", "compile_ratio", "machine", "versions"} < set(row)
    assert row["ours"]["peak_bytes"] == row["ours"]["temp_bytes"] + 2 * DOUBLE.args[0].nbytes
    assert [file.name for file in tmp_path.iterdir()] == ["rows.json"]
    assert "twice" in capsys.readouterr().out


def test_a_quick_look_begins_no_row_when_its_time_is_over(run, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "BENCHMARKS", {"some": lambda: iter([None])})
    monkeypatch.setattr(benchmark, "SECONDS_QUICK", 0)
    run("--quick")
    assert "some: the minute is over; the rest without --quick" in capsys.readouterr().out


def test_the_cores_are_chosen_before_the_backend_starts():
    code = "import benchmark"
    path = os.pathsep.join(str(Path(benchmark.__file__).parents[1] / name) for name in ("scripts", "tests", "."))
    env = os.environ | {"JAX_PLATFORMS": "one that would not start", "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


# ── PyTorch ──────────────────────────────────────────────────────────────────────────────────────────────────────────

OURS = Program(lambda x, y: (x + y, jnp.float32(3)), (jnp.ones(5), jnp.ones(5)), donate=True)  # a step that costs 3
THEIRS = TorchTraining({}, compiled=True)
SERVER = """
import json, sys
seconds = iter([5.0, *[0.1] * 99])
for line in sys.stdin:
    if line == "report\\n":
        answer = {"version": "1.2", "temp_bytes": 40, "peak_bytes": 2}
    else:
        answer = {"seconds": next(seconds) * int(line), "cost": 3.0}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """Compares with a program that stands in for tests/peers/torch_gpt.py."""

    def compare(code):
        (tmp_path / "server.py").write_text(code)
        monkeypatch.setattr(pytorch, "SERVER", tmp_path / "server.py")
        return pytorch.compare_with_torch(OURS, THEIRS, sys.executable, 1, 3, 1)

    return compare


def test_the_ratios_are_ours_over_theirs(serve):
    result = serve(SERVER)
    ours, theirs = result.comparison.ours, result.comparison.peer
    assert result.torch == "1.2" and result.peak_bytes[1] == 2
    assert result.comparison.temp_memory_ratio == ours.temp_bytes / 40
    assert result.comparison.step_time_ratio == pytest.approx(ours.step_s / theirs.step_s, rel=0.9)
    assert (theirs.step_s, theirs.compile_s) == pytest.approx((0.1, 4.9))  # the first step's time is that of compiling


def test_unequal_costs_stop_it(serve):
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        serve(SERVER.replace("3.0", "3.001"))


@pytest.mark.parametrize("code", ["print(4 / 0)", f"{SERVER}    4 / 0"], ids=["at once", "later"])
def test_an_end_is_its_last_line(serve, code):
    with pytest.raises(pytorch.TorchError, match=r"^ZeroDivisionError: division by zero$"):
        serve(code)


def test_rows_with_torch_are_left_out_in_one_line_where_it_is_missing(run, monkeypatch, capsys):
    rows = [Row(title, "torch", OURS, THEIRS) for title in "ab"]
    monkeypatch.setattr(benchmark, "BENCHMARKS", {"some": lambda: iter(rows)})
    monkeypatch.setattr(benchmark, "find_torch", lambda python: None)
    run()
    assert capsys.readouterr().out.count("some: left out: PyTorch, which is not installed here") == 1


def test_torch_does_the_same_steps_in_about_the_same_memory():
    pytest.importorskip("torch")
    ids = jax.random.randint(jax.random.key(0), (2, SIZE.length), 0, SIZE.vocabulary)
    batch = ids, jnp.roll(ids, -1, 1)
    row = torch_row("small", "torch", SIZE, *stepping(models.gpt(SIZE, Schedule()), batch), False, batch)
    result = pytorch.compare_with_torch(row.ours, row.peer, sys.executable, 1, 1, 1)
    assert 0.3 < result.comparison.temp_memory_ratio < 3
