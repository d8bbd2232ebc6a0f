"""A chart of the kept patches of each frame, stacked by scale, as inline SVG: no script, no font, no file beside it.

Every frame is a group `<g class="frame" data-frame="NUMBER">` with a title that browsers show under the pointer; a
page with scripts finds by it which frame was clicked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..gaze.gazed_video import GazedVideo
    from ..gaze.grid import PatchGrid

WIDTH, HEIGHT = 960, 300  # user units; the picture takes the width that it is given
LEFT, RIGHT, TOP, BOTTOM = 56, 10, 36, 40  # around the bars
TICKS, TIMES = 4, 8  # about so many numbers beside the axes
GAP = 0.18  # of a frame's width, between bars


@dataclass(frozen=True)
class FrameCounts:
    """kept: (frames, scales) patches, tiles together; seconds: (frames,); names: of the scales, as "112" or "64x32"."""

    kept: Sequence[Sequence[int]]
    seconds: Sequence[float]
    names: Sequence[str]


def frame_counts(gazed: GazedVideo) -> FrameCounts:
    """Of a gazed video, thumbnails left out. A tubelet counts as one frame."""
    import torch

    frames = int(gazed.clip_frames[: len(gazed.clip_frames) - gazed.thumbnails].sum())
    pictures, index = gazed.pictures[:frames].unique(return_inverse=True)
    scales, patches = len(gazed.grid.scales), int(gazed.frame_counts[:frames].sum())
    picture = torch.repeat_interleave(index, gazed.frame_counts[:frames])
    ends = torch.tensor(gazed.grid.offsets[1:], device=gazed.positions.device)
    scale = torch.searchsorted(ends, gazed.positions[:patches], right=True)
    kept = torch.bincount(picture * scales + scale, minlength=len(pictures) * scales).view(-1, scales)
    seconds = torch.zeros(len(pictures), device=index.device, dtype=gazed.timestamps.dtype)
    seconds[index] = gazed.timestamps[:frames]  # the tiles of a frame have the same time
    return FrameCounts(kept.tolist(), seconds.tolist(), scale_names(gazed.grid))


def scale_names(grid: PatchGrid) -> list[str]:
    """Sides in pixels."""
    return [str(high) if high == wide else f"{wide}x{high}" for high, wide in grid.scales]


def scale_colours(count: int) -> list[str]:
    """Those of the overlay, as css has them."""
    from ..common.drawing.palette import COLOURS

    return ["#{:02x}{:02x}{:02x}".format(*COLOURS[number % len(COLOURS)]) for number in range(count)]


def chart_svg(
    counts: FrameCounts, title: str = "Kept patches of each frame, by scale", width: int = WIDTH, legend: bool = True
) -> str:
    """One <svg> element. Text takes the colour of the text around it. width: in user units; a narrow page has less room
    for the same text. Raises ValueError where there are no frames."""
    if not counts.kept:
        raise ValueError("no frames to draw")
    colours = scale_colours(len(counts.names))
    most = max(map(sum, counts.kept))
    top, step = _scale(most)
    parts = [
        f'<svg class="patches" viewBox="0 0 {width} {HEIGHT}" role="img" xmlns="http://www.w3.org/2000/svg" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="currentColor"><title>{escape(title)}</title>'
    ]
    parts += _legend(counts, colours) if legend else []
    parts += _lines(top, step, width)
    parts += _bars(counts, colours, top, width)
    parts += _times(counts.seconds, width)
    return "".join([*parts, "</svg>"])


def _scale(most: int) -> tuple[int, int]:
    """The end of the axis and the step of its numbers: 1, 2 or 5 times a power of ten."""
    rough = max(most, 1) / TICKS
    power = 10 ** math.floor(math.log10(rough)) if rough >= 1 else 1
    step = max(int(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)), 1)
    return -(-max(most, 1) // step) * step, step


def _height(value: float, top: int) -> float:
    return (HEIGHT - TOP - BOTTOM) * value / top


def _legend(counts: FrameCounts, colours: Sequence[str]) -> list[str]:
    parts, x = [], float(LEFT)
    for scale, (name, colour) in enumerate(zip(counts.names, colours, strict=True)):
        label = f"{sum(frame[scale] for frame in counts.kept)} at {name} px"
        parts.append(f'<rect x="{x:.0f}" y="9" width="11" height="11" rx="2" fill="{colour}"/>')
        parts.append(f'<text x="{x + 17:.0f}" y="19">{escape(label)}</text>')
        x += 34 + 6.6 * len(label)
    return parts


def _lines(top: int, step: int, width: int) -> list[str]:
    parts = []
    for value in range(0, top + 1, step):
        y = HEIGHT - BOTTOM - _height(value, top)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{width - RIGHT}" stroke="currentColor" stroke-opacity="0.15"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" fill-opacity="0.7">{value}</text>')
    return parts


def _bars(counts: FrameCounts, colours: Sequence[str], top: int, width: int) -> list[str]:
    slot = (width - LEFT - RIGHT) / len(counts.kept)
    bar = max(min(slot * (1 - GAP), 60.0), 0.6)
    parts = []
    for number, (frame, second) in enumerate(zip(counts.kept, counts.seconds, strict=True)):
        x, y = LEFT + slot * number + (slot - bar) / 2, float(HEIGHT - BOTTOM)
        said = ", ".join(f"{kept} at {name} px" for kept, name in zip(frame, counts.names, strict=True) if kept)
        label = f"frame {number}, {second:.2f} s: {sum(frame)} patches" + (f" ({said})" if said else "")
        parts.append(f'<g class="frame" data-frame="{number}"><title>{escape(label)}</title>')
        # The whole column answers to the pointer, however little was kept.
        parts.append(
            f'<rect x="{LEFT + slot * number:.2f}" y="{TOP}" width="{slot:.2f}" height="{HEIGHT - TOP - BOTTOM}" '
            'fill-opacity="0"/>'
        )
        for kept, colour in zip(frame, colours, strict=True):
            if kept:
                high = _height(kept, top)
                y -= high
                parts.append(f'<rect x="{x:.2f}" y="{y:.2f}" width="{bar:.2f}" height="{high:.2f}" fill="{colour}"/>')
        parts.append("</g>")
    return parts


def _times(seconds: Sequence[float], width: int) -> list[str]:
    slot = (width - LEFT - RIGHT) / len(seconds)
    every = -(-len(seconds) // max(TIMES * width // WIDTH, 1))
    y = HEIGHT - BOTTOM + 17
    digits = 1 if seconds[-1] - seconds[0] >= 1 else 2
    parts = []
    for number in range(0, len(seconds), every):
        x = LEFT + slot * (number + 0.5)
        parts.append(
            f'<text x="{x:.1f}" y="{y}" text-anchor="middle" fill-opacity="0.7">{seconds[number]:.{digits}f}</text>'
        )
    middle = LEFT + (width - LEFT - RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{y + 17}" text-anchor="middle" fill-opacity="0.7">seconds</text>')
    return parts
