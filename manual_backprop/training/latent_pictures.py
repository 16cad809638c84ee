"""The pictures that an autoencoder's run leaves: how it went, what it makes of pictures, and where it puts them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from manual_backprop.training.pictures import GREY, INK, WRONG, _save


def curves(rows: Sequence[dict], least: float, path: Path) -> None:
    """The cost over the steps, in training and held out; and held out its parts, where there are some.

    rows: step, cost, held_out_cost, and for a variational one reconstruction and divergence.
    least: what no reconstruction is below.
    """
    steps = [row["step"] for row in rows]
    parts = [name for name in ("reconstruction", "divergence") if name in rows[-1]]
    titles = {"reconstruction": "E[-log p(x|z)], held out", "divergence": "KL(q(z|x) ‖ p(z)), held out"}
    figure, axes = plt.subplots(
        1, 1 + len(parts), figsize=(4 * len(parts) + 5, 3.4), layout="constrained", squeeze=False
    )
    first, *others = axes[0]
    first.plot(steps, [row["cost"] for row in rows], color=GREY, label="training")
    first.plot(steps, [row["held_out_cost"] for row in rows], color=INK, label="held out")
    first.set_title(f"cost C, nats a picture: {rows[-1]['held_out_cost']:.2f} held out")
    for axis, name in zip(others, parts, strict=True):
        axis.plot(steps, [row[name] for row in rows], color=INK)
        axis.set_title(f"{titles[name]}: {rows[-1][name]:.2f}")
    known = {"color": WRONG, "linewidth": 1, "linestyle": "--", "label": f"entropy of the grey pixels, {least:.2f}"}
    axes[0, 1 if parts else 0].axhline(least, **known)
    for axis in axes[0, :2]:
        axis.legend(frameon=False, fontsize=9)
    for axis in axes[0]:
        axis.set_xlabel("step")
        axis.set_xscale("log")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    _save(figure, path)


def reconstructions(x, again, drawn, path: Path) -> None:
    """Held-out pictures, below each what became of it; and two rows of `drawn`, unless that is None.

    x, again [n, height, width, channels], drawn [2 · n, …]: from 0 to 1.
    """
    rows = [("held out", x), ("through z", again)]
    if drawn is not None:
        rows += [("drawn\nfrom p(z)", drawn[: len(x)]), ("", drawn[len(x) :])]
    wide, names = 0.72 * len(x), 1.0  # inches
    figure, axes = plt.subplots(len(rows), 1, figsize=(wide + names + 0.1, 0.8 * len(rows)))
    figure.subplots_adjust(
        left=names / (wide + names + 0.1), right=(wide + names) / (wide + names + 0.1), top=0.97, bottom=0.03
    )
    for axis, (name, pictures) in zip(axes, rows, strict=True):
        _show(axis, _tiled(pictures[None]))
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    _save(figure, path)


def latent_map(z, labels, names: Sequence[str], decode: Callable | None, path: Path, n: int = 16) -> None:
    """Where held-out pictures are in the latent space, coloured by class; and what the decoder makes of that plane.

    z [examples, 1 or more]: of more than two the plane is that of the two principal directions, and of one the second
    axis is the class.  decode: z [k, 2] → pictures [k, height, width, channels]; None draws no plane.
    """
    figure, axes = plt.subplots(
        1, 1 if decode is None else 2, figsize=(6.4 if decode is None else 12, 6), layout="constrained", squeeze=False
    )
    (a, b), (x, y) = plane(z, labels)
    colours = plt.get_cmap("tab10" if len(names) <= 10 else "nipy_spectral")(np.linspace(0, 1, len(names)))
    left = axes[0, 0]
    for k, name in enumerate(names):
        own = labels == k
        if own.any():
            left.scatter(x[own], y[own], s=9, color=colours[k], label=name, alpha=0.8, linewidths=0)
    if len(names) <= 20:
        left.legend(
            frameon=False, markerscale=2, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), handletextpad=0
        )
    left.set_title("held-out pictures, each at its z", fontsize=10)
    left.set_xlabel(a)
    left.set_ylabel(b)
    left.spines[["top", "right"]].set_visible(False)
    if decode is not None:
        limits = *left.get_xlim(), *left.get_ylim()
        right = axes[0, 1]
        places = [np.linspace(low, high, 2 * n + 1)[1::2] for low, high in (limits[:2], limits[2:])]
        grid = np.stack(np.meshgrid(places[0], places[1][::-1]), -1)  # the first row is the highest
        pictures = np.asarray(decode(grid.reshape(-1, 2)))
        _show(right, _tiled(pictures.reshape(n, n, *pictures.shape[1:])), extent=limits, aspect="auto")
        right.set_title("the same plane, decoded", fontsize=10)
        right.set_xlabel(a)
    _save(figure, path)


def plane(z, labels) -> tuple[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """The names of two axes, and where each example is on them."""
    size = z.shape[1]
    if size == 1:
        return ("z", "class"), (z[:, 0], labels + np.random.default_rng(0).uniform(-0.3, 0.3, len(z)))
    if size == 2:
        return ("z₁", "z₂"), (z[:, 0], z[:, 1])
    centred = z - z.mean(0)
    _, lengths, directions = np.linalg.svd(centred, full_matrices=False)
    shares = lengths**2 / max((lengths**2).sum(), 1e-30)
    name = lambda i: f"principal direction {i + 1} of {size}, {shares[i]:.0%} of the variance"
    return (name(0), name(1)), tuple((centred @ directions[:2].T).T)


def _tiled(pictures) -> np.ndarray:
    """[rows, columns, height, width, channels] as one picture, a white pixel between them."""
    pictures = np.pad(pictures, [(0, 0), (0, 0), (0, 1), (0, 1), (0, 0)], constant_values=np.nan)
    rows, columns, height, width, channels = pictures.shape
    return pictures.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)


def _show(axis: Axes, picture, **options) -> None:
    if picture.shape[-1] == 1:
        axis.imshow(picture[..., 0], cmap="gray_r", vmin=0, vmax=1, interpolation="nearest", **options)
    else:
        axis.imshow(np.nan_to_num(picture, nan=1.0), interpolation="nearest", **options)
