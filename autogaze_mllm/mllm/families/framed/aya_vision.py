"""Aya Vision: r x r patches side by side become one token inside the projector. The base knows images alone; a video is
its frames."""

from __future__ import annotations

from typing import Any

import torch

from ...media import Layout
from .base import FramedFamily

TURN = "<|START_OF_TURN_TOKEN|>"
END = "<|END_OF_TURN_TOKEN|>"


class AyaVisionFamily(FramedFamily):
    model_type = "aya_vision"
    title = "Aya Vision"
    example = "CohereLabs/aya-vision-8b"
    after_media = ""

    @property
    def group(self) -> int:
        return self.config.downsample_factor

    def project(self, features: torch.Tensor, counts: list[int]) -> torch.Tensor:
        return self.projector(features).flatten(0, 2)  # each group as a picture of its own

    def frame(self, number: int, seconds: float, tokens: int) -> Layout:
        return ["<|START_OF_IMG|>TILE_GLOBAL", tokens, "<|END_OF_IMG|>"]

    def image_layout(self, inputs: dict[str, Any]) -> Layout:
        layout: Layout = ["<|START_OF_IMG|>"]
        for tile in range(len(inputs["pixel_values"]) - 1):
            layout += [f"TILE_{tile + 1}", self.per_picture]
        return [*layout, "TILE_GLOBAL", self.per_picture, "<|END_OF_IMG|>"]

    def chat(self, text: str, first: bool = True) -> str:
        start = self.tokenizer.bos_token if first else ""
        return f"{start}{TURN}<|USER_TOKEN|>{text}{END}{TURN}<|CHATBOT_TOKEN|>"

    def answer(self, text: str) -> str:
        return f"{text}{END}"
