"""The pictures that a run leaves: how it went, what it misread, and what flowed backward."""

from __future__ import annotations

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
    neurons = min(16, weights.shape[1])
    columns = max(len(x), neurons)
    figure, axes = plt.subplots(4, columns, figsize=(0.82 * columns, 4.6), layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for n in range(len(x)):
        axes[0, n].imshow(x[n].reshape(shape), cmap="gray_r", vmin=0, vmax=1)
        axes[0, n].set_title(titles[n], fontsize=8)
        _signed(axes[1, n], dx[n].reshape(shape))
    for j in range(neurons):
        _signed(axes[2, j], weights[:, j].reshape(shape))
        axes[2, j].set_title(f"j = {j}", fontsize=8)
        _signed(axes[3, j], dweights[:, j].reshape(shape))
    for row, name in enumerate(("a picture x", "∂C/∂x", "w⁽¹⁾ of neuron j", "∂C/∂w⁽¹⁾")):
        axes[row, 0].text(-0.25, 0.5, name, transform=axes[row, 0].transAxes, ha="right", va="center", fontsize=9)
    figure.suptitle(
        "Which pixels, made darker, raise the cost (red) or lower it (blue); each picture on its own scale", fontsize=10
    )
    _save(figure, path)


def _signed(axis, picture) -> None:
    largest = np.abs(picture).max() or 1.0
    axis.imshow(picture, cmap="RdBu_r", vmin=-largest, vmax=largest)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=120)
    plt.close(figure)
