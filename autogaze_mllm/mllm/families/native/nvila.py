"""NVILA-HD-Video, loaded natively.

Gazed video: for every frame the kept patches of all its tiles, in time order; then the thumbnails. Nine in gaze order
make one token (TokenShuffle); no newline, separator or time tokens. Dense pictures are the whole frame at the tower's
largest scale, all of its patches in raster order; the model was made to be gazed, and what it sees of a dense video of
high resolution (tiles at all scales) is what `gaze="all"` gives.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ....gaze.grid import PatchGrid
from ....gaze.settings import VideoSettings, preset
from ...media import Media
from ...preprocessing import Preprocessing
from ..chatml import chatml
from .base import NativeFamily

logger = logging.getLogger(__name__)


class NvilaFamily(NativeFamily):
    model_type = "nvila"
    title = "NVILA-HD-Video"
    example = "nvidia/NVILA-8B-HD-Video"
    after_media = "\n\n"  # as in the published prompt
    trained_gazed = True

    def __init__(self, base: Any, preprocessing: Preprocessing) -> None:
        super().__init__(base, preprocessing)
        self._report_grid()

    @classmethod
    def load_preprocessing(cls, source: str | Path, **hub: Any) -> Preprocessing:
        return Preprocessing.from_pretrained(source, model_type="qwen2", **hub)

    @classmethod
    def default_settings(cls) -> VideoSettings:
        return preset("nvila-hd")

    @property
    def _grid(self) -> PatchGrid | None:
        """The tower's grid as its configuration has it."""
        vision = self.config.vision_config
        scales = getattr(vision, "scales", None)
        return None if scales is None else PatchGrid.of(scales, vision.patch_size)

    def _report_grid(self) -> None:
        """The published processor is configured for another grid than the tower. Selections made here use the tower's,
        so this is a warning; selections from elsewhere carry their grid and are refused if it differs."""
        scales = getattr(self.image_processor, "target_scales", None)
        grid = self._grid
        if scales is None or grid is None:
            return
        theirs = PatchGrid.of(scales, getattr(self.image_processor, "target_patch_size", grid.patch))
        if theirs != grid:
            logger.warning(
                "%s: grid mismatch: the tower uses %s, the processor's configuration says %s; the tower's grid is used",
                self.config.name_or_path,
                grid,
                theirs,
            )

    @property
    def dense_side(self) -> int:
        grid = self._grid
        return super().dense_side if grid is None else max(grid.scales[-1])

    def dense_image(self, image: Image.Image, alone: bool) -> Media:
        return Media([self.dense_count(1)], {"pixel_values": self.image_pixels(image)})

    def dense_count(self, frames: int, size: tuple[int, int] | None = None) -> int:
        return frames * self.projector.count(self.dense_patches)

    def dense_features(self, content: dict[str, Any]) -> torch.Tensor:
        (pixels,) = content.values()
        features = self.base.encode_images(pixels)
        return self.projector(features.flatten(0, 1), [features.shape[1]] * len(features))

    def chat(self, text: str, first: bool = True) -> str:
        return chatml(text, first)

    def answer(self, text: str) -> str:
        return f"{text}<|im_end|>"
