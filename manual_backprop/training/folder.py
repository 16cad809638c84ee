"""A run's folder and its files: one run at a time, and rows and files that are whole."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from manual_backprop.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

BEGUN = {".lock", "environment.json"}  # what there is before config.json, which makes a folder a run
WAIT = 0.3  # seconds; whoever lists the runs holds a lock for an instant
METRICS, EVENTS, ENVIRONMENT, RESULT = "metrics.jsonl", "events.jsonl", "environment.json", "result.json"


def new_folder(experiment: str, folder: Path | None = None, goes_on: bool = False) -> Path:
    """Makes a folder: `folder`, or runs/<experiment>/<time>. Raises InputError if it exists or cannot be made.

    goes_on: it may exist, if a start that was killed at once left no more than it.
    """
    chosen = folder or Path("runs") / experiment / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    path, number = chosen, 1
    while True:
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            if folder and goes_on and path.is_dir() and {each.name for each in path.iterdir()} <= BEGUN:
                return path
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
    replaced(path, json.dumps(_finite(value), indent=1, default=str).encode() + b"\n")


def replaced(path: Path, content: bytes) -> None:
    """A file's content is another: all of it, on the disk, or what it was. Raises InputError."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


def append(path: Path, row: dict) -> None:
    """One line of a file, in one piece; numbers that are not finite are null. Raises InputError where it cannot."""
    line = json.dumps(_finite(row), default=str, allow_nan=False).encode() + b"\n"
    try:
        with open(path, "ab", buffering=0) as file:
            if (end := file.tell()) and not _ends_in_line(path):
                line = b"\n" + line  # after one that was torn
            if file.write(line) != len(line):
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None


def _ends_in_line(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _finite(value: Any) -> Any:
    """None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def flushed(path: Path) -> None:
    """What was appended is on the disk."""
    with suppress(OSError), open(path, "rb") as file:
        os.fsync(file.fileno())


def lines(path: Path) -> list[dict]:
    """The rows of a file that are whole, each with its step; none of one that is not there."""
    return [row for _, row in _lines(path) if row is not None]


def trimmed(path: Path, step: int, say: Callable[[str], None]) -> list[dict]:
    """Cuts off the rows of later steps, which will be made again, and a row that was torn; gives those that stay.

    Where a row before is damaged it is told, and the file as it was is kept beside.
    """
    found = _lines(path)
    kept = [(line, row) for line, row in found if row is not None and row["step"] <= step]
    if bad := sum(row is None for line, row in found[:-1]):
        aside = path.with_name(f"{path.stem}.damaged-{len(list(path.parent.glob(f'{path.stem}.damaged-*'))) + 1}.jsonl")
        shutil.copy2(path, aside)
        say(f"{bad} rows of {path.name} are damaged and left out; the file as it was is {aside.name}")
    content = b"".join(line for line, _ in kept)
    if path.exists() and path.read_bytes() != content:
        replaced(path, content)
    return [row for _, row in kept]


def _lines(path: Path) -> list[tuple[bytes, dict | None]]:
    """Each line with its row; None for one that is no row of a step."""
    found = []
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        whole = line.endswith(b"\n") and isinstance(row, dict) and type(row.get("step")) is int
        found.append((line, row if whole else None))
    return found


def now() -> str:
    """The time, for people: nothing is measured by it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
