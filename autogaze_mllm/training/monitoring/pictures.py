"""Validation in pictures: a titled sheet for each clip, a row for each scale, and the same clip as a film.

Shapes: a clip has T frames of H x W pixels; a grid has S scales.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ...common.drawing.palette import COLOURS
from ...common.storage.json_text import writable
from ...gaze.grid import PatchGrid
from ...gaze.pictures.overlay import draw_patches, patch_box
from ...gaze.selection import Selection

COLUMNS = 8  # frames of a sheet at most
CELL = 128  # height of a frame on a sheet, in pixels
TITLES = 190  # width of the titles of rows
LINE, GAP = 26, 4
PAPER, INK = (255, 255, 255), (20, 20, 24)
MILLISECONDS = 250  # that a film shows each frame


@dataclass(frozen=True)
class ShownClip:
    """frames, rebuilt: (T, 3, H, W) in [0, 1] on the host; selection: of this clip alone; losses: of every frame."""

    name: str
    frames: torch.Tensor
    selection: Selection
    rebuilt: torch.Tensor
    losses: Sequence[float]
    grid: PatchGrid

    @property
    def title(self) -> str:
        kept, possible = int(self.selection.keep[0].sum()), self.grid.size * len(self.frames)
        return (
            f"{writable(self.name)}: {kept} of {possible} patches kept ({100 * kept / possible:.1f} %), "
            f"loss {float(np.mean(self.losses)):.3f}"
        )

    def kept(self, frame: int, scale: int | None = None) -> list[tuple[int, int, int]]:
        """(scale, row, column) of the kept patches of a frame, of one scale or of all."""
        wanted = self.selection.keep[0] & (self.selection.frame == frame)
        located = zip(*(part.tolist() for part in self.grid.locate(self.selection.index[0][wanted])), strict=True)
        return [cell for cell in located if scale is None or cell[0] == scale]


def pixels_of(frame: torch.Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] -> (H, W, 3) uint8"""
    return (frame.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def kept_patches(clip: ShownClip, frame: int, scale: int | None = None) -> Image.Image:
    """A frame with its kept patches outlined, those of one scale or of all; the rest dimmed."""
    picture = pixels_of(clip.frames[frame])
    panel = (0, 0, picture.shape[1], picture.shape[0])
    boxes = [(s, patch_box(clip.grid, s, row, column, panel)) for s, row, column in clip.kept(frame, scale)]
    return draw_patches(picture, boxes)


def sheet(clip: ShownClip) -> Image.Image:
    """Rows: the frames, the kept patches of all scales, those of each scale, what is rebuilt from them. Columns: at
    most `COLUMNS` frames, spread over the clip, with the loss of each."""
    shown = np.unique(np.linspace(0, len(clip.frames) - 1, COLUMNS).round().astype(int)).tolist()
    height, width = clip.frames.shape[-2:]
    cell = (round(CELL * width / height), CELL)
    sides = [f"{h}" if h == w else f"{w}x{h}" for h, w in clip.grid.scales]
    rows: list[tuple[str, tuple[int, int, int], list[Image.Image]]] = [
        ("frame", INK, [Image.fromarray(pixels_of(clip.frames[t])) for t in shown]),
        ("kept, all scales", INK, [kept_patches(clip, t) for t in shown]),
    ]
    for scale, side in enumerate(sides):
        count = sum(len(clip.kept(t, scale)) for t in range(len(clip.frames)))
        colour = COLOURS[scale % len(COLOURS)]
        rows.append((f"scale {side}: {count} kept", colour, [kept_patches(clip, t, scale) for t in shown]))
    rows.append(("rebuilt", INK, [Image.fromarray(pixels_of(clip.rebuilt[t])) for t in shown]))
    canvas = Image.new(
        "RGB", (TITLES + (cell[0] + GAP) * max(len(shown), 4), 2 * LINE + (cell[1] + GAP) * len(rows)), PAPER
    )
    draw, font, small = ImageDraw.Draw(canvas), ImageFont.load_default(size=15), ImageFont.load_default(size=12)
    draw.text((GAP, 4), clip.title, fill=INK, font=font)
    for column, t in enumerate(shown):
        left = TITLES + column * (cell[0] + GAP)
        draw.text((left, LINE + 4), f"frame {t}, loss {clip.losses[t]:.3f}", fill=INK, font=small)
    for number, (title, colour, pictures) in enumerate(rows):
        top = 2 * LINE + number * (cell[1] + GAP)
        draw.rectangle((GAP, top + 5, GAP + 10, top + 15), fill=colour)
        draw.text((GAP + 18, top), title, fill=INK, font=font)
        for column, picture in enumerate(pictures):
            canvas.paste(picture.resize(cell, Image.Resampling.LANCZOS), (TITLES + column * (cell[0] + GAP), top))
    return canvas


def stacked(sheets: Sequence[Image.Image]) -> Image.Image:
    """Sheets below each other."""
    canvas = Image.new("RGB", (max(one.width for one in sheets), sum(one.height + 4 * GAP for one in sheets)), PAPER)
    top = 0
    for one in sheets:
        canvas.paste(one, (0, top))
        top += one.height + 4 * GAP
    return canvas


def moving_picture(clip: ShownClip) -> bytes:
    """The clip as an animated gif: frame, kept patches and what is rebuilt beside each other."""
    height, width = clip.frames.shape[-2:]
    pictures, font = [], ImageFont.load_default(size=15)
    for t in range(len(clip.frames)):
        canvas = Image.new("RGB", (3 * (width + GAP), height + LINE), PAPER)
        panels = (
            (f"frame {t}", Image.fromarray(pixels_of(clip.frames[t]))),
            (f"kept: {len(clip.kept(t))}", kept_patches(clip, t)),
            (f"rebuilt, loss {clip.losses[t]:.3f}", Image.fromarray(pixels_of(clip.rebuilt[t]))),
        )
        for number, (title, picture) in enumerate(panels):
            canvas.paste(picture, (number * (width + GAP), LINE))
            ImageDraw.Draw(canvas).text((number * (width + GAP) + 2, 4), title, fill=INK, font=font)
        pictures.append(canvas)
    stream = io.BytesIO()
    pictures[0].save(
        stream, format="gif", save_all=True, append_images=pictures[1:], duration=MILLISECONDS, loop=0, disposal=2
    )
    return stream.getvalue()
