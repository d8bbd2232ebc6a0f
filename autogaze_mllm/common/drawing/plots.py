"""Plots in one style: panels of a size, a faint grid, drawn without a display."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..storage.files import atomic_write
from .palette import line_colours

if TYPE_CHECKING:  # it takes a second to import
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

DPI = 110
SMALL = 8  # points, of legends


def panels(
    count: int = 1, *, columns: int | None = None, size: tuple[float, float] = (5.5, 4.0)
) -> tuple[Figure, list[Axes]]:
    """`count` panels in rows of `columns` (None: all in one row). size: width and height of each, in inches."""
    from matplotlib.figure import Figure  # without pyplot there is no state and no display

    across = columns or count
    down = -(-count // across)
    figure = Figure(figsize=(size[0] * across, size[1] * down), layout="constrained")
    grid = figure.add_gridspec(down, across)
    axes = [figure.add_subplot(grid[number]) for number in range(count)]
    for axis in axes:
        axis.set_prop_cycle(color=line_colours())
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
    return figure, axes


def legend(axis: Axes, **where: Any) -> None:
    """where: as matplotlib takes it; default: where least is hidden."""
    axis.legend(fontsize=SMALL, **where)


def plain_log(axis: Axis, *, per_cent: bool = False) -> None:
    """Plain numbers on a logarithmic axis whose limits are known: 1, 2 and 5 of each power of ten, more of them where
    it spans little. per_cent: of shares."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    factor = 100 if per_cent else 1
    low, high = axis.get_view_interval()
    spans = ((10, "1 2 5"), (3, "1 1.5 2 3 4 5 7"), (0, "1 1.2 1.5 2 2.5 3 4 5 6 7 8 9"))
    digits = next(digits for span, digits in spans if high > span * low)
    axis.set_major_locator(LogLocator(subs=[float(digit) for digit in digits.split()], numticks=50))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{factor * value:g}"))


def png(figure: Figure, dpi: int = DPI) -> bytes:
    """The same bytes for the same figure."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi, metadata={"Software": None})
    return stream.getvalue()


def save_png(figure: Figure, path: Path, dpi: int = DPI) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(png(figure, dpi))
