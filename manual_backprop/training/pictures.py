"""The pictures that a run leaves: how it went, what it misread, and what flowed backward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

INK, GREY = "#1f4e79", "#9aa5b1"
WRONG, RIGHT = "#c0392b", "#2e8b57"


def curves(rows: Sequence[dict], path: Path) -> None:
    """Cost and gradient norm over the steps, on logarithmic scales, and accuracy on training and held-out pictures."""
    steps = [row["step"] for row in rows]
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    axes[0].semilogy(steps, [row["cost"] for row in rows], color=INK)
    axes[0].set_title("cost C")
    axes[1].semilogy(steps, [row["gradient_norm"] for row in rows], color=INK)
    axes[1].set_title("length of the gradient |∇C|")
    axes[2].plot(steps, [row["train_accuracy"] for row in rows], color=GREY, label="training")
    axes[2].plot(steps, [row["accuracy"] for row in rows], color=INK, label="held out")
    axes[2].set_title(f"accuracy: {rows[-1]['accuracy']:.3f} held out")
    axes[2].set_ylim(0, 1.02)
    axes[2].legend(frameon=False, loc="lower right")
    for axis in axes:
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    _save(figure, path)


def text_curves(rows: Sequence[dict], entropy: float | None, path: Path) -> None:
    """Cost in training and held out, against the entropy where it is known; the gradient of each block over time.

    rows: step, cost, held_out_cost, and layer_norms, where layers that `Repeat` stacks have a list of a norm a block.
    """
    steps = [row["step"] for row in rows]
    norms = [norms for row in rows if (norms := _block_norms(row.get("layer_norms", {})))]
    figure, axes = plt.subplots(
        1, 2 if norms else 1, figsize=(12 if norms else 7, 3.8), layout="constrained", squeeze=False
    )
    left = axes[0, 0]
    left.plot(steps, [row["cost"] for row in rows], color=GREY, label="training")
    left.plot(steps, [row["held_out_cost"] for row in rows], color=INK, label="held out")
    if entropy is not None:
        left.axhline(entropy, color=WRONG, linewidth=1, linestyle="--", label=f"entropy of the source, {entropy:.4f}")
    left.set_title("average cost of a token, nats")
    left.legend(frameon=False)
    left.spines[["top", "right"]].set_visible(False)
    left.grid(alpha=0.25)
    left.set_xlabel("step")
    if norms:
        right = axes[0, 1]
        image = right.imshow(
            np.log10(np.maximum(np.array(norms).T, 1e-30)), aspect="auto", cmap="viridis", interpolation="nearest",
            extent=(0, steps[-1], len(norms[0]) + 0.5, 0.5),
        )  # fmt: skip
        right.set_title("length of ∂C/∂w of each block, log₁₀")
        right.set_xlabel("step")
        right.set_ylabel("block")
        right.set_yticks(range(1, len(norms[0]) + 1))
        figure.colorbar(image, ax=right)
    _save(figure, path)


def text_sensitivities(layers: Sequence[tuple[str, np.ndarray]], path: Path) -> None:
    """How long ∂C/∂a is at each position of a text, at the input of each layer, the first above.

    layers: (name, lengths [positions]) of each.
    """
    lengths = np.array([each for _, each in layers])
    figure, axis = plt.subplots(figsize=(9, 0.6 + 0.24 * len(layers)), layout="constrained")
    shown = np.log10(np.maximum(lengths, np.max(lengths, initial=1e-30) * 1e-6))
    image = axis.imshow(shown, aspect="auto", cmap="viridis", interpolation="nearest")
    axis.set_yticks(range(len(layers)), [name for name, _ in layers], fontsize=7)
    axis.set_xlabel("position")
    axis.set_title("length of ∂C/∂a at the input of each layer, log₁₀, mean over four held-out texts")
    figure.colorbar(image, ax=axis)
    _save(figure, path)


def _block_norms(layer_norms: dict) -> list[float]:
    """The length of the gradient of each block, out of those of its layers."""
    stacked = [norms for norms in layer_norms.values() if isinstance(norms, list)]
    return [math.hypot(*block) for block in zip(*stacked, strict=True)]


def mistakes(x, labels, opinions, shape, names: Sequence[str], path: Path, most: int = 12) -> None:
    """The misread pictures the network was surest of, each beside its opinion.

    x [n, height · width], labels [n], opinions [n, classes]: the network's outputs, larger for likelier.
    """
    read = opinions.argmax(-1)
    wrong = np.flatnonzero(read != labels)
    wrong = wrong[np.argsort(-opinions[wrong].max(-1))][:most]
    columns, rows = 4, max(1, -(-len(wrong) // 4))
    figure = plt.figure(figsize=(3.1 * columns, 0.5 + 1.75 * rows), layout="constrained")
    figure.suptitle(
        f"{int((read != labels).sum())} of {len(labels)} held-out pictures misread; the {len(wrong)} it was surest of"
    )
    grid = figure.add_gridspec(rows, 2 * columns)
    for place, n in enumerate(wrong):
        row, column = divmod(place, columns)
        picture = figure.add_subplot(grid[row, 2 * column])
        picture.imshow(x[n].reshape(shape), cmap="gray_r", vmin=0, vmax=1)
        picture.set_title(f"is {names[labels[n]]}, read as {names[read[n]]}", fontsize=8)
        picture.axis("off")
        bars = figure.add_subplot(grid[row, 2 * column + 1])
        colors = [RIGHT if j == labels[n] else WRONG if j == read[n] else GREY for j in range(len(names))]
        bars.barh(range(len(names)), opinions[n], color=colors)
        bars.set_yticks(range(len(names)), names, fontsize=6)
        bars.set_xticks([])
        bars.invert_yaxis()
        bars.spines[["top", "right", "bottom"]].set_visible(False)
    _save(figure, path)


def sensitivities(x, dx, weights, dweights, shape, titles: Sequence[str], path: Path) -> None:
    """Pictures as the network sees them: each example x over ∂C/∂x, and each first-layer neuron's w over ∂C/∂w.

    x, dx [n, pixels]; weights, dweights [pixels, neurons]; titles: one an example. Red is positive, blue negative.
    """
    neurons = [f"j = {j}" for j in range(min(len(x), weights.shape[1]))]
    rows = (
        ("a picture x", x - 0.5, "gray_r", titles),
        ("∂C/∂x", dx, "RdBu_r", ()),
        ("w⁽¹⁾ of neuron j", weights.T[: len(neurons)], "RdBu_r", neurons),
        ("∂C/∂w⁽¹⁾", dweights.T[: len(neurons)], "RdBu_r", ()),
    )
    figure, axes = plt.subplots(len(rows), 1, figsize=(0.82 * len(x) + 1.2, 4.6), layout="constrained")
    for axis, (name, pictures, colours, labels) in zip(axes, rows, strict=True):
        axis.imshow(_side_by_side(pictures, shape, len(x)), cmap=colours, vmin=-1, vmax=1, aspect="equal")
        for n, label in enumerate(labels):
            axis.text((n + 0.5) * (shape[1] + 1) - 1, -1, label, ha="center", fontsize=8)
        axis.text(-1.5, shape[0] / 2, name, ha="right", va="center", fontsize=9)
        axis.axis("off")
    caption = "Which pixels, made darker, raise the cost (red) or lower it (blue); each picture on its own scale"
    figure.suptitle(caption, fontsize=10)
    _save(figure, path)


def _side_by_side(pictures, shape, columns: int):
    """One picture of all of them, each scaled to -1 … 1, a blank column between; blank to the right of the last."""
    height, width = shape
    row = np.full((height, columns * (width + 1) - 1), np.nan)
    for n, picture in enumerate(pictures):
        row[:, n * (width + 1) : n * (width + 1) + width] = picture.reshape(shape) / (np.abs(picture).max() or 1.0)
    return row


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=120)
    plt.close(figure)
