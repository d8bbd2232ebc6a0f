"""VideoLLaMA3: frames of any size, whose patches are averaged 2 x 2, each with its time before it. Images are not
averaged, and keep the base model's own path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image

from ....vision.any_size import MeanTower
from ...media import Layout, Media
from ..chatml import chatml
from .base import AnySizeFamily, joined_features

MERGE = 2  # of videos, by the published preprocessing; the configuration does not have it


class VideoLlama3Family(AnySizeFamily):
    model_type = "video_llama_3"
    title = "VideoLLaMA3"
    example = "lkhl/VideoLLaMA3-7B-Image-HF"
    after_media = "\n"
    tower_class = MeanTower
    dense_tokens = (1, 768)
    PREFIXES: ClassVar[dict[str, tuple[str, ...]]] = {
        "projector": ("model.projector.",),
        "tower": ("model.vision_model.",),
        "llm": ("model.language_model.", "lm_head."),
    }

    @property
    def tower(self) -> Any:
        return self.base.model.vision_model

    @property
    def group(self) -> int:
        return MERGE

    def project(self, features: torch.Tensor, counts: list[int]) -> torch.Tensor:
        return self.base.model.projector(features)

    def video_layout(self, counts: Sequence[int], seconds: Sequence[float]) -> Layout:
        layout: Layout = []
        for count, time in zip(counts, seconds, strict=True):
            layout += [f"{',' if layout else ''}Time {time:.1f}s:", count] if count else []
        return layout

    def dense_image(self, image: Image.Image, alone: bool) -> Media:
        inputs = self.image_processor(images=[image], return_tensors="pt")
        content = {name: inputs[name] for name in ("pixel_values", "image_grid_thw", "image_merge_sizes")}
        merged = content["image_merge_sizes"].long() ** 2
        return Media([int((content["image_grid_thw"].prod(dim=1) // merged).sum())], content)

    def dense_video(self, pixels: torch.Tensor, seconds: list[float]) -> Media:
        p, m = self._vision.patch_size, MERGE
        t, h, w = len(pixels), pixels.shape[2] // p, pixels.shape[3] // p
        rows = pixels.reshape(t, 3, h // m, m, p, w // m, m, p).permute(0, 2, 5, 3, 6, 1, 4, 7)
        content = {
            "pixel_values_videos": rows.reshape(t * h * w, -1),
            "video_grid_thw": torch.tensor([[t, h, w]]),
            "video_merge_sizes": torch.tensor([m]),
        }
        return Media(self.video_layout([h * w // m**2] * t, seconds), content)

    def dense_features(self, content: dict[str, Any]) -> torch.Tensor:
        kind = "video" if "pixel_values_videos" in content else "image"
        pixels = content["pixel_values_videos" if kind == "video" else "pixel_values"]
        grid, merges = (content[f"{kind}_{name}"].to(self.device) for name in ("grid_thw", "merge_sizes"))
        pixels = pixels.to(self.device, self.base.dtype)
        return joined_features(self.base.model.get_image_features(pixels, grid, merges))

    def chat(self, text: str, first: bool = True) -> str:
        return chatml(text, first)

    def answer(self, text: str) -> str:
        return f"{text}<|im_end|>"
