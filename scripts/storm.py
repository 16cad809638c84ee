"""A storm over a training run: killed again and again, it ends with the same bits as one that was left alone.

    python3 scripts/run.py storm                                 50 SIGKILLs and 20 SIGTERMs over one run of digits
    python3 scripts/run.py storm --kills 5 --terms 2 gpt --steps 200 --sample 0

Both runs are of this machine, device and these packages. The calm one says how long it takes to start and to train; the
other is killed and started again with --resume auto, a fourth of the times while it starts, else while it trains, saves
or evaluates, after so many rows that the storm lasts as long as the run. At the end: the sha256 of both final states,
whether the rows of metrics are the same, and how far back each start had to go.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ["digits", "--steps", "200000", "--save.every", "2000", "--log.every", "200"]
SECONDS = 60  # that a process may take to end


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs")
    parser.add_argument("--terms", type=int, default=20, help="SIGTERMs")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path, help="write what happened into a new file")
    options, experiment = parser.parse_known_args()
    name, *words = experiment or DIGITS
    command = [sys.executable, str(ROOT / "experiments" / f"{name}.py"), *words]
    with tempfile.TemporaryDirectory() as place:
        calm, torn = Path(place, "calm"), Path(place, "torn")
        process = subprocess.Popen([*command, "--folder", calm], stdout=subprocess.DEVNULL)
        start = until(process, lambda: count(calm) > 0)
        train = until(process, lambda: process.poll() is not None)
        rows = count(calm)
        if process.wait():
            return process.returncode
        print(f"calm: {start:.1f} s to start, {train:.1f} s to train: {' '.join([name, *words])}", flush=True)
        ends = storm([*command, "--folder", torn, "--resume", "auto"], torn, start, rows, options)
        result = compared(calm, torn, ends)
    print("\n".join(f"{key:24} {value}" for key, value in result.items()))
    if options.json:
        options.json.open("x").write(json.dumps({"result": result, "ends": ends}, indent=1))
    return 0 if result["the same state"] and result["the same metrics"] else 1


def storm(command: list, folder: Path, start: float, rows: int, options) -> list[dict]:
    """How each process ended, and where the next one began."""
    rng = random.Random(options.seed)
    signals = [signal.SIGKILL] * options.kills + [signal.SIGTERM] * options.terms
    rng.shuffle(signals)
    ends = []
    for number in signals:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if rng.random() < 0.25:
            time.sleep(rng.uniform(0.2, start))
        else:
            some = rng.uniform(0, 1.5 * rows / len(signals))
            before = count(folder)
            until(process, lambda: count(folder) != before)  # noqa: B023
            begun = count(folder)
            until(process, lambda: count(folder) >= begun + some)  # noqa: B023
            time.sleep(rng.uniform(0, 0.05))
        process.send_signal(number)
        begin = time.monotonic()
        said, _ = process.communicate(timeout=SECONDS)
        row, newest = max(steps(folder / "metrics.jsonl"), default=0), max(saved(folder), default=0)
        warnings = [line for line in said.splitlines() if line.startswith("warning")]
        seconds = round(time.monotonic() - begin, 2)
        end = (number.name, process.returncode, seconds, row, newest, warnings)
        ends.append(dict(zip(("signal", "code", "seconds", "row", "saved", "warnings"), end, strict=True)))
        print(f"{len(ends):3} {ends[-1]}", flush=True)
        if process.returncode not in (0, -number, 128 + number):
            raise SystemExit(f"it ended with {process.returncode}:\n{said}")
        if process.returncode == 0:
            break
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return ends


def until(process: subprocess.Popen, done: Callable[[], Any]) -> float:
    """The seconds until it is done, or the process has ended."""
    begin = time.monotonic()
    while not done() and process.poll() is None:
        time.sleep(0.01)
    return time.monotonic() - begin


def compared(calm: Path, torn: Path, ends: list[dict]) -> dict:
    sha256 = [json.loads((folder / "result.json").read_text())["sha256"] for folder in (calm, torn)]
    metrics = [(folder / "metrics.jsonl").read_bytes() for folder in (calm, torn)]
    killed = [end for end in ends if end["code"] == -signal.SIGKILL]
    stopped = [end for end in ends if end["code"] == 128 + signal.SIGTERM]
    return {
        "SIGKILLs": len(killed),
        "SIGTERMs": len(stopped),
        "ended by itself": len(ends) - len(killed) - len(stopped),
        "sha256, calm": sha256[0],
        "sha256, torn": sha256[1],
        "the same state": sha256[0] == sha256[1],
        "the same metrics": metrics[0] == metrics[1],
        "most steps lost": max((end["row"] - end["saved"] for end in killed), default=0),
        "lost after SIGTERM": max((end["row"] - end["saved"] for end in stopped), default=0),
        "slowest to stop, seconds": max((end["seconds"] for end in stopped), default=0),
        "warnings": sum(len(end["warnings"]) for end in ends),
    }


def count(folder: Path) -> int:
    return len(steps(folder / "metrics.jsonl"))


def saved(folder: Path) -> list[int]:
    return [int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdecimal()]


def steps(path: Path) -> list[int]:
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


if __name__ == "__main__":
    sys.exit(main())
