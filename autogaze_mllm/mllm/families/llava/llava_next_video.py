"""LLaVA-NeXT-Video: frames are pooled before the projector, and nothing stands between them. Images keep the base
model's own path (any-resolution crops)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from PIL import Image

from ...media import Media
from ..base import Family


class LlavaNextVideoFamily(Family):
    model_type = "llava_next_video"
    title = "LLaVA-NeXT-Video"
    example = "llava-hf/LLaVA-NeXT-Video-7B-hf"
    PREFIXES: ClassVar[dict[str, tuple[str, ...]]] = {
        **Family.PREFIXES,
        "projector": (*Family.PREFIXES["projector"], "model.vision_resampler."),
    }

    @property
    def group(self) -> int:
        return self.config.spatial_pool_stride

    @property
    def _side(self) -> int:
        """Patches along one side of a dense frame."""
        return self.image_size // (self.patch // self.group)

    def project(self, features: torch.Tensor, counts: list[int]) -> torch.Tensor:
        pooled = self.base.model.vision_resampler(features)  # each group as a picture of its own
        return self.projector(pooled.flatten(0, 1))

    def dense_image(self, image: Image.Image, alone: bool) -> Media:
        inputs = self.image_processor(images=[image], return_tensors="pt")
        pixels, size = inputs["pixel_values"], inputs["image_sizes"]
        blank = [torch.zeros(pixels.shape[1], self._side**2, 1)]
        _, lengths = self.base.model.pack_image_features(blank, size, "default", image_newline=torch.zeros(1))
        return Media([int(lengths.sum())], {"pixel_values": pixels, "image_sizes": size})

    def dense_video(self, pixels: torch.Tensor, seconds: list[float]) -> Media:
        return Media([self.dense_count(len(pixels))], {"pixel_values_videos": pixels[None]})

    def dense_count(self, frames: int, size: tuple[int, int] | None = None) -> int:
        return frames * (self._side // self.group) ** 2

    def dense_features(self, content: dict[str, Any]) -> torch.Tensor:
        name = "pixel_values_videos" if "pixel_values_videos" in content else "pixel_values"
        pixels = content[name].to(self.device, self.base.dtype)
        if name == "pixel_values":
            found = self.base.get_image_features(pixels, content["image_sizes"]).pooler_output
        else:
            found = self.base.get_video_features(pixels).pooler_output
        found = found if isinstance(found, torch.Tensor) else torch.cat(list(found))
        return found.reshape(-1, found.shape[-1])

    def chat(self, text: str, first: bool = True) -> str:
        return f"USER: {text} ASSISTANT:"

    def answer(self, text: str) -> str:
        return f" {text}{self.tokenizer.eos_token}"
