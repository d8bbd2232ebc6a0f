"""Names of points in plots: readable however close the points are."""

from __future__ import annotations

import itertools
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation, Text

from autogaze_mllm.common.drawing.plots import panels, save_png
from autogaze_mllm.common.drawing.point_names import NamedPoint, name_points


def test_no_name_lies_on_another_or_on_a_point_or_outside(tmp_path: Path) -> None:
    """A dozen points in three heaps, as settings that keep about the same; also at the resolution that is saved."""
    points = [NamedPoint(0.1 + 0.4 * (n % 3) + 0.005 * n, 0.3 + 0.01 * n, f"loss {n}", "#123456") for n in range(12)]
    figure, (axis,) = panels(size=(5.4, 4.3))
    axis.plot([point.x for point in points], [point.y for point in points], "o", markersize=6)
    name_points([(axis, points)], 9)
    save_png(figure, tmp_path / "plot.png", dpi=150)
    figure.dpi = 150
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    names = [child for child in axis.get_children() if isinstance(child, Annotation)]
    assert sorted(name.get_text() for name in names) == sorted(point.name for point in points)
    boxes = [Text.get_window_extent(name, renderer) for name in names]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    marks = axis.transData.transform([(point.x, point.y) for point in points])
    assert not any(box.contains(*mark) for box in boxes for mark in marks)
    frame = axis.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)
    assert all(frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)
