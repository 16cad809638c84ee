"""The pictures that a run of sequences leaves: how it went, and how much the cost hears of each step of the past."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from manual_backprop.errors import InputError
from manual_backprop.training.folder import write_json
from manual_backprop.training.pictures import GREY, INK, WRONG, _save
from manual_backprop.training.tasks import Task

COLOURS = {"lstm": INK, "gru": "#d98c1f", "rnn": WRONG, "state_space": "#7b4fa3"}
NAMES = {"lstm": "LSTM", "gru": "GRU", "rnn": "vanilla RNN", "state_space": "state-space model"}
THROUGH_TIME = "through_time.json"
LOWEST = -16  # powers of ten that are shown
ROUNDED = float(np.finfo(np.float32).eps)  # what is that much smaller, a float32 sum does not hear
RATIO = "log₁₀ of |∂C/∂hₜ| over |∂C/∂h_T|"
GREEN = "#2e8b57"
LEGEND = {"fontsize": 8, "edgecolor": "none", "framealpha": 0.9}


class Past(NamedTuple):
    """What is drawn of a run."""

    cell: str
    rows: list[dict]
    curves: dict[str, dict[str, list[float]]]  # |∂C/∂hₜ| [length] of each cell, by the step of training


def remember(folder: Path, cell: str, step: int, lengths) -> None:
    """Into a run's folder, where a run that goes on finds it again."""
    file = folder / THROUGH_TIME
    found = json.loads(file.read_text()) if file.exists() else {}
    digits = [float(f"{length:.4g}") for length in np.asarray(lengths)]
    write_json(file, found | {cell: found.get(cell, {}) | {str(step): digits}})


def read(folder: Path, task: Task) -> Past:
    """A run that has ended. Raises InputError for what is none, and for one of another task."""
    try:
        config = json.loads((folder / "config.json").read_text())
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        run = Past(config["cell"], rows, json.loads((folder / THROUGH_TIME).read_text()))
        own, length, _ = config["task"], len(run.curves[run.cell]["0"]), rows[-1]["reach"]
    except OSError as error:
        raise InputError(f"--beside {folder}: {Path(error.filename).name} cannot be read: {error.strerror}") from None
    except (ValueError, LookupError, TypeError):
        raise InputError(f"--beside {folder}: is damaged, or no run of sequence; wants a run that has ended") from None
    if (own, length) != (task.name, task.length):
        raise InputError(f"--beside {folder}: is of {own}, {length} steps; wants {task.name}, {task.length} steps")
    return run


def reach(lengths) -> int:
    """How many steps back |∂C/∂hₜ| is not lost in the rounding of the last."""
    heard = np.asarray(lengths)[::-1] >= ROUNDED * lengths[-1]
    return len(heard) if heard.all() else int(np.argmin(heard))


def curves(rows: Sequence[dict], task: Task, path: Path) -> None:
    """The cost against what is known of it, right answers where there are some, and how far the gradient reaches.

    rows: step, cost, held_out_cost, reach, and perhaps accuracy.
    """
    steps = [row["step"] for row in rows]
    panels = 3 if "accuracy" in rows[-1] else 2
    figure, axes = plt.subplots(1, panels, figsize=(4.4 * panels + 1, 3.6), layout="constrained")
    _cost(axes[0], task.memoryless, task.least, task.solved)
    axes[0].plot(steps, [row["cost"] for row in rows], color=GREY, label="training")
    axes[0].plot(steps, [row["held_out_cost"] for row in rows], color=INK, label="held out")
    axes[0].set_title(f"cost C, {task.unit}: {rows[-1]['held_out_cost']:.4f} held out", fontsize=10)
    axes[0].legend(**LEGEND)
    if panels == 3:
        axes[1].plot(steps, [row["accuracy"] for row in rows], color=INK)
        axes[1].set_title(f"right among the last {task.answers}: {rows[-1]['accuracy']:.3f}", fontsize=10)
        axes[1].set_ylim(0, 1.02)
    axes[-1].plot(steps, [row["reach"] for row in rows], color=INK)
    axes[-1].axhline(task.length, color=GREEN, linewidth=1, linestyle="--", label=f"the whole sequence, {task.length}")
    axes[-1].set_ylim(0, 1.05 * task.length)
    axes[-1].set_title("steps back until rounding loses ∂C/∂h", fontsize=10)
    axes[-1].legend(**LEGEND)
    for axis in axes:
        axis.set_xlabel("step of training")
        _bare(axis)
    _save(figure, path)


def through_time(run: Past, path: Path) -> None:
    """Left all cells before training, right this one in training: |∂C/∂hₜ| over that at the last step."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained", sharey=True)
    for name in sorted(run.curves, key=list(NAMES).index):
        _past(left, run.curves[name]["0"], COLOURS[name], NAMES[name], linestyle="--")
    left.set_title("before training: all four", fontsize=10)
    own = {int(step): lengths for step, lengths in run.curves[run.cell].items()}
    shades = plt.get_cmap("viridis")(np.linspace(0.85, 0, len(own)))
    for (step, lengths), colour in zip(sorted(own.items()), shades, strict=True):
        _past(right, lengths, colour, f"step {step:,}", linestyle="-" if step else "--")
    right.set_title(f"the {NAMES[run.cell]} in training", fontsize=10)
    for axis in (left, right):
        _past_axis(axis)
    left.set_ylabel(RATIO)
    figure.suptitle("How much the last step's cost hears of the memory at every step before it", fontsize=11)
    _save(figure, path)


def beside(runs: Sequence[Past], task: Task, path: Path) -> None:
    """Runs in one picture: how far the gradient reaches before and after training, and what became of the cost."""
    figure, (before, after, cost) = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    after.sharey(before)
    for run in runs:
        own, colour = run.curves[run.cell], COLOURS[run.cell]
        first, last = own["0"], own[max(own, key=int)]
        _past(before, first, colour, NAMES[run.cell], linestyle="--")
        _past(after, last, colour, f"{NAMES[run.cell]}: {reach(first)} → {reach(last)} of {task.length}")
        label = f"{NAMES[run.cell]}, {run.rows[-1]['held_out_cost']:.4f}"
        steps = [row["step"] for row in run.rows]
        cost.plot(steps, [row["held_out_cost"] for row in run.rows], color=colour, label=label)
    before.set_title("before training", fontsize=10)
    before.set_ylabel(RATIO)
    after.set_title("after training; steps that are heard, before → after", fontsize=10)
    for axis in (before, after):
        _past_axis(axis)
    _cost(cost, task.memoryless, task.least, task.solved)
    cost.set_title(f"cost held out, {task.unit}", fontsize=10)
    cost.set_xlabel("step of training")
    cost.legend(**LEGEND)
    _bare(cost)
    heard = "How much the last step's cost hears of the memory at every step before it"
    figure.suptitle(f"{heard}: what is not heard cannot be learnt from", fontsize=11)
    _save(figure, path)


def _past(axis: Axes, lengths: Sequence[float], colour, label: str, **options) -> None:
    """Lengths of zero, before a truncation or below float32, are not drawn."""
    lengths = np.asarray(lengths, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        shown = np.log10(lengths / lengths[-1])
    axis.plot(
        1 + np.arange(len(shown)), np.where(np.isfinite(shown), shown, np.nan), color=colour, label=label, **options
    )


def _past_axis(axis: Axes) -> None:
    length = max(len(line.get_xdata()) for line in axis.lines)
    axis.axhline(np.log10(ROUNDED), color=GREY, linewidth=1, linestyle=":")
    axis.text(0.01, np.log10(ROUNDED), "lost in rounding below, in float32", fontsize=7, color="#5d6875", va="bottom",
              transform=axis.get_yaxis_transform())  # fmt: skip
    axis.set_xlim(1, length)
    axis.set_ylim(max(LOWEST, axis.get_ylim()[0]), None)
    axis.set_xlabel("step t of the sequence, the last to the right")
    axis.legend(**LEGEND)
    _bare(axis)


def _cost(axis: Axes, memoryless: float, least: float, solved: float) -> None:
    """What is known, as dashed lines."""
    axis.axhline(memoryless, color=WRONG, linewidth=1, linestyle="--", label=f"without a memory, {memoryless:.4f}")
    if least:
        axis.axhline(least, color=GREEN, linewidth=1, linestyle="--", label=f"at best, {least:.4f}")
    else:
        axis.set_yscale("log")
        axis.axhline(solved, color=GREEN, linewidth=1, linestyle="--", label=f"solved, {solved:.4f}")


def _bare(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
