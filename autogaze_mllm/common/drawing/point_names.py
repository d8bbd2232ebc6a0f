"""Names beside the points of a plot, so that none lies on a point or on another name."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # it takes a second to import
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import RendererBase

REACHES = (8, 15, 24, 35, 48)  # points from the middle of a mark to a name
WAYS = ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))
STEP = 6  # pixels between what is looked at along a line
MARK = 5  # points from the middle of a mark to its edge
Box = tuple[float, float, float, float]  # left, bottom, right, top, in pixels


@dataclass(frozen=True)
class NamedPoint:
    x: float
    y: float
    name: str
    colour: str


def name_points(panels: Sequence[tuple[Axes, Sequence[NamedPoint]]], size: float) -> None:
    """Writes each name at the nearest free place, with a thin line to its point where that is not beside it.

    To be called once for the panels of a figure, when all else is drawn and the limits are final. size: of the letters,
    in points.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = panels[0][0].get_figure(root=True)
    assert figure is not None
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()  # the layout is known after that
    for axis, points in panels:
        _name_panel(axis, points, size, renderer, figure.dpi / 72)


def _name_panel(axis: Axes, points: Sequence[NamedPoint], size: float, renderer: RendererBase, unit: float) -> None:
    """unit: pixels of a point."""
    from matplotlib.patheffects import withStroke
    from matplotlib.text import Text

    marks = [tuple(map(float, axis.transData.transform((point.x, point.y)))) for point in points]
    taken: list[Box] = [(x - MARK * unit, y - MARK * unit, x + MARK * unit, y + MARK * unit) for x, y in marks]
    taken += _along_lines(axis)
    frame = axis.get_window_extent()
    inside = (frame.x0, frame.y0, frame.x1, frame.y1)
    for point, mark in zip(points, marks, strict=True):
        named = axis.annotate(
            point.name,
            (point.x, point.y),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=size,
            color=point.colour,
            ha="center",
            va="center",
            arrowprops={"arrowstyle": "-", "color": point.colour, "linewidth": 0.6},
            path_effects=[withStroke(linewidth=2, foreground="white")],
        )
        named.set_in_layout(False)
        extent = Text.get_window_extent(named, renderer)  # of the letters, without the line to the point
        reach, box = _place(mark, (extent.width, extent.height), unit, taken, inside)
        taken.append(box)
        named.set_position((((box[0] + box[2]) / 2 - mark[0]) / unit, ((box[1] + box[3]) / 2 - mark[1]) / unit))
        if reach == REACHES[0] and named.arrow_patch is not None:
            named.arrow_patch.set_visible(False)


def _place(
    mark: tuple[float, ...], size: tuple[float, float], unit: float, taken: Sequence[Box], inside: Box
) -> tuple[int, Box]:
    """The nearest place where nothing is covered; else the one that covers least."""
    best: tuple[float, int, Box] | None = None
    for reach in REACHES:
        for across, up in WAYS:
            middle_x = mark[0] + across * (reach * unit * (0.7 if up else 1.0) + size[0] / 2)
            middle_y = mark[1] + up * (reach * unit * (0.7 if across else 1.0) + size[1] / 2)
            box = (middle_x - size[0] / 2, middle_y - size[1] / 2, middle_x + size[0] / 2, middle_y + size[1] / 2)
            covered = sum(_overlap(box, other) for other in taken)
            covered += size[0] * size[1] - _overlap(box, inside)
            if covered <= 1:
                return reach, box
            if best is None or covered < best[0]:
                best = (covered, reach, box)
    assert best is not None
    return best[1:]


def _along_lines(axis: Axes) -> list[Box]:
    """Small boxes on the lines of a plot, so that names keep off them."""
    boxes: list[Box] = []
    for line in axis.lines:
        if line.get_linestyle() in ("None", "", " "):
            continue
        corners = axis.transData.transform(line.get_xydata())
        for start, end in itertools.pairwise(corners):
            for part in np.linspace(0, 1, max(int(np.hypot(*(end - start)) / STEP), 2)):
                x, y = start + part * (end - start)
                boxes.append((x - STEP / 4, y - STEP / 4, x + STEP / 4, y + STEP / 4))
    return boxes


def _overlap(one: Box, other: Box) -> float:
    """Square pixels."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return float(np.maximum(wide, 0) * np.maximum(high, 0))
