"""Runs are listed and compared as their folders are, whole or damaged."""

import json
import re

import matplotlib.image
import pytest

import manual_backprop as mb
from made_runs import event, made_rows, whole_run, write_run
from manual_backprop.training.chronicle import sessions, span
from manual_backprop.training.history import flat, in_bytes, number, read
from manual_backprop.training.runs import as_json, compare, find, table

fcntl = pytest.importorskip("fcntl")


def older_run(folder):
    """As version 0.1 wrote them: no events, the device in config.json."""
    rows = [{"step": 20, "cost": 1.0, "accuracy": 0.5, "block_norms": [0.1, 0.2]}, {"step": 40, "cost": 0.5}]
    config = {"steps": 40, "device_used": "cpu:0", "versions": {"jax": "0.10.2"}}
    write_run(folder, rows, config=config, result={"accuracy": 0.9})
    (folder / "events.jsonl").unlink()
    return folder


# ── the list ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_list_has_every_run_with_what_its_files_say(tmp_path):
    whole_run(tmp_path / "gpt" / "first")
    older_run(tmp_path / "digits" / "old")
    (tmp_path / "digits" / "no run").mkdir()
    (tmp_path / "notes.txt").write_text("")
    runs = {run.name: run for run in find(tmp_path)}
    assert set(runs) == {"first", "old"}
    first, old = runs["first"], runs["old"]
    assert (first.experiment, first.state, first.done, first.steps) == ("gpt", "finished", 200, 200)
    assert first.started.isoformat() == "2026-11-22T20:00:00+00:00" and first.device == "NVIDIA H100"
    rows = made_rows()
    assert first.cost == rows[-1]["cost"] and first.held_out_cost == rows[-1]["held_out_cost"]
    assert first.size == sum(path.stat().st_size for path in first.folder.rglob("*") if path.is_file())
    assert (old.experiment, old.state, old.done, old.cost, old.device) == ("digits", "finished", 40, 0.5, "cpu:0")


def test_a_run_folder_itself_and_a_folder_of_runs_are_found(tmp_path):
    folder = whole_run(tmp_path / "one")
    assert [run.folder for run in find(folder)] == [folder] == [run.folder for run in find(tmp_path)]


def test_the_newest_is_last(tmp_path):
    for name, seconds in (("b", 50), ("a", 99), ("c", 1)):
        write_run(tmp_path / "x" / name, events=[event(seconds, "started")])
    assert [run.name for run in find(tmp_path)] == ["c", "b", "a"]


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([], "unfinished"),
        (["started"], "unfinished"),
        (["started", "speed", "stopped"], "stopped"),
        (["started", "stopped", "resumed", "restored"], "unfinished"),
        (["started", "resumed", "finished"], "finished"),
        (["started", "failed"], "failed"),
    ],
)
def test_the_state_is_that_of_the_last_process(tmp_path, events, state):
    folder = write_run(tmp_path / "x" / "run", made_rows(50), [event(i, name) for i, name in enumerate(events)])
    assert find(folder)[0].state == state


@pytest.mark.parametrize(("last", "state"), [("restored", "running"), ("finished", "finished")])
def test_a_run_that_holds_its_lock_is_running(tmp_path, last, state):
    """Until it says that it has ended: its report is made under the lock."""
    folder = write_run(tmp_path / "run", made_rows(50), [event(0, "started"), event(1, last)])
    with (folder / ".lock").open("w") as lock:
        assert read(folder).state == ("unfinished" if last == "restored" else "finished")
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert read(folder).state == state
        fcntl.flock(lock, fcntl.LOCK_UN)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # to look has not kept it


def test_of_long_files_the_end_is_enough(tmp_path):
    folder = whole_run(tmp_path / "run")
    whole, part = read(folder), read(folder, tail=700)
    assert len(part.rows) < len(whole.rows) and not part.unread
    for name in ("done", "state", "started", "steps"):
        assert getattr(part, name) == getattr(whole, name), name
    assert part.last("cost") == whole.last("cost")


def test_the_table_has_whole_names_and_no_markup(tmp_path, monkeypatch):
    folder = whole_run(tmp_path / "gpt" / ("[red]long" * 12))
    monkeypatch.setenv("COLUMNS", "40")
    lines = table(find(tmp_path)).splitlines()
    assert re.split(r"\s{2,}", lines[0]) == ["run", "state", "started", "steps", "cost", "held out", "device", "size"]
    assert lines[1].startswith(f"{folder}  finished  2026-11-22 20:00  200 of 200") and len(lines) == 2
    assert table([]) == "no runs"


def test_the_list_for_programs_is_json_without_nan(tmp_path):
    write_run(tmp_path / "x" / "a", [{"step": 1, "cost": float("nan")}])
    whole_run(tmp_path / "x" / "b")
    text = as_json(find(tmp_path))
    rows = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert {row["name"]: row["cost"] for row in rows} == {"a": None, "b": made_rows()[-1]["cost"]}


# ── damaged files ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_torn_last_line_costs_one_row(tmp_path):
    folder = whole_run(tmp_path / "run")
    rows = read(folder).rows
    with (folder / "metrics.jsonl").open("r+b") as file:
        file.truncate((folder / "metrics.jsonl").stat().st_size - 5)
    torn = read(folder)
    assert torn.rows == rows[:-1]
    assert torn.unread == ("metrics.jsonl: its last line is cut short; it was left out",)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", b"{", "config.json is damaged"),
        ("result.json", b"[1]", "result.json is damaged"),
        ("environment.json", b"\xff\xfe", "environment.json is damaged"),
        ("metrics.jsonl", b'{"step": 1}\n\0\0\0\n{"step": 2}\n', "metrics.jsonl: line 2 could not be read"),
        ("metrics.jsonl", b'{"cost": 1}\n[]\n{"step": 2}\n', "2 lines, the first of them line 1, could not be read"),
        ("metrics.jsonl", b'{"step": 2}\n{"step": 1}\n{"step": 2}\n', "its steps do not rise"),
        ("events.jsonl", b'{"event": 3}\n', "events.jsonl: line 1 could not be read"),
    ],
)
def test_what_cannot_be_read_is_said_and_left_out(tmp_path, name, content, said):
    folder = whole_run(tmp_path / "run")
    (folder / name).write_bytes(content)
    history = read(folder)
    assert len(history.unread) == 1 and said in history.unread[0]
    steps = [row["step"] for row in history.rows]
    assert steps == sorted(set(steps))
    assert len(find(tmp_path)) == 1


def test_numbers_too_long_for_any_field_do_no_harm(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "metrics.jsonl").write_text('{"step": 1, "cost": ' + "9" * 400 + "}\n")
    assert number(read(folder).last("cost")) == "∞"


# ── two runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_runs_are_drawn_and_their_differences_told(tmp_path):
    a, b = whole_run(tmp_path / "a$x$"), whole_run(tmp_path / "_b", steps=300)
    told = compare(a, b, tmp_path / "two.png")
    words = [re.split(r"\s{2,}", line.strip()) for line in told.splitlines()]
    assert [str(a), str(b)] == words[0]
    assert ["steps", "200", "300"] in words and not any("seed" in line for line in words)
    last = [made_rows(steps)[-1] for steps in (200, 300)]
    assert ["cost", *(number(row["cost"]) for row in last)] in words
    assert ["result: entropy", "1.063", "1.063"] in words
    picture = matplotlib.image.imread(tmp_path / "two.png")
    assert picture.shape[1] > 2 * picture.shape[0]  # three panels
    blue, red = (
        (abs(picture[..., :3] - colour).sum(-1) < 0.1).sum() for colour in ([0.12, 0.31, 0.47], [0.75, 0.22, 0.17])
    )
    assert blue > 300 and red > 300
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_the_same_configuration_is_said(tmp_path):
    a, b = whole_run(tmp_path / "a"), whole_run(tmp_path / "b")
    assert "configuration: the same" in compare(a, b, tmp_path / "two.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: {"a": folder / "none"}, "none: there is no such folder; `manual-backprop runs` lists runs"),
        (lambda folder: {"b": folder}, "is not a run's folder: it has none of metrics.jsonl, events.jsonl"),
        (lambda folder: {"a": folder / "a" / "metrics.jsonl"}, "there is no such folder"),
        (lambda folder: {"a": write_run(folder / "e")}, "metrics.jsonl has no row with a number"),
        (lambda folder: {"a": write_run(folder / "o", [{"step": 1, "reward": 2}])}, "no metric in common: "),
        (lambda folder: {"file": folder / "a" / "metrics.jsonl"}, "wants a name that ends in .png"),
        (lambda folder: {"file": folder / "none" / "x.png"}, "there is no folder"),
        (lambda folder: {"file": folder / "there.png"}, "exists; nothing is overwritten: name another"),
    ],
    ids=["no folder", "no run", "a file", "no rows", "nothing in common", "suffix", "no place", "exists"],
)
def test_what_cannot_be_compared_is_one_line(tmp_path, change, message):
    (tmp_path / "there.png").write_text("mine")
    options = {"a": whole_run(tmp_path / "a"), "b": whole_run(tmp_path / "b"), "file": tmp_path / "two.png"}
    with pytest.raises(mb.InputError, match=re.escape(message)) as error:
        compare(**(options | change(tmp_path)))
    assert "\n" not in str(error.value)
    assert (tmp_path / "there.png").read_text() == "mine" and not (tmp_path / "two.png").exists()


@pytest.mark.parametrize("method", ["write_bytes", "rename"])
def test_a_full_disk_leaves_no_half_picture(tmp_path, monkeypatch, method):
    a, b = whole_run(tmp_path / "a"), whole_run(tmp_path / "b")

    def full(self, *_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"pathlib.Path.{method}", full)
        with pytest.raises(mb.InputError, match=r"two\.png cannot be written: No space left on device"):
            compare(a, b, tmp_path / "two.png")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_a_list_wants_a_folder(tmp_path):
    with pytest.raises(mb.InputError, match="there is no such folder; wants one that holds runs"):
        find(tmp_path / "none")
    assert find(tmp_path) == []


# ── small parts ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_process_that_says_nothing_at_its_end_was_killed(tmp_path):
    found = sessions(read(whole_run(tmp_path / "run")).events)
    assert [[event["event"] for event in session][:: len(session) - 1] for session in found] == [
        ["started", "speed"],
        ["resumed", "stopped"],
        ["resumed", "finished"],
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0, "0"),
        (12000, "12,000"),
        (0.94986069, "0.9499"),
        (0.5, "0.5"),
        (1234.5678, "1,235"),
        (138759.9, "138,760"),
        (-0.25, "-0.25"),
        (1.23456e-5, "1.235e-5"),
        (3e-4, "3e-4"),
        (2.5e12, "2,500,000,000,000"),
        (12345678.5, "1.235e7"),
        (2.5e15, "2.5e15"),
        (float("nan"), "NaN"),
        (float("-inf"), "−∞"),
        (None, "–"),
    ],
)
def test_numbers_in_words(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (99, "99 s"), (150, "2 min 30 s"), (3600, "1 h"), (7500, "2 h 5 min"), (90000, "1 d 1 h")],
)
def test_times_in_words(seconds, text):
    from datetime import timedelta

    assert span(timedelta(seconds=seconds)) == text


def test_bytes_and_nested_names():
    assert [in_bytes(size) for size in (0, 999, 1000, 999_600, 2_400_000)] == ["0 B", "999 B", "1 kB", "1 MB", "2.4 MB"]
    assert dict(flat({"a": {"b": 1, "c": {}}, "d": [1]})) == {"a.b": 1, "d": [1]}
