"""A run's folder and its files: one run at a time, rows that are whole, nothing overwritten."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from manual_backprop.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

WAIT = 0.3  # seconds; whoever lists the runs holds a lock for an instant
METRICS, EVENTS, ENVIRONMENT, RESULT = "metrics.jsonl", "events.jsonl", "environment.json", "result.json"


def new_folder(experiment: str, folder: Path | None = None) -> Path:
    """Makes a folder: `folder`, or runs/<experiment>/<time>. Raises InputError if it exists or cannot be made."""
    chosen = folder or Path("runs") / experiment / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    path, number = chosen, 1
    while True:
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            if folder:
                raise InputError(
                    f"run folder {path} exists; nothing is overwritten: name another, or go on with it by --resume"
                ) from None
            number += 1
            path = chosen.with_name(f"{chosen.name}_{number}")  # a second run in the same second
        except OSError as error:
            raise InputError(f"run folder {path} cannot be made: {error.strerror}") from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lets one run at a time into a folder; the lock goes with the process, however it ends. Raises InputError."""
    with ExitStack() as held:
        try:
            file = held.enter_context(open(folder / ".lock", "a"))
        except OSError as error:
            raise InputError(f"run folder {folder} cannot be written: {error.strerror}") from None
        deadline = time.monotonic() + WAIT
        while fcntl:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise InputError(
                        f"run folder {folder} is in use by another process; wait for it, or stop it"
                    ) from None
                time.sleep(0.02)
        yield


def write_json(path: Path, value: Any) -> None:
    """All of the file or none of it; paths as text. Raises InputError where it cannot be written."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(json.dumps(value, indent=1, default=str) + "\n")
        partial.rename(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


def append(path: Path, row: dict) -> None:
    """One line of a file, in one piece. Raises InputError where it cannot be written."""
    try:
        with open(path, "ab", buffering=0) as file:
            file.write(json.dumps(row, default=str).encode() + b"\n")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


def flushed(path: Path) -> None:
    """What was appended is on the disk."""
    with suppress(OSError), open(path, "rb") as file:
        os.fsync(file.fileno())


def lines(path: Path) -> list[dict]:
    """The rows of a file that are whole; none of one that is not there."""
    return [row for row, _ in _lines(path)]


def trimmed(path: Path, step: int) -> list[dict]:
    """Cuts off the rows of later steps, which will be made again, and a row that was torn; gives those that stay."""
    kept, end = [], 0
    for row, after in _lines(path):
        if row.get("step", step + 1) > step:
            break
        kept.append(row)
        end = after
    if path.exists() and path.stat().st_size != end:
        os.truncate(path, end)
    return kept


def _lines(path: Path) -> Iterator[tuple[dict, int]]:
    """Each whole row up to the first that is not, and where the next one begins."""
    end = 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        end += len(line)
        try:
            row = json.loads(line)
        except ValueError:
            return
        if not (line.endswith(b"\n") and isinstance(row, dict)):
            return
        yield row, end


def now() -> str:
    """The time, for people: nothing is measured by it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
