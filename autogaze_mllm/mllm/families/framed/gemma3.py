"""Gemma 3: k x k patches are averaged into one token, and the tokens of a frame see each other.

The base's `generate` takes no embeddings: visual tokens are put in by a hook, and types tell the LLM where they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ....common.compute.offloading import present
from ...media import Layout
from .base import FramedFamily


class Gemma3Family(FramedFamily):
    model_type = "gemma3"
    title = "Gemma 3"
    example = "google/gemma-3-4b-it"
    after_media = ""
    splice = "hook"

    @property
    def group(self) -> int:
        patches = self.image_size // self.config.vision_config.patch_size
        return patches // round(self.config.mm_tokens_per_image**0.5)

    @property
    def feature_layers(self) -> Sequence[int | None]:
        return [None]

    def project(self, features: torch.Tensor, counts: list[int]) -> torch.Tensor:
        projector = self.projector
        with present(projector):
            weight = projector.mm_input_projection_weight
        return projector.mm_soft_emb_norm(features.mean(dim=1)) @ weight

    def frame(self, number: int, seconds: float, tokens: int) -> Layout:
        start, end = self.tokenizer.convert_ids_to_tokens([self.config.boi_token_index, self.config.eoi_token_index])
        return [f"\n\n{start}", tokens, f"{end}\n\n"]

    def image_layout(self, inputs: dict[str, Any]) -> Layout:
        """One picture; with pan and scan several, one after the other."""
        return self.frame(0, 0.0, self.per_picture) * len(inputs["pixel_values"])

    def token_types(self, input_ids: torch.Tensor, answers: torch.Tensor | None) -> dict[str, torch.Tensor]:
        return {"token_type_ids": self.is_visual(input_ids).long()}

    def chat(self, text: str, first: bool = True) -> str:
        start = self.tokenizer.bos_token if first else "\n"
        return f"{start}<start_of_turn>user\n{text}<end_of_turn>\n<start_of_turn>model\n"

    def answer(self, text: str) -> str:
        return f"{text}<end_of_turn>"
