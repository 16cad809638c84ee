"""The pictures that a run on pictures leaves: how it went, its filters, what flowed back to the input, its mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm

from manual_backprop.training.images import Images
from manual_backprop.training.pictures import GREY, INK, RIGHT, WRONG, _save

MOST_NAMED = 20  # classes whose names and numbers have room


def curves(rows: Sequence[dict], path: Path) -> None:
    """Cost, learning rate and length of the gradient over the steps, and the share that was misread.

    rows: step, cost, held_out_cost, gradient_norm, learning_rate, train_accuracy, accuracy.
    """
    steps = [row["step"] for row in rows]
    of = lambda name: [row[name] for row in rows]
    figure, axes = plt.subplots(1, 3, figsize=(12.5, 3.6), layout="constrained")
    axes[0].semilogy(steps, of("cost"), color=GREY, label="training, pictures made new")
    axes[0].semilogy(steps, of("held_out_cost"), color=INK, label="held out")
    axes[0].set_title(f"cost C: {rows[-1]['held_out_cost']:.4f} held out")
    axes[0].legend(frameon=False, fontsize=9)
    axes[1].semilogy(steps, of("gradient_norm"), color=INK, label="|∇C|")
    axes[1].semilogy(steps, np.maximum(of("learning_rate"), 1e-6), color=GREY, linestyle="--", label="learning rate")
    axes[1].set_title("length of the gradient, and of a step")
    axes[1].legend(frameon=False, fontsize=9)
    misread = lambda name: 100 * (1 - np.asarray(of(name)))
    axes[2].plot(steps, misread("train_accuracy"), color=GREY, label="training")
    axes[2].plot(steps, misread("accuracy"), color=INK, label="held out")
    axes[2].set_yscale("symlog", linthresh=1)
    axes[2].set_ylim(0, 105)
    ticks = [0, 0.5, 1, 2, 5, 10, 20, 50, 100]
    axes[2].set_yticks(ticks, [f"{tick:g} %" for tick in ticks])
    axes[2].yaxis.set_minor_locator(plt.NullLocator())
    axes[2].set_title(f"misread: {misread('accuracy')[-1]:.2f} % held out")
    axes[2].legend(frameon=False, fontsize=9)
    for axis in axes:
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    _save(figure, path)


def filters(before, dbefore, after, dafter, path: Path, most: int = 16) -> None:
    """Filters of the first layer at the start and now, each over -∂C/∂w: where a step of gradient descent moves it.

    All [height, width, channels, filters]. Of one channel red is positive, blue negative; three are a colour, with grey
    for 0. Each is on its own scale.
    """
    rows = (
        ("w at the start", before),
        ("-∂C/∂w there", -dbefore),
        ("w now", after),
        ("-∂C/∂w now", -dafter),
    )
    n = min(most, after.shape[-1])
    # Those that changed the most are first: filters that nothing flows back to say little.
    order = np.argsort(-np.abs(after - before).sum((0, 1, 2)), kind="stable")[:n]
    figure, axes = plt.subplots(len(rows), 1, figsize=(0.72 * n + 1.9, 3.6), layout="constrained")
    for axis, (name, w) in zip(axes, rows, strict=True):
        signed_row(axis, w.transpose(3, 0, 1, 2)[order])
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
    which, rest = (f"{n} of {after.shape[-1]} ", ": those that moved most") if n < after.shape[-1] else ("", "")
    figure.suptitle(f"{which}filters of the first layer{rest}", fontsize=11)
    _save(figure, path)


def saliency(x, dx, titles: Sequence[str], grey: str, path: Path) -> None:
    """Pictures x over what flows back to them, ∂C/∂x. In colour: its length over the channels, at each pixel.

    x [n, height, width, channels] from 0 to 1, dx like it.  grey: the colour map of x where it has one channel.
    """
    n, height, width, channels = x.shape
    figure, axes = plt.subplots(
        2, 1, figsize=(max(0.95 * n + 1.1, 9), 0.95 * 2 * height / width + 0.7), layout="constrained"
    )
    axes[0].imshow(side_by_side(x if channels == 3 else x[..., :1]).squeeze(), cmap=grey, vmin=0, vmax=1)
    for i, title in enumerate(titles):
        axes[0].text(
            (i + 0.5) * (width + gap(width)), -1 - height / 30, short(title), ha="center", va="bottom", fontsize=8
        )
    if channels == 1:
        signed_row(axes[1], dx)
        told = f"{'darker' if grey == 'gray_r' else 'brighter'} there raises the cost (red) or lowers it (blue)"
    else:
        length = np.linalg.norm(dx, axis=-1, keepdims=True)
        length = length / np.maximum(length.max((1, 2), keepdims=True), 1e-30)
        axes[1].imshow(side_by_side(length)[..., 0], cmap="magma", vmin=0, vmax=1)
        told = "bright where a change of the pixel changes the cost most"
    for axis, name in zip(axes, ("x", "∂C/∂x"), strict=True):
        bare(axis)
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
    figure.suptitle(f"What flows back to held-out pictures: {told}; each on its own scale", fontsize=10)
    _save(figure, path)


def confusion(labels, read, names: Sequence[str], path: Path) -> None:
    """How many pictures of each class were read as which. labels, read: [n], integers."""
    k = len(names)
    counts = np.zeros((k, k), int)
    np.add.at(counts, (labels, read), 1)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(0.55 * k, 8.0) + 3.0
    figure, axis = plt.subplots(figsize=(side + 0.9, side), layout="constrained")
    # A root, so that one mistake of a hundred is seen beside the ninety-nine.
    image = axis.imshow(share, cmap="Blues", norm=PowerNorm(0.4, 0, 1), interpolation="nearest")
    if k <= MOST_NAMED:
        for i, j in zip(*np.nonzero(counts), strict=True):
            dark = share[i, j] > 0.3
            axis.text(
                j, i, counts[i, j], ha="center", va="center", fontsize=9,
                color="white" if dark else WRONG if i != j else "black",
            )  # fmt: skip
        long = max(map(len, names)) > 3
        axis.set_xticks(range(k), list(map(short, names)), rotation=45 if long else 0, ha="right" if long else "center")
        axis.set_yticks(range(k), list(map(short, names)))
    axis.set_xlabel("read as")
    axis.set_ylabel("is")
    axis.set_title(f"{int((labels == read).sum()):,} of {len(labels):,} held-out pictures read right", fontsize=11)
    bar = figure.colorbar(image, ax=axis, shrink=0.8, ticks=[0, 0.01, 0.1, 0.5, 1])
    bar.ax.set_yticklabels(["0", "1 %", "10 %", "50 %", "100 %"])
    bar.outline.set_visible(False)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    _save(figure, path)


def mistakes(pixels: Images, probabilities, grey: str, path: Path, most: int = 12) -> None:
    """The misread pictures the network was surest of, each beside the five classes it thought likeliest.

    Where there are fewer, those follow that it read right and was least sure of.
    probabilities [n, classes], of those that are held out.  grey: as for `saliency`.
    """
    x, labels, names = pixels.test_x, pixels.test_labels, pixels.names
    read = probabilities.argmax(-1)
    is_wrong, sure = read != labels, probabilities.max(-1)
    shown = np.lexsort((np.where(is_wrong, -sure, sure), ~is_wrong))[:most]
    wrong = int(is_wrong.sum())
    told = f"the {most} it was surest of" if wrong > most else "then those read right that it was least sure of"
    columns, rows = 4, max(1, -(-len(shown) // 4))
    figure = plt.figure(figsize=(3.3 * columns, 0.6 + 1.7 * rows), layout="constrained")
    figure.suptitle(f"{wrong:,} of {len(labels):,} held-out pictures misread; {told}", fontsize=11)
    grid = figure.add_gridspec(rows, 2 * columns)
    for place, n in enumerate(shown):
        row, column = divmod(place, columns)
        picture = figure.add_subplot(grid[row, 2 * column])
        picture.imshow(x[n].squeeze(), cmap=grey, vmin=0, vmax=pixels.white)
        picture.set_title(f"is {short(names[labels[n]])}", fontsize=8, color=RIGHT)
        picture.set_anchor("N")
        bare(picture)
        axis = figure.add_subplot(grid[row, 2 * column + 1])
        likely = np.argsort(-probabilities[n], kind="stable")[:5]
        colours = [RIGHT if j == labels[n] else WRONG if j == read[n] else GREY for j in likely]
        axis.barh(range(len(likely)), probabilities[n, likely], color=colours)
        axis.set_yticks(range(len(likely)), [short(names[j]) for j in likely], fontsize=7)
        told = f"read as {short(names[read[n]])}, {100 * sure[n]:.0f} %"
        axis.set_title(told, fontsize=8, color=WRONG if is_wrong[n] else RIGHT)
        axis.set(xticks=[], xlim=(0, 1))
        axis.invert_yaxis()
        axis.tick_params(length=0)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    _save(figure, path)


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def signed_row(axis: Axes, values) -> None:
    """[n, height, width, channels] side by side, each on its own scale, 0 in the middle of it."""
    scaled = values / np.maximum(np.abs(values).max((1, 2, 3), keepdims=True), 1e-30)
    if values.shape[-1] == 3:
        axis.imshow(np.nan_to_num(side_by_side(0.5 + 0.5 * scaled), nan=1.0), interpolation="nearest")
    else:
        axis.imshow(side_by_side(scaled)[..., 0], cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    bare(axis)


def side_by_side(pictures) -> np.ndarray:
    """[n, height, width, channels] as one, something blank between them."""
    between = gap(pictures.shape[2])
    padded = np.pad(pictures.astype(float), [(0, 0), (0, 0), (0, between), (0, 0)], constant_values=np.nan)
    n, height, width, channels = padded.shape
    whole = padded.transpose(1, 0, 2, 3).reshape(height, n * width, channels)[:, :-between]
    return np.nan_to_num(whole, nan=1.0) if channels == 3 else whole


def gap(width: int) -> int:
    """Pixels between two pictures."""
    return max(1, width // 12)


def short(name: str, most: int = 13) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def bare(axis: Axes) -> None:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
