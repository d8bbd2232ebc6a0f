"""What families share whose base takes pictures of one size and writes each into the prompt by itself.

A dense video is its frames, each an image with what the family writes around it. A gazed video is written in the same
way, with as many placeholders to a frame as it keeps groups of patches; a frame that keeps nothing is left out.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from PIL import Image

from ....gaze.token_map import TokenMap
from ...media import Layout, Media
from ..base import Family


class FramedFamily(Family):
    @property
    def per_picture(self) -> int:
        """Visual tokens of a dense picture."""
        return (self.image_size // self.patch) ** 2

    @abstractmethod
    def frame(self, number: int, seconds: float, tokens: int) -> Layout:
        """What frame `number` of a video, counted from 0, becomes."""

    def video_layout(self, counts: list[int], seconds: list[float]) -> Layout:
        """counts: visual tokens of each frame."""
        kept = [(count, time) for count, time in zip(counts, seconds, strict=True) if count]
        return [piece for number, (count, time) in enumerate(kept) for piece in self.frame(number, time, count)]

    def layout(self, video: TokenMap) -> Layout:
        return self.video_layout(video.counts, video.seconds)

    def image_layout(self, inputs: dict[str, Any]) -> Layout:
        """inputs: what the image processor made of an image."""
        return [self.per_picture * len(inputs["pixel_values"])]

    def dense_image(self, image: Image.Image, alone: bool) -> Media:
        inputs = dict(self.image_processor(images=[image], return_tensors="pt"))
        return Media(self.image_layout(inputs), {"pixel_values": inputs["pixel_values"]})

    def dense_video(self, pixels: torch.Tensor, seconds: list[float]) -> Media:
        return Media(self.video_layout([self.per_picture] * len(pixels), seconds), {"pixel_values": pixels})

    def dense_count(self, frames: int, size: tuple[int, int] | None = None) -> int:
        return frames * self.per_picture

    def dense_features(self, content: dict[str, Any]) -> torch.Tensor:
        pixels = content["pixel_values"].to(self.device, self.base.dtype)
        found = self.base.get_image_features(pixel_values=pixels).pooler_output
        found = found if isinstance(found, torch.Tensor) else torch.cat(list(found))
        return found.reshape(-1, found.shape[-1])
