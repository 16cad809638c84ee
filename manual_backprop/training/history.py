"""What a run's folder says: its files, read as they are.

A run may be going on, may have been killed while it wrote, or be of an older version: what cannot be read is said and
left out. Nothing here changes a run.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from manual_backprop.errors import InputError

SIGNS = ("metrics.jsonl", "events.jsonl", "environment.json")  # a folder with one of them is a run's
BEGIN = ("started", "resumed")  # events of a process
END = ("stopped", "failed", "finished")


@dataclass(frozen=True)
class History:
    """All that a run's folder says. unread: what could not be read, a line each."""

    folder: Path
    config: dict
    environment: dict
    rows: tuple[dict, ...]
    events: tuple[dict, ...]
    result: dict
    unread: tuple[str, ...]

    @property
    def steps(self) -> int | None:
        """How many it was to take."""
        return next((v for k, v in flat(self.config) if k.split(".")[-1] == "steps" and isinstance(v, int)), None)

    @property
    def done(self) -> int:
        """How many it has taken, as far as its files know."""
        return max((row["step"] for row in (*self.rows[-1:], *self.events[-1:]) if "step" in row), default=0)

    @property
    def experiment(self) -> str:
        return str(self.environment.get("experiment") or self.folder.resolve().parent.name)

    @property
    def started(self) -> datetime | None:
        """When its first event was, or else its first file."""
        if times := [event["at"] for event in self.events if event.get("at")]:
            return times[0]
        stamps = [path.stat().st_mtime for name in ("config.json", *SIGNS) if (path := self.folder / name).is_file()]
        return datetime.fromtimestamp(min(stamps)).astimezone() if stamps else None

    @property
    def state(self) -> str:
        """running, finished, stopped (by a signal), failed (not finite) or unfinished (killed, or never heard of)."""
        life = next((event["event"] for event in reversed(self.events) if event["event"] in (*BEGIN, *END)), None)
        if life in END:  # its last deeds, such as its report, are done under the lock
            return life
        if locked(self.folder):
            return "running"
        ended = life is None and (self.result or (self.steps and self.done >= self.steps))  # version 0.1 had no events
        return "finished" if ended else "unfinished"

    def last(self, key: str) -> Any:
        """The last value that a column has."""
        return next((row[key] for row in reversed(self.rows) if row.get(key) is not None), None)


def read(folder: Path | str, tail: int | None = None) -> History:
    """A run's folder. tail: of files of rows, read the first row and so many bytes at the end.

    Raises InputError for what is no run's folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; `manual-backprop runs` lists runs")
    if not is_run(folder):
        raise InputError(f"{folder} is not a run's folder: it has none of {', '.join(SIGNS)}")
    unread: list[str] = []
    config, environment, result = (
        _json(folder / f"{name}.json", unread) for name in ("config", "environment", "result")
    )
    for old, new in (("device_used", "device"), ("versions", "versions")):  # as version 0.1 wrote them
        if old in config and new not in environment:
            environment[new] = config.pop(old)
    rows = _steps(_lines(folder / "metrics.jsonl", unread, tail, lambda row: _whole(row.get("step"))), unread)
    events = _lines(folder / "events.jsonl", unread, tail, lambda row: isinstance(row.get("event"), str))
    for event in events:
        event["at"] = _time(event.get("time"))
        if not _whole(event.get("step")):
            event.pop("step", None)
    return History(folder, config, environment, tuple(rows), tuple(events), result, tuple(unread))


def is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in SIGNS)


def locked(folder: Path) -> bool:
    """Whether a process holds the run's lock. It is asked for, shared, and given back at once."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        with (folder / ".lock").open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    except OSError:
        pass
    return False


def disk(folder: Path) -> int:
    """Bytes of all files in it."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:  # gone since: a checkpoint was dropped
                continue
    return total


# ── Formats ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def number(value: Any) -> str:
    """Four significant digits, or a whole number with all of its own: 0.9499, 12,000, 1.2e-5."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    if 1e3 <= abs(value) < 1e7 or (float(value).is_integer() and abs(value) < 1e15):
        return f"{value:,.0f}"
    if value and not 1e-3 <= abs(value) < 1e7:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def in_bytes(size: int) -> str:
    """1.2 MB"""
    amount, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while amount >= 999.5 and len(units) > 1:
        amount, units = amount / 1000, units[1:]
    return f"{amount:.3g} {units[0]}"


def flat(value: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    """A nested dict as (dotted name, value), in its order."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def columns(rows: Iterable[dict]) -> list[str]:
    """The names in rows that have a number somewhere, without the step."""
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(k for k, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool)))
    return [name for name in names if name != "step"]


# ── Files, whole or not ──────────────────────────────────────────────────────────────────────────────────────────────


def _parsed(text: bytes) -> Any:
    """JSON, in which a whole number with more digits than any of ours is a float."""
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < 19 else float(digits))


def _json(path: Path, unread: list[str]) -> dict:
    try:
        value = _parsed(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError
        return value
    except FileNotFoundError:
        return {}
    except OSError as error:
        unread.append(f"{path.name}: {error.strerror}")
    except (ValueError, RecursionError):
        unread.append(f"{path.name} is damaged: it holds no whole JSON object")
    return {}


def _lines(path: Path, unread: list[str], tail: int | None, fits: Callable[[dict], bool]) -> list[dict]:
    """The objects of a file with one a line, without those that do not fit."""
    try:
        with path.open("rb") as file:
            lines = [file.readline()]
            size, cut = os.fstat(file.fileno()).st_size, False
            if tail is not None and size - file.tell() > tail:
                file.seek(size - tail)
                cut = True
            rest = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        unread.append(f"{path.name}: {error.strerror}")
        return []
    lines += rest[1:] if cut else rest
    rows, bad = [], []
    for place, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = _parsed(line)
            if not isinstance(row, dict) or not fits(row):
                raise ValueError
            rows.append(row)
        except (ValueError, RecursionError):
            bad.append(place)
    if bad and bad[-1] == len(lines) and not lines[-1].endswith(b"\n"):
        unread.append(f"{path.name}: its last line is cut short; it was left out")
        bad.pop()
    if bad:
        some = f"line {bad[0]}" if len(bad) == 1 else f"{len(bad)} lines, the first of them line {bad[0]},"
        unread.append(f"{path.name}: {some} could not be read; left out")
    return rows


def _steps(rows: list[dict], unread: list[str]) -> list[dict]:
    """A row a step, in order; the last that was written, where there are several."""
    by_step = {row["step"]: row for row in rows}
    if [row["step"] for row in rows] != sorted(by_step):
        unread.append("metrics.jsonl: its steps do not rise from row to row; they were put in order, the last of each")
    return [by_step[step] for step in sorted(by_step)]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _time(text: Any) -> datetime | None:
    try:
        time = datetime.fromisoformat(text)
        return time if time.tzinfo else time.astimezone()
    except (TypeError, ValueError, OverflowError, OSError):
        return None
