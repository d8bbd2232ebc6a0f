"""Video-LLaVA: one tower for videos, one for images; the class token of every frame is the first of its tokens."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import nn

from ...media import Media
from ..base import Family


class VideoLlavaFamily(Family):
    model_type = "video_llava"
    title = "Video-LLaVA"
    example = "LanguageBind/Video-LLaVA-7B-hf"
    keep_prefix = True
    PREFIXES: ClassVar[dict[str, tuple[str, ...]]] = {
        **Family.PREFIXES,
        "tower": ("model.video_tower.", "model.image_tower."),
    }

    @property
    def tower(self) -> nn.Module:
        return self.base.model.video_tower

    @property
    def _per_picture(self) -> int:
        """Patches of a dense picture."""
        return (self.image_size // self.patch) ** 2

    @property
    def _images(self) -> str:
        """What this version of transformers calls the pixels of images."""
        known = inspect.signature(self.base.forward).parameters
        return "pixel_values_images" if "pixel_values_images" in known else "pixel_values"

    def project(self, features: torch.Tensor, counts: list[int]) -> torch.Tensor:
        return self.projector(features)

    def dense_image(self, image: Image.Image, alone: bool) -> Media:
        pixels = self.image_processor(images=[image], return_tensors="pt")["pixel_values"]
        dropped = self.config.vision_feature_select_strategy == "default"
        return Media([self._per_picture + (0 if dropped else 1)], {self._images: pixels})

    def dense_video(self, pixels: torch.Tensor, seconds: list[float]) -> Media:
        return Media([self.dense_count(len(pixels))], {"pixel_values_videos": pixels[None]})

    def dense_count(self, frames: int, size: tuple[int, int] | None = None) -> int:
        return frames * (self._per_picture + 1)

    def dense_features(self, content: dict[str, Any]) -> torch.Tensor:
        ((name, pixels),) = content.items()
        pixels = pixels.to(self.device, self.base.dtype)
        videos = name == "pixel_values_videos"
        parts = self.base.model  # the outer class passes on images alone
        found = parts.get_video_features(pixels) if videos else parts.get_image_features(pixels)
        return found.pooler_output.reshape(-1, found.pooler_output.shape[-1])

    def chat(self, text: str, first: bool = True) -> str:
        return f"USER: {text} ASSISTANT:"

    def answer(self, text: str) -> str:
        return f" {text}{self.tokenizer.eos_token}"
