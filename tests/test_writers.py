"""What TensorBoard and Weights & Biases get is what metrics.jsonl has, also of a run that was killed and resumed."""

import json
import re
import struct
import sys
import time

import numpy as np
import pytest

import manual_backprop as mb
from manual_backprop.training import writers
from manual_backprop.training.writers import numbers, tensorboard, wandb_run

ROW = {
    "step": 20,
    "cost": 0.5,
    "held_out_cost": None,
    "skipped": 0,
    "best": True,
    "layer_norms": {"model[0] Dense": 0.25, "block": [1.5, 2.5], "deep": [[1.0], [2.0]], "gone": None},
}


def rows(*steps):
    return [{"step": step, "cost": step / 8, "layer_norms": {"block": [step / 4, step / 2]}} for step in steps]


def test_what_is_nested_gets_a_name_with_a_path():
    assert numbers(ROW) == {
        "cost": 0.5,
        "skipped": 0.0,
        "layer_norms/model[0] Dense": 0.25,
        "layer_norms/block/0": 1.5,
        "layer_norms/block/1": 2.5,
        "layer_norms/deep/0/0": 1.0,
        "layer_norms/deep/1/0": 2.0,
    }


# ── TensorBoard ──────────────────────────────────────────────────────────────────────────────────────────────────────


def events_of(file):
    """The records of an event file, its checksums verified."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    data, at = file.read_bytes(), 0
    while at < len(data):
        (size,) = struct.unpack("<Q", data[at : at + 8])
        body = data[at + 12 : at + 12 + size]
        assert struct.unpack("<I", data[at + 8 : at + 12])[0] == masked_crc32c(data[at : at + 8])
        assert struct.unpack("<I", data[at + 12 + size : at + 16 + size])[0] == masked_crc32c(body)
        at += 16 + size
        yield Event.FromString(body)


def as_tensorboard_shows(folder):
    """(name, step) -> values, from all files in the order of their names; a session's start ends what was after it."""
    from tensorboardX.proto.event_pb2 import SessionLog

    shown = {}
    for file in sorted((folder / "tensorboard").iterdir()):
        first, *rest = events_of(file)
        assert first.file_version == "brain.Event:2" and "tfevents" in file.name
        for event in rest:
            if event.session_log.status == SessionLog.START:
                shown = {key: value for key, value in shown.items() if key[1] < event.step}
            for value in event.summary.value:
                shown.setdefault((value.tag, event.step), []).append(value.simple_value)
    return shown


def expected(all_rows):
    return {(name, row["step"]): [np.float32(value)] for row in all_rows for name, value in numbers(row).items()}


def test_tensorboard_gets_every_number(tmp_path):
    with tensorboard(tmp_path) as write:
        for row in (*rows(10), ROW):
            write(row)
            assert ("cost", row["step"]) in as_tensorboard_shows(tmp_path)  # on the disk at once
    assert as_tensorboard_shows(tmp_path) == expected([*rows(10), ROW])


def test_after_a_resumption_tensorboard_shows_no_step_twice_and_none_too_few(tmp_path):
    with pytest.raises(KeyboardInterrupt), tensorboard(tmp_path, 0) as write:
        for row in rows(10, 20, 30, 40):
            write(row)
        raise KeyboardInterrupt
    with tensorboard(tmp_path, 20) as write:
        for row in rows(30, 40, 50):
            write(row)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    assert as_tensorboard_shows(tmp_path) == expected(rows(10, 20, 30, 40, 50))


def test_the_order_of_the_files_stands_though_the_clock_be_set_back(tmp_path, monkeypatch):
    for number, clock in enumerate((5000.0, 4000.0, 4000.0)):
        monkeypatch.setattr(writers.time, "time", lambda clock=clock: clock)
        with tensorboard(tmp_path, 10 * number) as write:
            write(rows(10 * number + 10)[0])
            write(rows(10 * number + 20)[0])
    assert as_tensorboard_shows(tmp_path) == expected(rows(10, 20, 30, 40))


def test_not_finite_numbers_are_kept(tmp_path):
    with tensorboard(tmp_path) as write:
        write({"step": 1, "cost": float("nan"), "gradient_norm": float("inf")})
    shown = as_tensorboard_shows(tmp_path)
    assert np.isnan(shown["cost", 1]) and np.isinf(shown["gradient_norm", 1])


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "tensorboard").write_text("")
    with pytest.raises(mb.InputError, match="tensorboard cannot be written: File exists"), tensorboard(tmp_path):
        pass

    def full(self):
        raise OSError(28, "No space left on device")

    (tmp_path / "other").mkdir()
    with (
        pytest.raises(mb.InputError, match="cannot be written: No space left on device"),
        tensorboard(tmp_path / "other") as write,
    ):
        monkeypatch.setattr("tensorboardX.record_writer.RecordWriter.flush", full)
        write(ROW)


# ── Weights & Biases ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    """The package, with no key, no home and no way to a network."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    return pytest.importorskip("wandb")


def history_of(folder, length):
    """What the offline runs of a folder hold: (step, numbers) in the order of writing; and their ids.

    The service writes the file, and goes on for a moment when the run has ended: waits until so much is there.
    """
    deadline = time.monotonic() + 30
    while len((found := read_history(folder))[0]) < length and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def read_history(folder):
    from wandb.proto.wandb_internal_pb2 import Record

    history, ids = [], set()
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        ids.add(file.stem.removeprefix("run-"))
        for body in log_records(file.read_bytes()[7:]):
            record = Record.FromString(body)
            if record.WhichOneof("record_type") == "history":
                items = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                own = {name: value for name, value in items.items() if not name.startswith("_")}
                history.append((items.get("_step", record.history.step.num), own))
    return history, ids


def log_records(data, block=32768, head=7):
    """Records of a LevelDB log: blocks of 32 KiB that begin 7 bytes into the file; crc, length, kind of each part."""
    whole, at = b"", 0
    while at + head <= len(data):
        left = block - (at + head) % block  # of this block; the file's own 7 bytes count
        if left < head:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        if not length and not kind:
            return
        whole += data[at + head : at + head + length]
        at += head + length
        if kind in (1, 4):  # full, or the last part
            yield whole
            whole = b""


def test_weights_and_biases_gets_every_number_offline(tmp_path, wandb):
    config = {"steps": 40, "folder": tmp_path, "save": {"every": 10}}
    with wandb_run(tmp_path, "backprop", config, mode="offline") as write:
        for row in (*rows(10), ROW):
            write(row)
    history, (identity,) = history_of(tmp_path, 2)
    assert history == [(row["step"], numbers(row)) for row in (*rows(10), ROW)]
    assert json.loads((tmp_path / "wandb.json").read_text()) == {"id": identity, "step": 20}


def test_after_a_resumption_weights_and_biases_has_no_step_twice(tmp_path, wandb):
    with pytest.raises(KeyboardInterrupt), wandb_run(tmp_path, "backprop", {}, 0, mode="offline") as write:
        for row in rows(10, 20, 30):
            write(row)
        raise KeyboardInterrupt
    with wandb_run(tmp_path, "backprop", {}, 10, mode="offline") as write:
        for row in rows(20, 30, 40):
            write(row)
    history, ids = history_of(tmp_path, 4)
    assert [step for step, _ in history] == [10, 20, 30, 40] and len(ids) == 1
    assert history == [(row["step"], numbers(row)) for row in rows(10, 20, 30, 40)]


def test_without_a_key_it_says_so_and_asks_nothing(tmp_path, wandb, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    said = pytest.raises(mb.InputError, match="has no key of yours; `wandb login` sets one")
    with said, wandb_run(tmp_path, "backprop", {}, mode="online"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "[]", '{"id": "x"}', '{"id": "x", "step": "y"}'])
def test_a_damaged_memory_is_one_line(tmp_path, wandb, content):
    (tmp_path / "wandb.json").write_text(content)
    said = pytest.raises(mb.InputError, match=r"wandb\.json is damaged; without it, the run begins anew")
    with said, wandb_run(tmp_path, "backprop", {}, mode="offline"):
        pass


def test_a_mode_that_there_is_not(tmp_path):
    said = pytest.raises(mb.InputError, match=r"wandb: mode 'ofline' is unknown; did you mean 'offline'\?")
    with said, wandb_run(tmp_path, "backprop", {}, mode="ofline"):
        pass


@pytest.mark.parametrize(
    ("package", "open_writer", "line"),
    [
        ("wandb", lambda folder: wandb_run(folder, "p", {}), "Weights & Biases: wants the package wandb: pip install 'manual_backprop[wandb]'"),
        ("tensorboardX.record_writer", tensorboard, "TensorBoard: wants the package tensorboardX: pip install 'manual_backprop[train]'"),
    ],
)  # fmt: skip
def test_a_package_that_is_not_there(tmp_path, monkeypatch, package, open_writer, line):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(mb.InputError, match=f"^{re.escape(line)}$"), open_writer(tmp_path):
        pass
