"""Where a selector looks in a clip: a map for each setting, with the frame beneath."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...common.drawing.labels import in_plot
from ...common.drawing.palette import heat_colours
from ...common.drawing.plots import panels, save_png
from .figures import LETTERS, SHARP
from .settings import Setting

Row = dict[str, Any]
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601


def plot_maps(path: Path, rows: Sequence[Row], frame: torch.Tensor, title: str) -> None:
    """rows: of one clip and selector, one for each setting. frame: (3, H, W) uint8, one of the clip."""
    from matplotlib.colors import PowerNorm

    columns = -(-len(rows) // -(-len(rows) // 4))  # at most 4, and rows of one length where that can be
    figure, axes = panels(len(rows), columns=columns, size=(2.7, 3.0))
    grey = np.tensordot(GREY, frame.numpy().astype(float), axes=1)
    most = max(float(np.max(row["map"])) for row in rows)
    height, width = grey.shape
    for axis, row in zip(axes, rows, strict=True):
        axis.grid(False)
        axis.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
        image = axis.imshow(
            np.array(row["map"]),
            cmap=heat_colours(see_through=True),
            norm=PowerNorm(0.5, 0, most),  # what is looked at now and then is seen beside what always is
            extent=(0, width, height, 0),
            interpolation="nearest",
        )
        kept = 100 * float(np.mean([found["ratio"] for found in row["frames"]]))
        axis.set_title(in_plot(f"{Setting.parse(row['setting']).words}: {kept:.1f} %"), fontsize=LETTERS)
        axis.set(xticks=[], yticks=[])
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.6, aspect=40)
    bar.set_label("patches that cover a place, in a frame (mean over frames)", fontsize=LETTERS)
    bar.ax.set_facecolor("0.45")  # of what lets the frame through
    bar.ax.tick_params(labelsize=LETTERS - 1)
    figure.suptitle(in_plot(title), fontsize=LETTERS + 2)
    save_png(figure, path, SHARP)
