"""LLaVA (transformers' LlavaForConditionalGeneration) with a SigLIP tower.

The base model knows images only; a dense video is its frames, each an image. A gazed video is the projected features of
the kept patches, frame after frame.
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from ..media import Media
from .base import Family


class LlavaFamily(Family):
    model_type = "llava"
    title = "LLaVA"
    example = "llava-hf/llava-interleave-qwen-0.5b-hf"

    @property
    def _tokens_per_image(self) -> int:
        vision = self.config.vision_config
        skipped = 1 if self.config.vision_feature_select_strategy == "default" else 0
        return (vision.image_size // vision.patch_size) ** 2 - skipped

    def project(self, features: torch.Tensor, counts: list[int]) -> torch.Tensor:
        return self.base.model.multi_modal_projector(features)

    def dense_image(self, image: Image.Image, alone: bool) -> Media:
        pixels = self.image_processor(images=[image], return_tensors="pt")["pixel_values"]
        return Media(self._tokens_per_image, {"pixel_values": pixels})

    def dense_video(self, pixels: torch.Tensor) -> Media:
        return Media(self.dense_count(len(pixels)), {"pixel_values": pixels})

    def dense_count(self, frames: int) -> int:
        return frames * self._tokens_per_image

    def dense_features(self, content: dict[str, Any]) -> torch.Tensor:
        pixels = content["pixel_values"].to(self.base.device, self.base.dtype)
        return torch.cat(list(self.base.get_image_features(pixel_values=pixels).pooler_output))

    def chat(self, text: str, first: bool = True) -> str:
        return f"USER: {text} ASSISTANT:"

    def answer(self, text: str) -> str:
        return f" {text}{self.tokenizer.eos_token}"
