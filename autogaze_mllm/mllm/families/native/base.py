"""What the natively loaded families share: the projector joins neighbouring tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import nn

from ...media import Media
from ..base import Family


class NativeFamily(Family):
    """A projector that joins m tower tokens gets m gazed tokens that follow each other in gaze order.

    They are joined within a picture (a video frame with all its tiles, or a thumbnail), whose last token is repeated
    until their count is a multiple of m: a picture with n kept patches takes ceil(n / m) visual tokens.
    """

    raster, block_causal = False, True
    PREFIXES: ClassVar[dict[str, tuple[str, ...]]] = {
        "tower": ("vision_tower.",),
        "projector": ("mm_projector.",),
        "llm": ("llm.",),
    }

    @property
    def tower(self) -> nn.Module:
        return self.base.vision_tower

    @property
    def language_model(self) -> nn.Module:
        return self.base.llm

    @property
    def projector(self) -> Any:
        return self.base.mm_projector

    @property
    def dense_patches(self) -> int:
        """Patches of a dense picture."""
        return (self.dense_side // self.config.vision_config.patch_size) ** 2

    def gazed_count(self, counts: list[int]) -> int:
        return sum(self.projector.count(kept) for kept in counts)

    def project(self, features: torch.Tensor, counts: list[int]) -> torch.Tensor:
        return self.projector(features, counts)

    def image_pixels(self, image: Image.Image) -> torch.Tensor:
        """An image (1, 3, S, S) as a dense tower takes it: resized to the tower's square, whatever its aspect."""
        size = {"height": self.dense_side, "width": self.dense_side}
        return self.image_processor(images=[image], size=size, return_tensors="pt")["pixel_values"]

    def dense_video(self, pixels: torch.Tensor, seconds: list[float]) -> Media:
        return Media([self.dense_count(len(pixels))], {"pixel_values_videos": pixels})

    def dense_inputs(self, media: Sequence[Sequence[Media]]) -> None:
        """The base takes embeddings alone."""
