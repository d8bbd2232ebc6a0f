"""The curves of a run as a picture, from its metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...common.drawing.palette import line_colours
from ...common.drawing.plots import legend, panels, save_png
from ..run_folder.checkpoints import read_metrics

if TYPE_CHECKING:  # it takes a second to import
    from matplotlib.figure import Figure

SMOOTH = 50  # points that a line has at most; each is the mean of the steps it stands for
PREDICTION, VALIDATION = "prediction of the loss", "validation"
# Numbers that are looked at together: panel, its axis, and the numbers with their names there.
PANELS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("Loss that is minimised", "loss", {"loss": "training"}),
    ("Policy", "loss of the policy, in nats", {"policy_loss": "policy loss", "label_entropy": "entropy of the labels"}),
    (PREDICTION.capitalize(), "squared error", {"prediction_loss": "of the predicted loss"}),
    (PREDICTION.capitalize(), "median error, as a share of the loss", {"prediction_off": "of the predicted loss"}),
    ("Hints", "loss of the hints", {"hint_worth": "worth of patches", "hint_attention": "attention"}),
    ("Rollouts", "reward (minus the loss)", {"reward": "reward"}),
    ("Reconstruction", "loss of the reconstruction", {"task_loss": "training", "val_loss": VALIDATION}),
    ("Patches kept", "share of all patches", {"gazing_ratio": "training", "val_gazing_ratio": VALIDATION}),
    ("Patches of a clip", "patches", {"val_patches": VALIDATION, "val_greedy_patches": "greedy search, same loss"}),
    ("Stop rule", "loss at the stop / loss asked for", {"val_asked": VALIDATION}),
    ("Gradient", "norm before clipping", {"grad_norm": "gradient"}),
    ("Learning rate", "learning rate", {"lr": "learning rate"}),
)


def plot_curves(metrics: Path, picture: Path, last: Mapping[str, Any] | None = None) -> None:
    """Nothing where the run wrote no number more than once. last: the validation at the end, which is no step's."""
    figure = curves([*read_metrics(metrics), *([] if last is None else [last])])
    if figure is not None:
        save_png(figure, picture)


def curves(rows: Sequence[Mapping[str, Any]]) -> Figure | None:
    """The panels of which `rows` have a number more than once. What is in no panel gets one of its own."""
    from matplotlib.ticker import MaxNLocator

    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in ("step", "val_clips")]
    found = {name: [(row["step"], row[name]) for row in rows if row.get(name) is not None] for name in names}
    series = {name: points for name, points in found.items() if len(points) > 1}
    known = {name for _, _, lines in PANELS for name in lines}
    wanted = [*PANELS, *((name, name, {name: name}) for name in series if name not in known)]
    drawn = [(title, unit, lines) for title, unit, lines in wanted if lines.keys() & series.keys()]
    if not drawn:
        return None
    figure, axes = panels(len(drawn), columns=3, size=(4.6, 3.0))
    for axis, (title, unit, lines) in zip(axes, drawn, strict=True):
        first = int(next(iter(lines.values())) == VALIDATION)  # it has the same colour in every panel
        for name, colour in zip(lines, line_colours()[first:], strict=False):
            if name not in series:
                continue
            parts = np.array_split(np.array(series[name]), min(SMOOTH, len(series[name])))
            means = np.array([part.mean(axis=0) for part in parts])
            axis.plot(
                means[:, 0], means[:, 1], color=colour, label=lines[name], marker="." if len(means) < 10 else None
            )
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("optimizer step", fontsize=9)
        axis.set_ylabel(unit, fontsize=9)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        if len(lines) > 1:
            legend(axis)
    return figure
