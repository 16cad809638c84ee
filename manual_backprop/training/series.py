"""The numbers of a run as its report draws them: charts, columns, and the gradients of the layers over the steps."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from manual_backprop.training.chronicle import finite, kept
from manual_backprop.training.history import History, columns, number

ROWS = 3000  # points of a curve at most; further ones are left out evenly
CELLS = 120_000  # of the map of gradient flow
TITLES = {"cost": "Cost", "accuracy": "Accuracy", "gradient_norm": "Length of the gradient, |∇C|"}
PART = r"^(train|held_out)_"  # the columns x, train_x and held_out_x are drawn together


def curves(run: History) -> dict:
    """What the page's script draws: columns of numbers; null for what is missing, text for what is not finite."""
    rows, speeds = _thin(run.rows, ROWS), [e for e in run.events if e["event"] == "speed" and "step" in e]
    names = [name for name in columns(rows) if name != "skipped" or any(row.get(name) for row in rows)]
    rates = [name for name in ("units_per_second", "steps_per_second") if name in columns(speeds)][:1]
    by_step = {event["step"]: event for event in speeds if rates and finite(event.get(rates[0]))}
    speeds = _thin([by_step[step] for step in sorted(by_step)], ROWS)
    charts = [_chart(group, run) for group in _groups(names)]
    if speeds:
        unit = next((str(e["unit"]) for e in speeds if e.get("unit")), "units") if rates[0][0] == "u" else "steps"
        series = [{"column": rates[0], "name": "", "kind": "main"}]
        charts.append({"title": f"Throughput, {unit} a second", "table": "speed", "series": series, "zero": True})
    layers = _layers(run.rows)
    steps = [row["step"] for row in (*rows[-1:], *speeds[-1:])] + (layers["steps"][-1:] if layers else [])
    on_disk = {step for step, _ in kept(run.folder)}
    gaps = [b["step"] - a["step"] for a, b in itertools.pairwise(rows)]
    return {
        "span": [0, max([1, *steps])],
        "least": 2 * min(gaps, default=1),
        "left_out": len(run.rows) - len(rows),
        "resumed": sorted({e["step"] for e in run.events if e["event"] == "restored" and "step" in e}),
        "saved": sorted(on_disk),
        "charts": charts,
        "tables": {
            "rows": {"step": [row["step"] for row in rows]} | {n: [_value(row.get(n)) for row in rows] for n in names},
            "speed": {"step": [e["step"] for e in speeds]} | {n: [_value(e.get(n)) for e in speeds] for n in rates},
        },
        "layers": layers,
        "chosen": sorted({0, len(layers["names"]) // 2, len(layers["names"]) - 1}) if layers else [],
    }


def _groups(names: Sequence[str]) -> list[list[str]]:
    """Columns that belong into one chart: x, train_x and held_out_x. Those of TITLES come first."""
    groups: dict[str, list[str]] = {name: [] for name in TITLES}
    for name in names:
        groups.setdefault(re.sub(PART, "", name), []).append(name)
    if "skipped" in groups:
        groups["skipped"] = groups.pop("skipped")  # last
    return [group for group in groups.values() if group]


def _chart(group: Sequence[str], run: History) -> dict:
    base = re.sub(PART, "", group[0])
    held_out = next((name for name in group if name.startswith("held_out_")), None)
    main = held_out or base if len(group) > 1 else group[0]
    label = lambda name: "held out" if name == held_out or (name == main and len(group) > 1) else "training"
    order = [name for name in group if name != main] + [main]
    series = [
        {"column": n, "name": label(n) if len(group) > 1 else "", "kind": "main" if n == main else "context"}
        for n in order
    ]
    chart = {
        "title": TITLES.get(base, base.replace("_", " ").capitalize()),
        "table": "rows",
        "series": series,
    }
    values = [v for name in group for row in run.rows if finite(v := row.get(name))]
    wide = values and min(values) > 0 and max(values) > 20 * min(values)
    chart["log"] = bool(wide and base != "accuracy")
    if base == "cost" and finite(run.result.get("entropy")):
        chart["level"] = {"name": "entropy of the source", "value": float(run.result["entropy"])}
    return chart


def _layers(rows: Iterable[dict]) -> dict | None:
    """The norm of each layer's gradient, layer × step; a layer that is stacked has as many rows as are stacked."""
    found = [(row["step"], dict(_norms(row))) for row in rows]
    found = [(step, norms) for step, norms in found if norms]
    labels = dict.fromkeys(label for _, norms in found for label in norms)
    if not labels:
        return None
    stacks = dict.fromkeys(name for name, _ in labels)
    order = [label for name in stacks for label in labels if label[0] == name]
    found = _thin(found, max(50, CELLS // len(order)))
    return {
        "steps": [step for step, _ in found],
        "names": [f"{name} {index}".rstrip() for name, index in order],
        "labels": order,
        "values": [[_value(norms.get(label), 5) for _, norms in found] for label in order],
    }


def _norms(row: dict) -> Iterator[tuple[tuple[str, str], Any]]:
    """((layer, place in its stack), norm): "" for a layer that is not stacked, "3", or "1.3" of stacks of stacks."""

    def of(name: str, index: str, value: Any) -> Iterator[tuple[tuple[str, str], Any]]:
        if isinstance(value, list):
            for i, inner in enumerate(value):
                yield from of(name, f"{index}.{i}" if index else str(i), inner)
        elif value is not None:
            yield (name, index), value

    norms = row.get("layer_norms") or {"block": row.get("block_norms") or []}  # the latter in version 0.1
    for name, value in norms.items() if isinstance(norms, dict) else ():
        yield from of(name, "", value)


def _value(value: Any, digits: int = 9) -> float | str | None:
    """A number as JSON may have it: NaN and infinities as text. Nine digits are all that a float32 has."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return (
        (value if isinstance(value, int) else float(f"{value:.{digits}g}")) if math.isfinite(value) else number(value)
    )


def _thin(rows: Sequence, most: int) -> list:
    """At most so many, evenly, the last among them."""
    every = -(-len(rows) // most)
    return list(rows[::-1][::every][::-1]) if every > 1 else list(rows)
