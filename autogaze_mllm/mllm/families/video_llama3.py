"""VideoLLaMA3: frames of any size, whose patches are averaged 2 x 2, each with its time before it. Images are not
averaged, and keep the base model's own path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image

from ...gaze.grid import PatchGrid
from ...vision.any_size import MeanTower
from ..media import Layout, Media
from .nvila import chatml
from .qwen import QwenFamily

MERGE = 2  # of videos, by the published preprocessing; the configuration does not have it


class VideoLlama3Family(QwenFamily):
    model_type = "video_llama_3"
    title = "VideoLLaMA3"
    example = "lkhl/VideoLLaMA3-7B-Image-HF"
    after_media = "\n"
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

    def make_tower(self, grid: PatchGrid, **options: Any) -> MeanTower:
        self._check_options(options)
        return MeanTower(self.tower, self._vision.patch_size, MERGE, 1, grid.cells, options["scales"])

    def project(self, features: torch.Tensor, counts: list[int]) -> torch.Tensor:
        return self.base.model.projector(features)

    def _video_layout(self, counts: Sequence[int], seconds: Sequence[float]) -> Layout:
        layout: Layout = []
        for count, time in zip(counts, seconds, strict=True):
            layout += [f"{',' if layout else ''}Time {time:.1f}s:", count] if count else []
        return layout

    def llm_inputs(self, *prompts: Any) -> dict[str, Any]:
        return {}

    def token_types(self, input_ids: torch.Tensor, answers: torch.Tensor | None) -> dict[str, torch.Tensor]:
        return {}

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
        return Media(self._video_layout([h * w // m**2] * t, seconds), content)

    def dense_count(self, frames: int, grid: PatchGrid | None = None) -> int:
        return frames * (grid.counts[-1] if grid is not None else 0)

    def dense_features(self, content: dict[str, Any]) -> torch.Tensor:
        kind = "video" if "pixel_values_videos" in content else "image"
        pixels = content["pixel_values_videos" if kind == "video" else "pixel_values"]
        grid, merges = (content[f"{kind}_{name}"].to(self.base.device) for name in ("grid_thw", "merge_sizes"))
        found = self.base.model.get_image_features(pixels.to(self.base.device, self.base.dtype), grid, merges)
        tokens = found.pooler_output
        return tokens if isinstance(tokens, torch.Tensor) else torch.cat(list(tokens))

    def chat(self, text: str, first: bool = True) -> str:
        return chatml(text, first)
