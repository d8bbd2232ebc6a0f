"""A picture of what was kept: the patches by scale on the frame, and beside it the picture rebuilt from them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .grid import PatchGrid
from .info import GazingInfo
from .mosaic import psnr, rebuild

COLOURS = [(255, 176, 59), (122, 204, 108), (76, 164, 255), (240, 98, 160), (186, 130, 255), (90, 220, 220)]
PANEL_WIDTH = 560
STRIP = 34  # height of the text strip above the panels
DIMMED = 0.35  # brightness of what was not kept


class Overlay:
    """A listener for `gaze_video`: measures the rebuilt picture and, if `write` is given, draws every frame.

    write: takes frames (height, width, 3) uint8, as `video.writer.video_writer` gives it.
    """

    def __init__(self, grid: PatchGrid, write: Callable[[np.ndarray], None] | None = None) -> None:
        self.grid, self.write = grid, write
        self.squared_error, self.frames = 0.0, 0
        self.font = ImageFont.load_default(size=15)

    @property
    def psnr(self) -> float:
        """Decibels of the rebuilt frames against the frames that the selector saw, over all pixels so far."""
        return psnr(self.squared_error / max(self.frames, 1))

    def __call__(self, raw: np.ndarray, frames: torch.Tensor, info: GazingInfo) -> None:
        assert info.gazing_mask is not None
        masks = [mask.to(frames.device, frames.dtype) for mask in info.gazing_mask]
        rebuilt = rebuild(frames, masks, self.grid)
        self.squared_error += float((rebuilt - frames).square().mean(dim=(0, 2, 3, 4)).sum())
        self.frames += len(raw)
        if self.write is None:
            return
        pictures = (rebuilt[0].clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        for t, frame in enumerate(raw):
            kept = [mask[0, t].cpu().numpy().astype(bool) for mask in masks]
            self.write(self._compose(frame, kept, pictures[t]))

    def _compose(self, frame: np.ndarray, kept: list[np.ndarray], rebuilt: np.ndarray) -> np.ndarray:
        """frame (H, W, 3), kept: per scale (n_s,) bool, rebuilt (h, w, 3) -> one picture with both panels."""
        height = max(round(frame.shape[0] * PANEL_WIDTH / frame.shape[1] / 2) * 2, 2)
        size = (PANEL_WIDTH, height)
        left = self._kept_patches(np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR)), kept)
        canvas = Image.new("RGB", (2 * PANEL_WIDTH, height + STRIP), (18, 18, 22))
        canvas.paste(left, (0, STRIP))
        canvas.paste(Image.fromarray(rebuilt).resize(size, Image.Resampling.BILINEAR), (PANEL_WIDTH, STRIP))
        draw = ImageDraw.Draw(canvas)
        total = sum(int(mask.sum()) for mask in kept)
        x = 10.0
        draw.text((x, 8), f"kept {total} of {self.grid.size}:", fill=(235, 235, 235), font=self.font)
        x += draw.textlength(f"kept {total} of {self.grid.size}:", font=self.font) + 12
        for scale, mask in enumerate(kept):
            side_h, side_w = self.grid.scales[scale]
            label = f"{int(mask.sum())} at {side_h if side_h == side_w else f'{side_w}x{side_h}'}"
            draw.text((x, 8), label, fill=COLOURS[scale % len(COLOURS)], font=self.font)
            x += draw.textlength(label, font=self.font) + 14
        draw.text((PANEL_WIDTH + 10, 8), "rebuilt from the kept patches", fill=(235, 235, 235), font=self.font)
        return np.asarray(canvas)

    def _kept_patches(self, frame: np.ndarray, kept: list[np.ndarray]) -> Image.Image:
        """Kept places at full brightness with an outline in the colour of their scale, finest on top."""
        height, width = frame.shape[:2]
        bright = np.zeros((height, width, 1), dtype=bool)
        outlines = []
        for scale, ((side_h, side_w), (_, columns), mask) in enumerate(
            zip(self.grid.scales, self.grid.cells, kept, strict=True)
        ):
            for cell in np.flatnonzero(mask):
                row, column = divmod(int(cell), columns)
                box = (
                    round(column * self.grid.patch * width / side_w),
                    round(row * self.grid.patch * height / side_h),
                    round((column + 1) * self.grid.patch * width / side_w),
                    round((row + 1) * self.grid.patch * height / side_h),
                )
                bright[box[1] : box[3], box[0] : box[2]] = True
                outlines.append((box, COLOURS[scale % len(COLOURS)]))
        image = Image.fromarray(np.where(bright, frame, (frame * DIMMED).astype(np.uint8)))
        draw = ImageDraw.Draw(image)
        for (left, top, right, bottom), colour in outlines:
            draw.rectangle((left, top, max(right - 1, left), max(bottom - 1, top)), outline=colour)
        return image
