"""A picture of what was kept: the patches by scale on the frame, and beside it the picture rebuilt from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ...common.drawing.palette import COLOURS
from ..grid import PatchGrid
from .mosaic import psnr, rebuild

if TYPE_CHECKING:
    from ..pipeline import GazedChunk

STRIP = 34  # height of the text strip above the panels
DIMMED = 0.35  # brightness of what was not kept

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Panels:
    """A frame, what was kept of it, and the picture rebuilt from that, each (H, W, 3) uint8. masks: per scale (tiles,
    n_s) bool."""

    frame: np.ndarray
    kept: np.ndarray
    rebuilt: np.ndarray
    masks: list[np.ndarray]


class Overlay:
    """A listener for `gaze_video`: measures the rebuilt picture and draws every frame for who wants it.

    write: takes frames (height, width, 3) uint8 with both pictures, as `video.writer.video_writer` gives it.
    show: takes the pictures one by one. tubelet: frames that are kept together, as of `gaze_video`.
    """

    def __init__(
        self,
        grid: PatchGrid,
        write: Callable[[np.ndarray], None] | None = None,
        show: Callable[[Panels], None] | None = None,
        tubelet: int = 1,
    ) -> None:
        self.grid, self.write, self.show, self.tubelet = grid, write, show, tubelet
        self.squared_error, self.parts = 0.0, 0
        self.font = ImageFont.load_default(size=15)

    @property
    def psnr(self) -> float:
        """Decibels of the rebuilt tiles against what the selector saw, over all tiles and chunks so far."""
        return psnr(self.squared_error / max(self.parts, 1))

    def __call__(self, chunk: GazedChunk) -> None:
        drawn = self.write is not None or self.show is not None
        masks = [_together(mask.to(chunk.pictures.device, torch.float32), self.tubelet) for mask in chunk.masks]
        rebuilt = []
        for number in range(chunk.tiles[0] * chunk.tiles[1]):  # tile by tile: 45 tiles of a chunk would be gigabytes
            frames = chunk.tile(number)[None].float() / 255
            again = rebuild(frames, [mask[number : number + 1] for mask in masks], self.grid)
            self.squared_error += float((again - frames).square().mean()) * len(chunk.pictures)
            self.parts += len(chunk.pictures)
            if drawn:
                rebuilt.append((again[0].clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy())
        if not drawn:
            return
        display = chunk.display.permute(0, 2, 3, 1).cpu().numpy()
        for t, frame in enumerate(display):
            kept = [mask[:, t].cpu().numpy().astype(bool) for mask in masks]
            panels = self._panels(frame, kept, [tile[t] for tile in rebuilt], chunk.tiles)
            if self.show is not None:
                self.show(panels)
            if self.write is not None:
                self.write(self._compose(panels))

    def _panels(
        self, frame: np.ndarray, masks: list[np.ndarray], rebuilt: list[np.ndarray], tiles: tuple[int, int]
    ) -> Panels:
        """frame (H, W, 3), masks: per scale (tiles, n_s) bool, rebuilt: tiles (h, w, 3)."""
        height, width = frame.shape[:2]
        boxes = []
        for scale, ((_, columns), mask) in enumerate(zip(self.grid.cells, masks, strict=True)):
            for tile, cell in zip(*np.nonzero(mask), strict=True):
                panel = _tile_box(int(tile), tiles, width, height)
                boxes.append((scale, patch_box(self.grid, scale, *divmod(int(cell), columns), panel)))
        again = Image.new("RGB", (width, height))
        for number, tile in enumerate(rebuilt):
            left, top, right, bottom = _tile_box(number, tiles, width, height)
            small = Image.fromarray(tile).resize((right - left, bottom - top), Image.Resampling.BILINEAR)
            again.paste(small, (left, top))
        return Panels(frame, np.asarray(draw_patches(frame, boxes)), np.asarray(again), masks)

    def _compose(self, panels: Panels) -> np.ndarray:
        """One picture with both panels and a strip of text above them."""
        height, width = panels.frame.shape[:2]
        canvas = Image.new("RGB", (2 * width, height + STRIP), (18, 18, 22))
        canvas.paste(Image.fromarray(panels.kept), (0, STRIP))
        canvas.paste(Image.fromarray(panels.rebuilt), (width, STRIP))
        draw = ImageDraw.Draw(canvas)
        total, possible = sum(int(mask.sum()) for mask in panels.masks), self.grid.size * len(panels.masks[0])
        labels = [(f"kept {total} of {possible}:", (235, 235, 235))]
        for scale, mask in enumerate(panels.masks):
            labels.append((f"{int(mask.sum())} at {scale_name(self.grid, scale)}", COLOURS[scale % len(COLOURS)]))
        x = 10.0
        for label, colour in labels:
            draw.text((x, 8), label, fill=colour, font=self.font)
            x += draw.textlength(label, font=self.font) + 14
        draw.text((width + 10, 8), "rebuilt from the kept patches", fill=(235, 235, 235), font=self.font)
        return np.asarray(canvas)


def scale_name(grid: PatchGrid, scale: int) -> str:
    """Pixels of the side that frames are shrunk to, or width x height."""
    side_h, side_w = grid.scales[scale]
    return f"{side_h}" if side_h == side_w else f"{side_w}x{side_h}"


def pace(seconds: Sequence[float] | np.ndarray) -> float:
    """Frames a second at which a video of the frames shown at these times goes as fast as they do, or 1."""
    return max((len(seconds) - 1) / (seconds[-1] - seconds[0]), 1.0) if len(seconds) > 1 else 1.0


def _together(mask: torch.Tensor, tubelet: int) -> torch.Tensor:
    """(tiles, n, n_s) -> the same, where every frame of a tubelet has what any of them has."""
    parts = [part.amax(dim=1, keepdim=True).expand_as(part) for part in mask.split(tubelet, dim=1)]
    return mask if tubelet == 1 else torch.cat(parts, dim=1)


def draw_patches(frame: np.ndarray, boxes: Iterable[tuple[int, Box]]) -> Image.Image:
    """frame (H, W, 3) uint8 and the kept patches of it, each its scale and box in pixels -> what was kept at full
    brightness, outlined in the colour of its scale, finest on top; the rest dimmed."""
    bright = np.zeros((*frame.shape[:2], 1), dtype=bool)
    whole = []
    for scale, box in sorted(boxes):
        left, top, right, bottom = map(round, box)
        bright[top:bottom, left:right] = True
        whole.append((scale, (left, top, max(right - 1, left), max(bottom - 1, top))))
    image = Image.fromarray(np.where(bright, frame, (frame * DIMMED).astype(np.uint8)))
    draw = ImageDraw.Draw(image)
    for scale, box in whole:
        draw.rectangle(box, outline=COLOURS[scale % len(COLOURS)])
    return image


def patch_box(grid: PatchGrid, scale: int, row: int, column: int, panel: Box) -> Box:
    """Where a patch of a tile lies that fills `panel`."""
    (side_h, side_w), (left, top, right, bottom) = grid.scales[scale], panel
    wide, high = (right - left) * grid.patch / side_w, (bottom - top) * grid.patch / side_h
    return left + column * wide, top + row * high, left + (column + 1) * wide, top + (row + 1) * high


def _tile_box(number: int, tiles: tuple[int, int], width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a tile in a panel of width x height pixels."""
    (columns, rows), column, row = tiles, number % tiles[0], number // tiles[0]
    return (
        column * width // columns,
        row * height // rows,
        (column + 1) * width // columns,
        (row + 1) * height // rows,
    )
