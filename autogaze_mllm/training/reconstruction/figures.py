"""Plots of a measurement: the trade-off between patches and quality, and what happens frame by frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...common.drawing.labels import in_plot
from ...common.drawing.palette import heat_colours, line_colours
from ...common.drawing.plots import panels, plain_log, save_png
from ...common.drawing.point_names import NamedPoint, name_points
from .settings import Setting

if TYPE_CHECKING:  # it takes a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
SHARP = 150  # dots per inch: a page shows these figures at half their size
LETTERS, NAMES = 11, 9  # points
PANELS = {
    "reconstruction_loss": "reconstruction loss",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "gaze_seconds": "seconds of gaze for a clip",
}
BLOCK = 16  # frames side by side in the table of ratios


def plot_trade_off(path: Path, summary: Sequence[Row], loss: str) -> None:
    """Share of patches against loss, PSNR, SSIM and seconds: a colour for each selector, discs for limits on the ratio
    (joined), diamonds for settings with a stop rule; every point has its setting's name. loss: what it is that of."""
    figure, axes = panels(4, columns=2, size=(5.4, 4.3))
    names = list(dict.fromkeys(line["selector"] for line in summary))
    colours = dict(zip(names, line_colours() * len(names), strict=False))
    named = [_trade_off_panel(axis, key, summary, colours) for axis, key in zip(axes, PANELS, strict=True)]
    axes[0].set_ylabel(f"{PANELS['reconstruction_loss']} ({loss})", fontsize=LETTERS)
    _trade_off_legend(figure, colours)
    name_points(list(zip(axes, named, strict=True)), NAMES)
    save_png(figure, path, SHARP)


def _trade_off_panel(axis: Axes, key: str, summary: Sequence[Row], colours: dict[str, str]) -> list[NamedPoint]:
    """-> the points to be named"""
    points, exact = [], []
    for name, colour in colours.items():
        lines = sorted((x for x in summary if x["selector"] == name), key=lambda x: x["actual_gaze_ratio"])
        for stops, style in ((False, "o-"), (True, "D")):
            mine = [line for line in lines if (Setting.parse(line["setting"]).loss is not None) == stops]
            there = [(x["actual_gaze_ratio"], x[key], x["setting"]) for x in mine if x[key] is not None]
            exact += [(x["actual_gaze_ratio"], name, x["setting"]) for x in mine if x[key] is None]
            if there:
                xs, ys, _ = zip(*there, strict=True)
                axis.plot(xs, ys, style, color=colour, markersize=7 if stops else 6, linewidth=1.4)
            points += [NamedPoint(x, y, in_plot(Setting.parse(n).short), colour) for x, y, n in there]
    axis.set_xscale("log")
    if key == "gaze_seconds":
        axis.set_yscale("log")
    axis.margins(y=0.16)
    low, high = np.log10([min(x["actual_gaze_ratio"] for x in summary), max(x["actual_gaze_ratio"] for x in summary)])
    margin = 0.14 * max(high - low, 0.3)
    axis.set_xlim(10 ** (low - margin), 10 ** (high + margin))
    if key == "gaze_seconds":
        plain_log(axis.yaxis)
    plain_log(axis.xaxis, per_cent=True)
    if key == "reconstruction_loss":
        _root_axis(axis, [line[key] for line in summary])
    axis.set_xlabel("patches kept (%)", fontsize=LETTERS)
    axis.set_ylabel(PANELS[key], fontsize=LETTERS)
    axis.tick_params(labelsize=LETTERS - 1)
    low, high = axis.get_ylim()
    for number, (x, name, setting) in enumerate(exact):  # no error at all: above every number of decibels
        axis.plot([x], [high], "^", color=colours[name], markersize=8, clip_on=False)
        points.append(
            NamedPoint(x, high - (high - low) * 0.02 * number, f"{Setting.parse(setting).short}: exact", colours[name])
        )
    axis.set_ylim(low, high)
    return points


def _root_axis(axis: Axes, losses: Sequence[float]) -> None:
    """Losses differ by factors, and some are zero, which a logarithm cannot show."""
    axis.set_yscale("function", functions=(_root, _squared))
    low, high = _root(np.array([min(losses), max(losses)]))
    margin = 0.16 * max(high - low, 1e-3)
    axis.set_ylim(*_squared(np.array([low - margin, high + margin])))


def _root(values: np.ndarray) -> np.ndarray:
    return np.sign(values) * np.sqrt(np.abs(values))


def _squared(values: np.ndarray) -> np.ndarray:
    return np.sign(values) * np.square(values)


def _trade_off_legend(figure: Figure, colours: dict[str, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, linewidth=3, label=in_plot(name)) for name, colour in colours.items()]
    handles.append(Line2D([], [], color="#444", marker="o", linestyle="-", label="limit on the ratio"))
    handles.append(Line2D([], [], color="#444", marker="D", linestyle="", label="stop rule (loss)"))
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=len(handles) if len(handles) < 7 else 4,
        fontsize=LETTERS,
        frameon=False,
    )


def frame_means(rows: Sequence[Row], key: str) -> list[float]:
    """Of each frame of the clips, the mean over the clips that have it."""
    length = max(len(row["frames"]) for row in rows)
    return [float(np.mean([row["frames"][t][key] for row in rows if len(row["frames"]) > t])) for t in range(length)]


def by_setting(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["setting"], []).append(row)
    return found


def plot_frames(path: Path, rows: Sequence[Row], title: str, loss: str) -> None:
    """Loss and share of patches over the frames of a clip, mean over clips, a line for each setting of one selector;
    dashed where a stop rule is in force."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = panels(2, columns=1, size=(9.5, 3.4))
    for axis, key in zip(axes, ("loss", "ratio"), strict=True):
        for number, (name, mine) in enumerate(by_setting(rows).items()):
            setting = Setting.parse(name)
            means = frame_means(mine, key)
            colour = line_colours()[number % len(line_colours())]
            style = "-" if setting.loss is None else "--"
            width = max(3.8 - 0.45 * number, 1.2)  # of lines that lie on each other all are seen
            axis.plot(range(len(means)), means, style, linewidth=width, color=colour, label=in_plot(setting.words))
        axis.set_xlabel("frame of the clip", fontsize=LETTERS)
        axis.tick_params(labelsize=LETTERS - 1)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel(f"reconstruction loss ({loss})", fontsize=LETTERS)
    axes[1].set_ylabel("patches kept (%)", fontsize=LETTERS)
    axes[1].set_yscale("log")
    plain_log(axes[1].yaxis, per_cent=True)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=LETTERS, frameon=False, handlelength=3)
    figure.suptitle(in_plot(title), fontsize=LETTERS + 2)
    save_png(figure, path, SHARP)


def plot_ratios(path: Path, rows: Sequence[Row], title: str) -> None:
    """A table with colours: per cent of the patches that each setting keeps in each frame, mean over clips. Long clips
    are written in blocks, one below the other."""
    found = {name: [100 * value for value in frame_means(mine, "ratio")] for name, mine in by_setting(rows).items()}
    length = max(map(len, found.values()))
    blocks = range(0, length, BLOCK)
    figure, axes = panels(len(blocks), columns=1, size=(10, 0.9 + 0.42 * len(found)))
    for axis, first in zip(axes, blocks, strict=True):
        table = np.full((len(found), min(BLOCK, length)), np.nan)
        for number, values in enumerate(found.values()):
            part = values[first : first + BLOCK]
            table[number, : len(part)] = part
        _ratio_table(axis, table, [Setting.parse(name).words for name in found], first)
    axes[-1].set_xlabel("frame of the clip", fontsize=LETTERS)
    figure.suptitle(in_plot(f"{title}: patches kept (%)"), fontsize=LETTERS + 2)
    save_png(figure, path, SHARP)


def _ratio_table(axis: Axes, table: np.ndarray, names: Sequence[str], first: int) -> None:
    axis.grid(False)
    shown = np.sqrt(np.nan_to_num(table) / 100)  # so that small shares differ from nothing
    axis.imshow(np.ma.masked_where(np.isnan(table), shown), cmap=heat_colours(), vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        if not np.isnan(value):
            text = f"{value:.1f}" if value < 99.95 else "100"
            colour = "black" if shown[row, column] > 0.45 else "white"
            axis.text(column, row, text, ha="center", va="center", fontsize=LETTERS, color=colour)
    axis.set_yticks(range(len(names)), [in_plot(name) for name in names], fontsize=LETTERS)
    there = range(int((~np.isnan(table)).any(axis=0).sum()))
    axis.set_xticks(there, [str(first + number) for number in there], fontsize=LETTERS)
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)
