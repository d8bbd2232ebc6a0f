"""LLaVA (transformers' LlavaForConditionalGeneration) with a SigLIP or CLIP tower.

The base model knows images only; a dense video is its frames, each an image. A gazed video is the projected features of
the kept patches, frame after frame.
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from ....vision.adapters import adapter_of
from ...media import Media
from ...preprocessing import Preprocessing
from ..base import Family


class LlavaFamily(Family):
    model_type = "llava"
    title = "LLaVA"
    example = "llava-hf/llava-interleave-qwen-0.5b-hf"

    def __init__(self, base: Any, preprocessing: Preprocessing) -> None:
        super().__init__(base, preprocessing)
        siglip = self.config.vision_config.model_type == "siglip_vision_model"
        self.raster, self.block_causal = not siglip, siglip  # as the published gaze was tried on SigLIP

    @property
    def keep_prefix(self) -> bool:
        return adapter_of(self.tower).prefix > 0 and self.config.vision_feature_select_strategy == "full"

    @property
    def _tokens_per_image(self) -> int:
        skipped = 1 if self.config.vision_feature_select_strategy == "default" else 0
        return (self.image_size // self.patch) ** 2 + adapter_of(self.tower).prefix - skipped

    def project(self, features: torch.Tensor, counts: list[int]) -> torch.Tensor:
        return self.projector(features)

    def dense_image(self, image: Image.Image, alone: bool) -> Media:
        pixels = self.image_processor(images=[image], return_tensors="pt")["pixel_values"]
        return Media([self._tokens_per_image], {"pixel_values": pixels})

    def dense_video(self, pixels: torch.Tensor, seconds: list[float]) -> Media:
        return Media([self.dense_count(len(pixels))], {"pixel_values": pixels})

    def dense_count(self, frames: int, size: tuple[int, int] | None = None) -> int:
        return frames * self._tokens_per_image

    def dense_features(self, content: dict[str, Any]) -> torch.Tensor:
        pixels = content["pixel_values"].to(self.device, self.base.dtype)
        return torch.cat(list(self.base.get_image_features(pixel_values=pixels).pooler_output))

    def chat(self, text: str, first: bool = True) -> str:
        return f"USER: {text} ASSISTANT:"

    def answer(self, text: str) -> str:
        return f" {text}{self.tokenizer.eos_token}"
