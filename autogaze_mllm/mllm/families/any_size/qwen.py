"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5 and 3.6, and their mixtures of experts.

A video is looked at in pairs of frames (tubelets), at its own shape: both frames of a pair keep what either of them
chose, whole groups of patches of which each becomes one token, in raster order. The towers are called as they are.
Qwen2-VL and 2.5-VL write a video as one run of placeholders, the later ones every tubelet with its time before it.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import nn

from ....gaze.settings import VideoSettings
from ....vision.any_size import AnySizeTower, TableTower, WindowTower
from ...media import Layout, Media
from ..chatml import chatml
from .base import AnySizeFamily, joined_features
from .mrope import TextAfter, mrope_positions

START, END = "<|vision_start|>", "<|vision_end|>"


class QwenFamily(AnySizeFamily):
    """Qwen2-VL; the others say where they differ."""

    model_type = "qwen2_vl"
    title = "Qwen2-VL"
    example = "Qwen/Qwen2-VL-7B-Instruct"
    run_per_tubelet: ClassVar[bool] = False
    text_after_video: TextAfter = "installed"  # of gazed videos that are long; set it on a model's family
    tower_class = AnySizeTower
    dense_tokens = (128, 768)
    PREFIXES: ClassVar[dict[str, tuple[str, ...]]] = {
        "projector": ("model.visual.merger.", "model.visual.deepstack_merger_list."),
        "tower": ("model.visual.",),
        "llm": ("model.language_model.", "lm_head."),
    }

    def __init__(self, base: Any, preprocessing: Any) -> None:
        super().__init__(base, preprocessing)
        self.deepstack = len(getattr(self.tower, "deepstack_merger_list", ()))

    @classmethod
    def default_settings(cls) -> VideoSettings:
        return VideoSettings(max_tiles=4, enlarge=False)  # about the tokens that a dense frame may have

    # -- parts ---------------------------------------------------------------------------------------------------

    @property
    def tower(self) -> nn.Module:
        return self.base.model.visual

    @property
    def group(self) -> int:
        return self._vision.spatial_merge_size

    @property
    def tubelet(self) -> int:
        return self._vision.temporal_patch_size

    def project(self, features: torch.Tensor, counts: list[int]) -> torch.Tensor:
        return features  # the tower ends with its own merger

    # -- what the LLM is given -----------------------------------------------------------------------------------

    def video_layout(self, counts: Sequence[int], seconds: Sequence[float]) -> Layout:
        return [START, sum(counts), END] if sum(counts) else []

    def llm_inputs(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        media: Sequence[Sequence[Media]],
        answers: torch.Tensor | None,
    ) -> dict[str, Any]:
        positions = mrope_positions(
            self,
            input_ids,
            attention_mask,
            media,
            merge=self.group,
            run_per_tubelet=self.run_per_tubelet,
            text_after=self.text_after_video,
        )
        return {"position_ids": positions}

    def token_types(self, input_ids: torch.Tensor, answers: torch.Tensor | None) -> dict[str, torch.Tensor]:
        kinds = torch.zeros_like(input_ids)
        kinds[input_ids == self.image_token_id] = 1
        kinds[input_ids == self.video_token_id] = 2
        return {"mm_token_type_ids": kinds}

    # -- the base model's own way --------------------------------------------------------------------------------

    def dense_image(self, image: Image.Image, alone: bool) -> Media:
        inputs = self.image_processor(images=[image], return_tensors="pt")
        content = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
        return Media([START, int(content["image_grid_thw"].prod()) // self.group**2, END], content)

    def dense_video(self, pixels: torch.Tensor, seconds: list[float]) -> Media:
        f, p, m = self.tubelet, self._vision.patch_size, self.group
        missing = -len(pixels) % f
        pixels, times = torch.cat([pixels, *[pixels[-1:]] * missing]), [*seconds, *seconds[-1:] * missing]
        t, h, w = len(pixels) // f, pixels.shape[2] // p, pixels.shape[3] // p
        rows = pixels.reshape(t, f, 3, h // m, m, p, w // m, m, p).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        content = {
            "pixel_values_videos": rows.reshape(t * h * w, -1),
            "video_grid_thw": torch.tensor([[t, h, w]]),
        }
        if "second_per_grid_ts" in inspect.signature(self.base.forward).parameters:
            between = (seconds[-1] - seconds[0]) / (len(seconds) - 1) if len(seconds) > 1 else 0.5
            content["second_per_grid_ts"] = torch.tensor([f * between])
        means = [sum(times[k * f : (k + 1) * f]) / f for k in range(t)]
        return Media(self.video_layout([h * w // m**2] * t, means), content)

    def dense_features(self, content: dict[str, Any]) -> torch.Tensor:
        device, dtype = self.device, self.base.dtype
        if "pixel_values_videos" in content:
            pixels, grid = content["pixel_values_videos"], content["video_grid_thw"]
            found = self.base.get_video_features(pixels.to(device, dtype), grid.to(device))
        else:
            pixels, grid = content["pixel_values"], content["image_grid_thw"]
            found = self.base.get_image_features(pixels.to(device, dtype), grid.to(device))
        return joined_features(found)

    def chat(self, text: str, first: bool = True) -> str:
        return chatml(text, first)

    def answer(self, text: str) -> str:
        return f"{text}<|im_end|>"


class Qwen25Family(QwenFamily):
    model_type = "qwen2_5_vl"
    title = "Qwen2.5-VL"
    example = "Qwen/Qwen2.5-VL-7B-Instruct"
    tower_class = WindowTower


class Qwen3Family(QwenFamily):
    model_type = "qwen3_vl"
    title = "Qwen3-VL"
    example = "Qwen/Qwen3-VL-8B-Instruct"
    tower_class = TableTower
    run_per_tubelet = True

    def video_layout(self, counts: Sequence[int], seconds: Sequence[float]) -> Layout:
        layout: Layout = []
        for count, time in zip(counts, seconds, strict=True):
            layout += [f"<{time:.1f} seconds>{START}", count, END] if count else []
        return layout


class Qwen3MoeFamily(Qwen3Family):
    model_type = "qwen3_vl_moe"
    title = "Qwen3-VL, mixture of experts"
    example = "Qwen/Qwen3-VL-30B-A3B-Instruct"


class Qwen35Family(Qwen3Family):
    model_type = "qwen3_5"
    title = "Qwen3.5, Qwen3.6"
    example = "Qwen/Qwen3.5-9B"


class Qwen35MoeFamily(Qwen3Family):
    model_type = "qwen3_5_moe"
    title = "Qwen3.5 and Qwen3.6, mixture of experts"
    example = "Qwen/Qwen3.5-35B-A3B"
