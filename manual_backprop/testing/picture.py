"""The error of every wrong leaf as a heat map: where it is wrong, and by how many times what is allowed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from manual_backprop.errors import InputError
from manual_backprop.testing.report import Errors, Report

MOST = 6  # leaves in one picture


def heat_map(report: Report, file: str | Path) -> None:
    """Writes a PNG: one panel a leaf; rows and columns are its last two axes, the axes before them stacked as rows.

    Raises InputError where matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.colors import LogNorm
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("heat_map: matplotlib is not installed; pip install 'manual-backprop[plot]'") from None
    shown = report.errors[:MOST]
    figure = Figure(figsize=(1 + 5.2 * len(shown), 5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, leaf in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        ratio = excess(leaf)
        norm = LogNorm(1e-3, max(10.0, float(ratio.max(initial=1))))
        image = axes.imshow(np.maximum(ratio, 1e-3), norm=norm, cmap="magma", aspect="auto", interpolation="nearest")
        axes.set_title(
            f"{leaf.leaf}  {list(leaf.got.shape)}: {int((ratio > 1).sum())} of {ratio.size} wrong\n{leaf.arguments}"
        )
        axes.set_xlabel("last axis")
        axes.set_ylabel("the axes before it")
        figure.colorbar(image, ax=axes, label="error / allowed (above 1 is wrong)")
    figure.suptitle(f"{report.candidate} against {report.reference}"[:100])
    figure.savefig(file, dpi=120)


def excess(leaf: Errors) -> np.ndarray:
    """Error over allowance, as a matrix."""
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.nan_to_num(np.abs(leaf.got - leaf.expected), nan=np.inf)
        ratio = np.where(error == 0, 0, np.minimum(error / leaf.allowed, 1e12))
    ratio = np.atleast_1d(np.nan_to_num(ratio, nan=0, posinf=1e12))
    return ratio.reshape(-1, ratio.shape[-1])
