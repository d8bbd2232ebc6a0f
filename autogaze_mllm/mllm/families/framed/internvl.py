"""InternVL (transformers' own layout, "-hf"): r x r patches side by side become one token (pixel shuffle), and every
frame of a video has its number before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...media import Layout
from ..chatml import chatml
from .base import FramedFamily


class InternVLFamily(FramedFamily):
    model_type = "internvl"
    title = "InternVL"
    example = "OpenGVLab/InternVL3-8B-hf"

    @property
    def group(self) -> int:
        return round(1 / self.config.downsample_ratio)

    @property
    def feature_layers(self) -> Sequence[int | None]:
        layers = super().feature_layers
        return [None] if layers == [-1] else layers  # the last one is taken after the tower's norm

    def project(self, features: torch.Tensor, counts: list[int]) -> torch.Tensor:
        return self.projector(features.flatten(1))

    def frame(self, number: int, seconds: float, tokens: int) -> Layout:
        between = "\n" if number else ""
        return [f"{between}Frame{number + 1}: <img>", tokens, "</img>"]

    def image_layout(self, inputs: dict[str, Any]) -> Layout:
        return ["<img>", *super().image_layout(inputs), "</img>"]

    def chat(self, text: str, first: bool = True) -> str:
        return chatml(text, first)

    def answer(self, text: str) -> str:
        return f"{text}<|im_end|>"
