"""The curves of a run as a picture, from its metrics.jsonl."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..common.plots import panels, save_png
from .checkpoints import read_metrics

SMOOTH = 50  # points that a line has at most; each is the mean of the steps it stands for


def plot_curves(metrics: Path, picture: Path) -> None:
    """One panel for each number that the run wrote more than once; nothing without any."""
    rows = read_metrics(metrics)
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "step"]
    series = {name: [(row["step"], row[name]) for row in rows if row.get(name) is not None] for name in names}
    series = {name: points for name, points in series.items() if len(points) > 1}
    if not series:
        return
    figure, axes = panels(len(series), columns=4, size=(4.0, 2.6))
    for axis, (name, points) in zip(axes, series.items(), strict=True):
        parts = np.array_split(np.array(points), min(SMOOTH, len(points)))
        means = np.array([part.mean(axis=0) for part in parts])
        axis.plot(means[:, 0], means[:, 1])
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
    save_png(figure, picture)
