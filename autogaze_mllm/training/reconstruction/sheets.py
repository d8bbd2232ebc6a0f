"""A sheet for a clip and a setting: what was kept at each scale, the picture rebuilt from it, the frame, the error."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ...common.drawing.palette import COLOURS, heat
from ...common.storage.files import atomic_write, output_folder
from ...common.storage.json_text import writable
from ...gaze.grid import PatchGrid
from ...gaze.pictures.overlay import draw_patches, patch_box
from ...gaze.selection import Selection, read_selection
from .clips import Clip
from .scores import ClipScore, FrameScore

if TYPE_CHECKING:
    from .models import Contender

COLUMNS = 8  # frames at most
CELL = 168  # pixels
GAP, LEFT, TITLE, HEAD = 6, 132, 58, 62
GROUND, WORDS, FAINT = (18, 18, 22), (238, 238, 238), (170, 170, 178)
STRONGEST = 0.25  # error that is drawn white, black to white being 1


def save_sheet(
    path: Path, clip: Clip, one: Contender, score: ClipScore, pixels: torch.Tensor, numbers: list[int]
) -> None:
    """pixels: (T, 3, S, S) uint8; numbers: of the frames in the video."""
    grid = one.task.grid
    selection = read_selection(score.info, grid, "the sheet")
    shown = np.unique(np.linspace(0, len(pixels) - 1, COLUMNS).round().astype(int)).tolist()
    names = [(_side(grid, scale), COLOURS[scale % len(COLOURS)]) for scale in range(len(grid.scales))]
    names += [("rebuilt", WORDS), ("frame", WORDS), ("error", WORDS)]
    width = LEFT + len(shown) * (CELL + GAP)
    sheet = Image.new("RGB", (max(width, 900), TITLE + HEAD + len(names) * (CELL + GAP)), GROUND)
    draw = ImageDraw.Draw(sheet)
    kept = f"{score.patches} of {len(pixels) * grid.size} patches ({100 * score.mean('ratio'):.1f} %)"
    part = "" if len(shown) == len(pixels) else f", {len(shown)} of {len(pixels)} frames shown"
    title = f"{clip.video}  {clip.name}  ·  {one.label}  {score.setting.name}"
    draw.text((14, 6), writable(title), fill=WORDS, font=_font(24))
    draw.text((14, 34), f"{kept}{part}", fill=FAINT, font=_font(19))
    for row, (name, colour) in enumerate(names):
        top = TITLE + HEAD + row * (CELL + GAP)
        draw.text((14, top + CELL // 2), name, fill=colour, font=_font(22), anchor="lm")
    draw.text(
        (14, TITLE + HEAD + len(names) * (CELL + GAP) - CELL // 2 + 8),
        f"white: {STRONGEST:g}",
        fill=FAINT,
        font=_font(17),
    )
    for column, number in enumerate(shown):
        left = LEFT + column * (CELL + GAP)
        _heading(draw, left, score.frames[number], numbers[number])
        cells = _cells(pixels[number], score.rebuilt[number], selection, number, grid)
        for row, cell in enumerate(cells):
            sheet.paste(cell, (left, TITLE + HEAD + row * (CELL + GAP)))
    output_folder(path.parent)
    with atomic_write(path) as temporary:
        sheet.save(temporary, format="png")


def _heading(draw: ImageDraw.ImageDraw, left: int, frame: FrameScore, number: int) -> None:
    quality = "exact" if frame.psnr is None else f"{frame.psnr:.1f} dB"
    draw.text((left, TITLE + 8), f"frame {number}", fill=WORDS, font=_font(20))
    draw.text((left, TITLE + 33), f"{frame.patches} kept, {quality}", fill=FAINT, font=_font(17))


def _cells(
    frame: torch.Tensor, rebuilt: torch.Tensor, selection: Selection, number: int, grid: PatchGrid
) -> list[Image.Image]:
    """The pictures of a column. frame: (3, S, S) uint8; rebuilt: (3, S, S) in [0, 1]."""
    original = Image.fromarray(frame.permute(1, 2, 0).numpy())
    index = selection.index[0][selection.keep[0] & (selection.frame == number)]
    located = list(zip(*(part.tolist() for part in grid.locate(index)), strict=True))
    cells = []
    for scale, (height, width) in enumerate(grid.scales):
        small = original.resize((width, height), Image.Resampling.BICUBIC)
        seen = np.asarray(small.resize((CELL, CELL), Image.Resampling.NEAREST))
        boxes = [(s, patch_box(grid, s, row, column, (0, 0, CELL, CELL))) for s, row, column in located if s == scale]
        cells.append(draw_patches(seen, boxes))
    again = rebuilt.permute(1, 2, 0).numpy()
    cells.append(_fitted((again * 255).round().astype(np.uint8)))
    cells.append(original.resize((CELL, CELL), Image.Resampling.BICUBIC))
    off = np.abs(again - np.asarray(original) / 255).mean(axis=2) / STRONGEST
    cells.append(_fitted(heat(off.clip(0, 1))))
    return cells


def _fitted(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels).resize((CELL, CELL), Image.Resampling.BICUBIC)


def _side(grid: PatchGrid, scale: int) -> str:
    height, width = grid.scales[scale]
    return f"{width} px" if height == width else f"{width}x{height}"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
