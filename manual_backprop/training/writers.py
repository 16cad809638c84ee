"""The rows of metrics.jsonl for TensorBoard and for Weights & Biases too.

A writer is a context, which gives `write(row)`. A run that is resumed goes on where it was: no step is there twice,
although the process that was killed may have come further than the checkpoint that is restored.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from manual_backprop.errors import InputError, choose

Write = Callable[[dict], None]
MODES = ("online", "offline", "disabled")  # of Weights & Biases


def numbers(row: dict) -> dict[str, float]:
    """A row's numbers by name, without its step; what is nested as `layer_norms/head`, `layer_norms/blocks/3`."""
    found: dict[str, float] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, dict | list):
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                add(f"{name}/{key}", inner)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = float(value)

    for name, value in row.items():
        if name != "step":
            add(name, value)
    return found


@contextmanager
def tensorboard(folder: Path | str, first_step: int = 0) -> Iterator[Write]:
    """Event files in `folder`/tensorboard, a new one each time; on disk with each row.

    first_step: how many steps the run has taken; what an earlier file says of later ones, TensorBoard forgets. Raises
    InputError where tensorboardX is missing, or the file cannot be written.
    """
    try:
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.record_writer import RecordWriter
    except ImportError:
        raise _missing("TensorBoard", "tensorboardX", "train") from None
    place = Path(folder) / "tensorboard"
    try:
        place.mkdir(parents=True, exist_ok=True)
        writer = RecordWriter(str(place / _next_name(place)))
    except OSError as error:
        raise InputError(f"{place} cannot be written: {error.strerror}") from None
    try:
        now = time.time()
        writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        begin = SessionLog(status=SessionLog.START)  # of each step from here on, what comes next holds
        writer.write(Event(wall_time=now, step=first_step + 1, session_log=begin).SerializeToString())

        def write(row: dict) -> None:
            values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers(row).items()]
            event = Event(wall_time=time.time(), step=row["step"], summary=Summary(value=values))
            try:
                writer.write(event.SerializeToString())
                writer.flush()
            except OSError as error:
                raise InputError(f"{writer.path} cannot be written: {error.strerror}") from None

        yield write
    finally:
        with suppress(OSError):
            writer.close()


@contextmanager
def wandb_run(
    folder: Path | str, project: str, config: dict, first_step: int = 0, mode: str | None = None
) -> Iterator[Write]:
    """A run at Weights & Biases, whose id and last step stay in `folder`/wandb.json.

    mode: online, or offline: into the folder alone, for `wandb sync` later; by default what WANDB_MODE says. It never
    asks for a key: raises InputError where there is none, where wandb is missing or its service does not answer.

    There a row cannot be taken back. So after a resumption the steps that are there already are left out; they are the
    same numbers, for a resumed run repeats its steps exactly.
    """
    if mode is not None:
        choose("wandb: mode", mode, dict.fromkeys(MODES))
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # what fails here is told to nobody
    try:
        import wandb
    except ImportError:
        raise _missing("Weights & Biases", "wandb", "wandb") from None
    folder = Path(folder)
    remembered = folder / "wandb.json"
    identity, last = _known(remembered, first_step)
    if (mode or wandb.setup().settings.mode) == "online" and not wandb.login(prompt=False, verify=False):
        raise InputError("Weights & Biases has no key of yours; `wandb login` sets one, WANDB_MODE=offline needs none")
    quiet = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True)
    plain = json.loads(json.dumps(config, default=str))
    try:
        run = wandb.init(
            project=project, id=identity, name=folder.resolve().name, dir=str(folder), config=plain, mode=mode,
            resume="allow", allow_val_change=True, settings=quiet,
        )  # fmt: skip
    except (wandb.Error, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"Weights & Biases: {reason}; WANDB_MODE=offline writes into the folder alone") from None

    def write(row: dict) -> None:
        nonlocal last
        if row["step"] <= last:
            return
        last = row["step"]
        _remember(remembered, identity, last)  # first: a row that is lost is better than one that is there twice
        run.log(numbers(row), step=last)

    code = 1
    try:
        _remember(remembered, identity, last)
        yield write
        code = 0
    finally:
        run.finish(exit_code=code)


def _next_name(place: Path) -> str:
    """A name behind those of all earlier files, though the clock be set back: TensorBoard reads them in this order."""
    pattern = r"events\.out\.tfevents\.(\d+)\..*"
    earlier = [int(match[1]) for path in place.iterdir() if (match := re.fullmatch(pattern, path.name))]
    return f"events.out.tfevents.{max([int(time.time()), *(n + 1 for n in earlier)]):010d}.{socket.gethostname()}"


def _known(file: Path, first_step: int) -> tuple[str, int]:
    """The id of a run, and its last step there. A run that is new there begins at its first step."""
    try:
        known = json.loads(file.read_bytes())
        return str(known["id"]), int(known["step"])
    except FileNotFoundError:
        return secrets.token_hex(4), first_step
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError):
        raise InputError(f"{file} is damaged; without it, the run begins anew at Weights & Biases") from None


def _remember(file: Path, identity: str, step: int) -> None:
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps({"id": identity, "step": step}) + "\n")
    partial.replace(file)


def _missing(what: str, package: str, extra: str) -> InputError:
    return InputError(f"{what}: wants the package {package}: pip install 'manual_backprop[{extra}]'")
