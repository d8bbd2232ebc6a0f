"""Plots for reports, as png bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Curve:
    """points: (x, accuracy, low, high), accuracies in [0, 1]."""

    label: str
    points: list[tuple[float, float, float, float]] = field(default_factory=list)


def accuracy_plot(curves: Sequence[Curve], x_label: str, published: dict[str, float] | None = None) -> bytes:
    """Accuracy in per cent with 95 % intervals. published: accuracies in per cent, drawn as dashed lines."""
    figure, axes = _figure()
    for curve in curves:
        points = sorted(curve.points)
        x = [point[0] for point in points]
        y = [100 * point[1] for point in points]
        below = [100 * (point[1] - point[2]) for point in points]
        above = [100 * (point[3] - point[1]) for point in points]
        axes.errorbar(x, y, yerr=[below, above], marker="o", capsize=3, label=curve.label)
    for number, (name, value) in enumerate((published or {}).items()):
        axes.axhline(value, linestyle="--", linewidth=1, color=f"C{7 + number}", label=name)
    axes.set_xlabel(x_label)
    axes.set_ylabel("accuracy, %")
    axes.set_ylim(-2, 102)
    axes.legend(fontsize=8)
    return _png(figure)


def time_plot(seconds: dict[str, float]) -> bytes:
    """Seconds per stage, longest first."""
    figure, axes = _figure()
    stages = sorted(seconds, key=lambda stage: seconds[stage])
    axes.barh(stages, [seconds[stage] for stage in stages])
    axes.set_xlabel("seconds in total")
    return _png(figure)


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # without pyplot there is no state and no display

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return stream.getvalue()
