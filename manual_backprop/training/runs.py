"""The runs there are, as a list; and two of them compared. Nothing here changes a run."""

from __future__ import annotations

import io
import json
import math
import os
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from manual_backprop.errors import InputError
from manual_backprop.training.history import History, columns, disk, flat, in_bytes, is_run, number, read

TAIL = 1 << 18  # bytes at the end of a file of rows that a list reads
PANELS = {"cost": "cost", "held_out_cost": "cost, held out", "accuracy": "accuracy", "gradient_norm": "|∇C|"}


@dataclass(frozen=True)
class Run:
    """A line of the list."""

    folder: Path
    experiment: str
    name: str
    started: datetime | None
    done: int
    steps: int | None
    state: str
    cost: float | None
    held_out_cost: float | None
    device: str
    size: int  # bytes


def find(root: Path | str = Path("runs")) -> list[Run]:
    """The runs in a folder, or in its folders, as in runs/<experiment>/<time>; the newest last.

    Raises InputError where there is no such folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: there is no such folder; wants one that holds runs, such as runs")
    found = [_run(folder) for folder in _folders(root)]
    zero = datetime.fromtimestamp(0).astimezone()
    return sorted(found, key=lambda run: (run.started or zero, run.folder))


def table(runs: Sequence[Run]) -> str:
    """The list for a terminal, a line a run. Nothing is cut to its width: what has a name can be named."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not runs:
        return "no runs"
    rows = Table(box=None, pad_edge=False, header_style="")
    for name in ("run", "state", "started", "steps", "cost", "held out", "device", "size"):
        right = name in ("steps", "cost", "held out", "size")
        rows.add_column(name, justify="right" if right else "left", no_wrap=True)
    for run in runs:
        steps = number(run.done) + (f" of {number(run.steps)}" if run.steps else "")
        when = run.started.strftime("%Y-%m-%d %H:%M") if run.started else ""
        costs = ("" if cost is None else number(cost) for cost in (run.cost, run.held_out_cost))
        cells = str(run.folder), run.state, when, steps, *costs, run.device, in_bytes(run.size)
        rows.add_row(*map(Text, cells))
    console = Console(file=io.StringIO(), width=10_000, color_system=None)
    console.print(rows)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def as_json(runs: Sequence[Run]) -> str:
    """The list for programs."""
    plain = [
        asdict(run) | {"folder": str(run.folder), "started": run.started and run.started.isoformat()} for run in runs
    ]
    return json.dumps([{key: _plain(value) for key, value in run.items()} for run in plain], indent=1)


def compare(a: Path | str, b: Path | str, file: Path | str) -> str:
    """Draws the curves of two runs into a new PNG; gives in words how their configurations and last numbers differ.

    Raises InputError for what is no run, for runs without a number in common, and for a file that there is already.
    """
    file, two = Path(file), (read(a), read(b))
    if file.suffix != ".png":
        raise InputError(f"{file}: wants a name that ends in .png")
    _want_new(file)
    have = [columns(run.rows) for run in two]
    for run, names in zip(two, have, strict=True):
        if not names:
            raise InputError(f"{run.folder}: metrics.jsonl has no row with a number; wants a run that took steps")
    common = [name for name in have[0] if name in have[1]]
    if not common:
        lists = (f"{run.folder} has {', '.join(names)}" for run, names in zip(two, have, strict=True))
        raise InputError(f"compare: no metric in common: {'; '.join(lists)}")
    shown = [name for name in PANELS if name in common] or common[:4]
    _save_new(file, _picture(two, shown))
    return _differences(two, common)


def _run(folder: Path) -> Run:
    run = read(folder, TAIL)
    cost, held_out_cost = (v if isinstance(v := run.last(key), int | float) else None for key in list(PANELS)[:2])
    device = str(run.environment.get("device") or "")
    return Run(
        folder, run.experiment, folder.resolve().name, run.started, run.done, run.steps, run.state,
        cost, held_out_cost, device, disk(folder),
    )  # fmt: skip


def _folders(root: Path, depth: int = 2) -> Iterable[Path]:
    if is_run(root):
        yield root
    elif depth:
        try:
            inner = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        except OSError:
            return
        for path in inner:
            yield from _folders(path, depth - 1)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _want_new(file: Path) -> None:
    if os.path.lexists(file):
        raise InputError(f"{file} exists; nothing is overwritten: name another")
    if not file.parent.is_dir():
        raise InputError(f"{file} cannot be written: there is no folder {file.parent}")


def _save_new(file: Path, data: bytes) -> None:
    partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.write_bytes(data)
        partial.rename(file)
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)


# ── Two runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _picture(two: Sequence[History], shown: Sequence[str]) -> bytes:
    from manual_backprop.training.pictures import INK, WRONG, plt

    figure, panels = plt.subplots(1, len(shown), figsize=(4.6 * len(shown), 3.6), layout="constrained", squeeze=False)
    for axis, name in zip(panels[0], shown, strict=True):
        values = []
        for run, colour, label in zip(two, (INK, WRONG), _names(two), strict=True):
            points = [(row["step"], float(row[name])) for row in run.rows if isinstance(row.get(name), int | float)]
            axis.plot(*zip(*points, strict=True), color=colour, label=label, linewidth=1.2)
            values += [y for _, y in points if math.isfinite(y)]
        if values and min(values) > 0 and max(values) > 8 * min(values) and name != "accuracy":
            axis.set_yscale("log")
        axis.set_title(PANELS.get(name, name).replace("$", r"\$"))
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    panels[0][0].legend(frameon=False, fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, dpi=130, format="png")
    plt.close(figure)
    return file.getvalue()


def _names(two: Sequence[History]) -> list[str]:
    """As short as tells them apart."""
    names = [run.folder.resolve().name for run in two]
    return [f"{which}: {name}".replace("$", r"\$") for which, name in zip("ab", names, strict=True)]


def _differences(two: Sequence[History], common: Sequence[str]) -> str:
    configs = [dict(flat(run.config)) for run in two]
    text = lambda config, key: json.dumps(config[key], ensure_ascii=False) if key in config else "–"
    keys = [key for key in dict.fromkeys([*configs[0], *configs[1]]) if key.split(".")[-1] != "folder"]
    lines = [(key, *(text(config, key) for config in configs)) for key in keys]
    lines = [line for line in lines if line[1] != line[2]]
    results = [{k: v for k, v in flat(r.result) if isinstance(v, int | float)} for r in two]
    ends = [(name, *(number(run.last(name)) for run in two)) for name in ("step", *common)]
    ends += [(f"result: {k}", number(v), number(results[1][k])) for k, v in results[0].items() if k in results[1]]
    head = ("", *(str(run.folder) for run in two))
    widths = [max(len(line[i]) for line in (head, *lines, *ends)) for i in range(3)]
    row = lambda line: "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
    told = [row(head), "", "configuration" if lines else "configuration: the same", *map(row, lines)]
    return "\n".join([*told, "", "last numbers", *map(row, ends)])
