"""Run folders as training leaves them, made up for tests."""

import json
import math
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

START = datetime(2026, 11, 22, 20, tzinfo=UTC)


def write_run(folder: Path, rows=(), events=(), **files) -> Path:
    """metrics.jsonl and events.jsonl, and of `files` each as NAME.json."""
    folder.mkdir(parents=True)
    for name, lines in (("metrics", rows), ("events", events)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def event(at: float, name: str, step: int = 0, **more) -> dict:
    return {"time": (START + timedelta(seconds=at)).isoformat(), "event": name, "step": step, **more}


def made_rows(steps=200, every=10, seed=0) -> list[dict]:
    """Of a transformer: rows of cost and of layers, the held-out cost in each second row."""
    rng, rows = random.Random(seed), []
    for step in range(every, steps + 1, every):
        size = math.exp(-3 * step / steps)
        row = {"step": step, "cost": 1 + 5 * size + rng.gauss(0, 0.05), "gradient_norm": size + 0.01, "skipped": 0}
        norms = {"embedding": 0.3 * size, "block": [0.1 * 2.0**-k for k in range(3)], "head": 0.5 + size}
        row["layer_norms"] = norms
        if step % (2 * every) == 0:
            row["held_out_cost"] = row["cost"] + 0.1
        rows.append(row)
    return rows


def whole_run(folder: Path, steps=200) -> Path:
    """Started, killed, resumed from an older checkpoint, stopped, resumed, finished."""
    speed = lambda step: {
        "steps_per_second": 8.0,
        "units_per_second": 1000.0 + step,
        "unit": "tokens",
        "utilization": 0.4,
    }
    events = [
        event(0, "started", 0, processes=1),
        event(10, "speed", 60, **speed(60)),
        event(11, "saved", 60, seconds=0.25, score=2.0),
        event(20, "saved", 80, seconds=0.5, score=1.9),
        event(25, "speed", 90, **speed(90)),
        event(100, "resumed", 0, processes=1),
        event(101, "warning", 0, text="checkpoint of step 80 is not used: <b>a file</b> is damaged"),
        event(102, "restored", 60),
        event(110, "skipped", 110, count=1),
        event(120, "stopped", 120, by="SIGTERM"),
        event(200, "resumed", 0, processes=1),
        event(201, "restored", 120),
        event(230, "speed", steps, **speed(steps)),
        event(231, "saved", steps, seconds=0.125, score=1.1),
        event(232, "finished", steps, sha256="ab" * 32),
    ]
    config = {"steps": steps, "seed": 0, "save": {"every": 60}, "optimizer": {"name": "adamw", "learning_rate": 0.003}}
    machine = {"experiment": "gpt", "device": "NVIDIA H100", "versions": {"jax": "0.10.2", "python": "3.11.7"}}
    result = {"step": steps, "entropy": 1.0626, "sha256": "ab" * 32}
    rows = made_rows(steps)
    rows[len(rows) // 2 - 1]["sample"], rows[-1]["sample"] = "first <i>words</i>", "last\n\nwords </script>"
    write_run(folder, rows, events, config=config, environment=machine, result=result)
    for step in (60, 120, steps):
        state = folder / "checkpoints" / str(step) / "state"
        state.mkdir(parents=True)
        (state / "array").write_bytes(bytes(5000))
        if step != 120:
            (state.parent / "manifest.json").write_text("{}")
    (folder / "checkpoints" / "80.refused").mkdir()
    return folder
