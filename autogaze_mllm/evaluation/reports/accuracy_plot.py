"""Plots for reports, as png bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...common.drawing.labels import in_plot
from ...common.drawing.plots import legend, panels, png

SIZE = (7.0, 3.6)  # inches


@dataclass
class Curve:
    """points: (x, accuracy, low, high), accuracies in [0, 1]."""

    label: str
    points: list[tuple[float, float, float, float]] = field(default_factory=list)


def accuracy_plot(curves: Sequence[Curve], x_label: str, published: dict[str, float] | None = None) -> bytes:
    """Accuracy in per cent with 95 % intervals. published: accuracies in per cent, drawn as dashed lines."""
    figure, (axes,) = panels(size=SIZE)
    for curve in curves:
        points = sorted(curve.points)
        x = [point[0] for point in points]
        y = [100 * point[1] for point in points]
        below = [100 * (point[1] - point[2]) for point in points]
        above = [100 * (point[3] - point[1]) for point in points]
        axes.errorbar(x, y, yerr=[below, above], marker="o", capsize=3, label=in_plot(curve.label))
    for number, (name, value) in enumerate((published or {}).items()):
        axes.axhline(value, linestyle="--", linewidth=1, color=f"C{7 + number}", label=name)
    axes.set_xlabel(x_label)
    axes.set_ylabel("accuracy, %")
    axes.set_ylim(-2, 102)
    legend(axes)
    return png(figure)


def time_plot(seconds: dict[str, float]) -> bytes:
    """Seconds per stage, longest first."""
    figure, (axes,) = panels(size=SIZE)
    stages = sorted(seconds, key=lambda stage: seconds[stage])
    axes.barh(stages, [seconds[stage] for stage in stages])
    axes.set_xlabel("seconds in total")
    return png(figure)
