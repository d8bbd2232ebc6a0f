"""Gemma 4: frames of any size, whose patches are averaged k x k, each with its time before it.

The base's `generate` takes no embeddings: visual tokens are put in by a hook, and types tell the LLM where they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image

from ....common.pixels import PixelFormat
from ....vision.any_size import PositionTower
from ...media import Layout, Media
from .base import AnySizeFamily, joined_features


class Gemma4Family(AnySizeFamily):
    model_type = "gemma4"
    title = "Gemma 4"
    example = "google/gemma-4-E4B-it"
    splice = "hook"
    tower_class = PositionTower
    dense_tokens = (1, 70)
    PREFIXES: ClassVar[dict[str, tuple[str, ...]]] = {
        "projector": ("model.embed_vision.",),
        "tower": ("model.vision_tower.",),
        "llm": ("model.language_model.", "lm_head."),
    }

    @property
    def group(self) -> int:
        return self._vision.pooling_kernel_size

    @property
    def pixels(self) -> PixelFormat:
        """The tower takes colours from 0 to 1."""
        return PixelFormat((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def project(self, features: torch.Tensor, counts: list[int]) -> torch.Tensor:
        return self.base.model.embed_vision(inputs_embeds=features)

    def _around(self) -> list[str]:
        """What stands before and after a picture."""
        return self.tokenizer.convert_ids_to_tokens([self.config.boi_token_id, self.config.eoi_token_id])

    def video_layout(self, counts: Sequence[int], seconds: Sequence[float]) -> Layout:
        layout: Layout = []
        start, end = self._around()
        for count, time in zip(counts, seconds, strict=True):
            between = f"{end} " if layout else ""
            layout += [f"{between}{int(time // 60):02d}:{int(time % 60):02d} {start}", count] if count else []
        return [*layout, end] if layout else []

    def token_types(self, input_ids: torch.Tensor, answers: torch.Tensor | None) -> dict[str, torch.Tensor]:
        kinds = torch.zeros_like(input_ids)
        kinds[input_ids == self.image_token_id] = 1
        kinds[input_ids == self.video_token_id] = 2
        return {"mm_token_type_ids": kinds}

    def dense_image(self, image: Image.Image, alone: bool) -> Media:
        inputs = self.image_processor(images=[image], return_tensors="pt")
        start, end = self._around()
        content = {name: inputs[name] for name in ("pixel_values", "image_position_ids")}
        return Media([start, int(inputs["num_soft_tokens_per_image"][0]), end], content)

    def dense_video(self, pixels: torch.Tensor, seconds: list[float]) -> Media:
        p = self._vision.patch_size
        t, h, w = len(pixels), pixels.shape[2] // p, pixels.shape[3] // p
        rows = pixels.reshape(t, 3, h, p, w, p).permute(0, 2, 4, 3, 5, 1).reshape(t, h * w, -1)
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        positions = torch.stack([x, y], dim=-1).reshape(1, -1, 2).expand(t, -1, -1)
        content = {"pixel_values_videos": rows, "video_position_ids": positions}
        if self._flat_frames:
            content["num_frames_per_video"] = torch.tensor([t])
        else:
            content = {name: value[None] for name, value in content.items()}
        return Media(self.video_layout([h * w // self.group**2] * t, seconds), content)

    @property
    def _flat_frames(self) -> bool:
        """Whether this version of transformers takes the frames of all videos one after the other."""
        return "num_frames_per_video" in inspect.signature(self.base.forward).parameters

    def dense_features(self, content: dict[str, Any]) -> torch.Tensor:
        device = self.device
        there = {name: value.to(device) for name, value in content.items()}
        if "pixel_values_videos" in there:
            return joined_features(self.base.model.get_video_features(**there))
        return joined_features(self.base.model.get_image_features(there["pixel_values"], there["image_position_ids"]))

    def chat(self, text: str, first: bool = True) -> str:
        start = self.tokenizer.bos_token if first else "\n"
        return f"{start}<|turn>user\n{text}<turn|>\n<|turn>model\n"

    def answer(self, text: str) -> str:
        return f"{text}<turn|>"
