"""A run that is stopped, killed, damaged or starved ends with the bits of one that was left alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax.numpy as jnp
import pytest

import manual_backprop as mb
from experiment import ran
from manual_backprop.training import folder
from manual_backprop.training.run import Run, saved_steps

ROOT = Path(__file__).parents[1]
SMALL = ("digits", "--steps", 40, "--save.every", 10, "--log.every", 5)


def result(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def assert_same(run: Path, calm: Path) -> None:
    """The same state and the same rows."""
    assert result(run)["sha256"] == result(calm)["sha256"]
    assert (run / "metrics.jsonl").read_bytes() == (calm / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """A run that was left alone."""
    from _pytest.capture import CaptureFixture, SysCapture

    place = tmp_path_factory.mktemp("calm") / "run"
    capture = CaptureFixture(SysCapture, None, _ispytest=True)
    capture._start()
    try:
        assert ran(capture, *SMALL, "--folder", place).code == 0
    finally:
        capture.close()
    return place


def at_row(monkeypatch, number, do):
    """Does something after so many rows of a run."""
    record, count = Run.record, []

    def counted(self, *args):
        record(self, *args)
        count.append(1)
        if len(count) == number:
            do(self)

    monkeypatch.setattr(Run, "record", counted)


def asked(run):
    """Sends the signal, and waits until it has arrived."""
    signal.raise_signal(signal.SIGTERM)
    deadline = time.monotonic() + 10
    while not run.stop.requested and time.monotonic() < deadline:
        time.sleep(0.01)


# ── stopped and gone on ──────────────────────────────────────────────────────────────────────────────────────────────


def test_sigterm_saves_and_the_run_goes_on_to_the_same_bits(calm, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_row(patch, 3, asked)
        code, out, err = ran(capsys, *SMALL, "--folder", run)
    assert code == 143 and not err
    assert "stopped by SIGTERM after step 20; step 20 is saved" in out and f"--resume {run}" in out
    assert not (run / "result.json").exists() and saved_steps(run)[-1] == 20
    code, out, _ = ran(capsys, "digits", "--resume", run)
    assert code == 0 and "resumed at step 20 of 40" in out and "warning" not in out
    assert_same(run, calm)


def test_auto_finds_the_newest_run_that_has_not_ended(calm, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(calm, tmp_path / "runs" / "digits" / "ended")
    with monkeypatch.context() as patch:
        at_row(patch, 1, asked)
        assert ran(capsys, *SMALL, "--resume", "auto").code == 143
    (begun,) = {path.name for path in (tmp_path / "runs" / "digits").iterdir()} - {"ended"}
    assert ran(capsys, *SMALL, "--resume", "auto").code == 0
    assert_same(tmp_path / "runs" / "digits" / begun, calm)
    assert len(list((tmp_path / "runs" / "digits").iterdir())) == 2


def test_a_run_that_has_ended_ends_again_with_the_same_bits(calm, tmp_path, capsys):
    shutil.copytree(calm, run := tmp_path / "run")
    assert ran(capsys, "digits", "--resume", run).code == 0
    assert_same(run, calm)


def torn_row(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 45, "co')


def a_flipped_bit(run):
    path = run / "checkpoints" / "40" / "state" / "_METADATA"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


def rows_ahead(run):
    """As if it was killed before its last two checkpoints."""
    for step in (40, 30):
        shutil.rmtree(run / "checkpoints" / str(step))
    kept = [line for line in (run / "events.jsonl").read_text().splitlines() if '"saved", "step": 20' in line]
    (run / "events.jsonl").write_text("\n".join(kept) + "\n")


@pytest.mark.parametrize(
    ("damage", "begins", "told"),
    [
        (torn_row, 40, None),
        (a_flipped_bit, 30, "checkpoint of step 40 is not used: state/_METADATA is damaged"),
        (rows_ahead, 20, None),
        (
            lambda run: shutil.rmtree(run / "checkpoints" / "40"),
            30,
            "step 40 is not used: it was saved, and is not there",
        ),
    ],
    ids=["torn row", "flipped bit", "rows ahead of checkpoints", "newest checkpoint gone"],
)
def test_what_is_damaged_is_made_again(calm, tmp_path, capsys, damage, begins, told):
    shutil.copytree(calm, run := tmp_path / "run")
    (run / "result.json").unlink()
    damage(run)
    code, out, _ = ran(capsys, "digits", "--resume", run)
    assert code == 0 and f"resumed at step {begins} of 40" in out
    assert (told is None and "warning" not in out) or told in out
    assert_same(run, calm)


def test_lost_rows_are_told(calm, tmp_path, capsys):
    shutil.copytree(calm, run := tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    assert "metrics.jsonl has no row of step 40: rows before it are lost" in ran(capsys, "digits", "--resume", run).out


def test_a_configuration_that_is_changed_on_purpose_keeps_the_old_one(calm, tmp_path, capsys):
    shutil.copytree(calm, run := tmp_path / "run")
    before = {name: (run / name).read_bytes() for name in ("config.json", "metrics.jsonl", "result.json")}
    code, out, _ = ran(capsys, "digits", "--resume", run, "--steps", 60, "--allow-change")
    assert code == 0 and "the configuration is another: --steps 40, now 60; the old one is in" in out
    assert {name: (run / "before-1" / name).read_bytes() for name in before} == before
    assert result(run)["step"] == 60
    assert [row["step"] for row in folder.lines(run / "metrics.jsonl")] == list(range(5, 61, 5))


def test_other_devices_are_a_warning(calm, tmp_path, capsys):
    shutil.copytree(calm, run := tmp_path / "run")
    code, out, _ = ran(capsys, "digits", "--resume", run, "--mesh", "data=2")
    assert code == 0
    assert "the same bits want the same packages, device and topology: devices 1, now 2; mesh data=1, now data=2" in out


def test_one_run_at_a_time(calm, tmp_path, capsys):
    shutil.copytree(calm, run := tmp_path / "run")
    with folder.locked(run):
        code, _, err = ran(capsys, "digits", "--resume", run)
    assert code == 2 and err == f"error: run folder {run} is in use by another process; wait for it, or stop it\n"
    assert ran(capsys, "digits", "--resume", run).code == 0


def test_a_clock_that_jumps_changes_nothing(calm, tmp_path, monkeypatch, capsys):
    times = iter(range(10**6))
    monkeypatch.setattr(folder, "now", lambda: f"{2040 - next(times) % 30}-01-01T00:00:00+00:00")
    monkeypatch.setattr("manual_backprop.training.run.now", folder.now)
    monkeypatch.setattr(time, "time", lambda: -1e9 * next(times))
    assert ran(capsys, *SMALL, "--folder", tmp_path / "run").code == 0
    assert_same(tmp_path / "run", calm)


# ── guards ───────────────────────────────────────────────────────────────────────────────────────────────────────────

STEEP = (
    "digits",
    "--activation",
    "relu",
    "--cost",
    "softmax_cross_entropy",
    "--learning-rate",
    "1e25",
    "--log.every",
    1,
)


def test_a_cost_that_is_not_finite_stops_and_nothing_of_it_is_saved(tmp_path, capsys):
    code, _, err = ran(capsys, *STEEP, "--steps", 20, "--save.every", 1, "--folder", tmp_path / "run")
    assert code == 1 and err.startswith("stopped: step ")
    assert "is not finite" in err and ("first in" in err or "after the update" in err)
    rows = folder.lines(tmp_path / "run" / "metrics.jsonl")
    assert all(step <= len(rows) for step in saved_steps(tmp_path / "run"))
    assert not (tmp_path / "run" / "result.json").exists()


def test_gradients_that_are_not_finite_can_be_left_out(tmp_path, capsys, monkeypatch):
    """One example of many is NaN: the steps that draw it change nothing."""
    from manual_backprop.training import images

    vectors = images.vectors

    def spoiled(x, white):
        numbers = vectors(x, white)
        numbers[::50] = jnp.nan
        return numbers

    monkeypatch.setattr(images, "vectors", spoiled)
    words = ("digits", "--steps", 60, "--batch-size", 8, "--log.every", 5)
    code, _, err = ran(capsys, *words, "--folder", tmp_path / "stops")
    assert code == 1 and "first in the input" in err
    code, _, err = ran(capsys, *words, "--skip-nonfinite", 40, "--folder", tmp_path / "skips")
    assert code == 0, err
    rows = folder.lines(tmp_path / "skips" / "metrics.jsonl")
    assert 0 < sum(row["skipped"] for row in rows) < 60
    assert any(event["event"] == "skipped" for event in folder.lines(tmp_path / "skips" / "events.jsonl"))
    assert all(row["cost"] is None or row["cost"] == row["cost"] for row in rows)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("to mount a small file system wants root")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk(small_disk, tmp_path, capsys):
    """Checkpoints fail, and it is said; with room again the run goes on to the same bits."""
    words = ("digits", "--hidden", 64, "--steps", 40, "--save.every", 10, "--log.every", 5)
    assert ran(capsys, *words, "--folder", tmp_path / "calm").code == 0
    filled = small_disk / "filled"
    filled.write_bytes(bytes(1_500_000))
    code, out, err = ran(capsys, *words, "--folder", small_disk / "run")
    assert code == 2 and "Traceback" not in out + err and err.count("\n") == 1
    assert "could not be written" in out + err or "cannot be written" in err
    steps = [path.name for path in (small_disk / "run" / "checkpoints").glob("*") if path.name.isdecimal()]
    filled.unlink()
    subprocess.run(["mount", "-o", "remount,size=9m", small_disk], check=True)
    code, out, err = ran(capsys, "digits", "--resume", small_disk / "run")
    assert code == 0, err
    assert not steps or f"resumed at step {max(map(int, steps))}" in out
    assert_same(small_disk / "run", tmp_path / "calm")


def test_a_folder_that_became_read_only(small_disk, capsys):
    assert ran(capsys, *SMALL, "--folder", small_disk / "run").code == 0
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    code, _, err = ran(capsys, "digits", "--resume", small_disk / "run")
    assert code == 2 and err == f"error: run folder {small_disk}/run cannot be written: Read-only file system\n"
    code, _, err = ran(capsys, *SMALL, "--folder", small_disk / "other")
    assert code == 2 and err == f"error: run folder {small_disk}/other cannot be made: Read-only file system\n"


def test_compiled_programs_are_the_users_alone(tmp_path):
    """By default in the user's cache folder; unless JAX was told another."""
    code = "import jax; from manual_backprop.training.environment import compiled_programs_in as f; f(None)"
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    shown = "; print(jax.config.jax_compilation_cache_dir)"
    done = subprocess.run([sys.executable, "-c", code + shown], cwd=ROOT, env=env, capture_output=True, text=True)
    folder = tmp_path / "manual_backprop" / "compiled"
    assert done.stdout.strip() == str(folder) and folder.stat().st_mode & 0o777 == 0o700
    env["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "own")
    done = subprocess.run([sys.executable, "-c", code + shown], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path / "own")


def test_rows_are_cut_where_they_were_torn(tmp_path):
    path = tmp_path / "rows"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    assert folder.lines(path) == [{"step": 1}, {"step": 2}, {"step": 3}]
    said = []
    assert folder.trimmed(path, 2, said.append) == [{"step": 1}, {"step": 2}]
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert folder.trimmed(path, 9, said.append) == [{"step": 1}, {"step": 2}]
    assert folder.trimmed(tmp_path / "none", 9, said.append) == [] == said


def test_a_row_that_was_damaged_costs_no_other(tmp_path):
    path, said = tmp_path / "rows.jsonl", []
    path.write_text(before := '{"step": 1}\n{"step": null}\nx"step": 3}\n{"step": 4}\n{"st')
    assert folder.lines(path) == [{"step": 1}, {"step": 4}]
    assert folder.trimmed(path, 4, said.append) == [{"step": 1}, {"step": 4}]
    assert said == ["2 rows of rows.jsonl are damaged and left out; the file as it was is rows.damaged-1.jsonl"]
    assert (tmp_path / "rows.damaged-1.jsonl").read_text() == before


def test_a_row_after_one_that_was_torn_is_whole(tmp_path):
    path = tmp_path / "rows"
    path.write_text('{"step": 1}\n{"st')
    folder.append(path, {"step": 2, "cost": float("nan"), "norms": [float("inf"), 1.0]})
    assert folder.lines(path) == [{"step": 1}, {"step": 2, "cost": None, "norms": [None, 1.0]}]


def test_a_row_for_which_there_is_no_room_is_not_begun(small_disk):
    (small_disk / "filled").write_bytes(bytes(1 << 20))
    path, count = small_disk / "rows", 0
    with pytest.raises(mb.InputError, match="rows cannot be written: No space left on device"):
        for count in range(10**6):
            folder.append(path, {"step": count, "more": "x" * 1000})
    assert [row["step"] for row in folder.lines(path)] == list(range(count))
    assert path.read_bytes().endswith(b"}\n")


# ── signals, in processes of their own ───────────────────────────────────────────────────────────────────────────────


def process(code: str) -> subprocess.Popen:
    """One that has said "ready"."""
    begin = "import signal, hashlib, math, sys, time\nfrom manual_backprop.training.signals import stopping\n"
    words = [sys.executable, "-u", "-c", begin + textwrap.dedent(code)]
    child = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n", child.communicate()
    return child


# One long call of C code, in which no handler of Python's runs: as compiling is, or a long chunk of steps.
BUSY = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_compiled_code_that_does_not_come_back_is_left(number, code):
    child = process(f"""
        with stopping() as stop:
            stop.grace, stop.rescue = 0.2, lambda: print("saved")
            print("ready")
            {BUSY}
    """)
    child.send_signal(number)
    out, _ = child.communicate(timeout=20)
    assert (child.returncode, out) == (code, "saved\n")


def test_before_there_is_a_loop_it_ends_at_once():
    child = process(f"""
        with stopping() as stop:
            print("ready")
            {BUSY}
    """)
    child.send_signal(signal.SIGINT)
    assert (child.communicate(timeout=20)[1], child.returncode) == ("interrupted\n", 130)


def test_a_second_ctrl_c_ends_it_at_once():
    child = process(f"""
        with stopping() as stop:
            stop.grace, stop.rescue = 100, lambda: print("saved")
            print("ready")
            {BUSY}
    """)
    child.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert child.poll() is None
    child.send_signal(signal.SIGTERM)  # some schedulers ask twice
    time.sleep(0.3)
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    assert (child.communicate(timeout=20)[0], child.returncode) == ("", 130)


def test_a_second_ctrl_c_ends_it_while_it_is_rescued():
    child = process(f"""
        with stopping() as stop:
            stop.rescue = lambda: (print("saving"), time.sleep(100))
            print("ready")
            {BUSY}
    """)
    child.send_signal(signal.SIGINT)
    assert child.stdout.readline() == "saving\n"
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=20)
    assert child.returncode == 130


def test_a_rescue_that_fails_ends_all_the_same():
    child = process(f"""
        with stopping() as stop:
            stop.grace, stop.rescue = 0.1, lambda: 1 / 0
            print("ready")
            {BUSY}
    """)
    child.send_signal(signal.SIGTERM)
    assert child.communicate(timeout=20)[1] == "stopped by SIGTERM: division by zero\n"
    assert child.returncode == 143


def test_a_loop_that_is_given_time_takes_it():
    child = process("""
        with stopping() as stop:
            stop.grace = 1.0
            print("ready")
            while not stop.requested:
                time.sleep(0.01)
            stop.grace = math.inf
            time.sleep(2)
            print("done")
            sys.exit(stop.exit_code)
    """)
    child.send_signal(signal.SIGTERM)
    assert (child.communicate(timeout=20)[0], child.returncode) == ("done\n", 143)


def storm(*words) -> dict:
    done = subprocess.run([sys.executable, ROOT / "scripts" / "storm.py", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(line.rsplit(None, 1) for line in done.stdout.splitlines() if line[:1].isalpha() and ":" not in line)


def test_a_small_storm():
    words = ["digits", "--steps", "20000", "--save.every", "1000", "--log.every", "100"]
    got = storm("--kills", "3", "--terms", "1", *words)
    assert got["the same state"] == got["the same metrics"] == "True" and got["lost after SIGTERM"] == "0"


@pytest.mark.slow
def test_a_storm():
    got = storm()
    assert got["the same state"] == got["the same metrics"] == "True" and got["lost after SIGTERM"] == "0"


def test_another_experiments_run_does_not_go_on(calm, tmp_path, capsys):
    shutil.copytree(calm, run := tmp_path / "run")
    code, _, err = ran(capsys, "gpt", "--resume", run)
    assert code == 2 and "config.json: option" in err


def test_another_runs_checkpoint_of_the_same_shapes_is_not_used(calm, tmp_path, capsys):
    other = tmp_path / "other"
    assert ran(capsys, *SMALL, "--seed", 7, "--folder", other).code == 0
    shutil.copytree(calm, run := tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "40")
    shutil.copytree(other / "checkpoints" / "40", run / "checkpoints" / "40")
    code, out, _ = ran(capsys, "digits", "--resume", run)
    assert code == 0 and "checkpoint of step 40 is not used: it is of another run" in out
    assert_same(run, calm)


def test_a_run_that_was_extended_and_killed_is_found_by_auto(calm, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(calm, run := tmp_path / "runs" / "digits" / "extended")
    with monkeypatch.context() as patch:
        at_row(patch, 1, asked)
        assert ran(capsys, "digits", "--resume", run, "--steps", 60, "--allow-change").code == 143
    assert not (run / "result.json").exists() and result(run / "before-1")["step"] == 40
    assert ran(capsys, "digits", "--resume", "auto").code == 0
    assert result(run)["step"] == 60 and [path.name for path in (tmp_path / "runs" / "digits").iterdir()] == [
        "extended"
    ]


@pytest.mark.parametrize("words", [("--steps", 20), ("--hidden", 8)])
def test_a_change_that_cannot_be_leaves_the_run_as_it_is(words, calm, tmp_path, capsys):
    shutil.copytree(calm, run := tmp_path / "run")
    assert ran(capsys, "digits", "--resume", run, *words, "--allow-change").code == 2
    code, out, _ = ran(capsys, "digits", "--resume", run)
    assert code == 0 and "warning" not in out
    assert_same(run, calm)


def test_a_start_that_was_killed_at_once_is_no_obstacle(tmp_path, capsys):
    (run := tmp_path / "run").mkdir()
    (run / ".lock").touch()
    assert ran(capsys, *SMALL, "--folder", run).code == 2
    assert ran(capsys, *SMALL, "--folder", run, "--resume", "auto").code == 0


def test_a_cost_that_is_not_finite_when_it_is_saved_ends_the_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("manual_backprop.training.checkpoints._nonfinite", lambda training: ["w"])
    code, _, err = ran(capsys, *SMALL, "--folder", tmp_path / "run")
    assert code == 1 and err == "stopped: step 10: w is not finite after the update; nothing is saved of it\n"
    assert folder.lines(tmp_path / "run" / "events.jsonl")[-1]["event"] == "failed"
    assert (tmp_path / "run" / "report.html").exists() and not (tmp_path / "run" / "checkpoints").exists()


def test_other_data_are_a_warning(calm, tmp_path, monkeypatch, capsys):
    from manual_backprop.training import images

    load = images.load
    monkeypatch.setattr(images, "load", lambda *args: load(*args)._replace(train_x=load(*args).train_x[::-1]))
    shutil.copytree(calm, run := tmp_path / "run")
    assert "data sha256" in ran(capsys, "digits", "--resume", run).out
