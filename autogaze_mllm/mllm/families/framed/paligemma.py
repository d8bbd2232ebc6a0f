"""PaliGemma 1 and 2: a prefix LM. Pictures come first, and all of the prompt sees all of the prompt.

The base's `generate` takes no embeddings: visual tokens are put in by a hook. What the LLM makes of a video depends on
the question, so that questions cannot share it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...media import TAG, Layout
from .base import FramedFamily


class PaliGemmaFamily(FramedFamily):
    model_type = "paligemma"
    title = "PaliGemma, PaliGemma 2"
    example = "google/paligemma2-3b-mix-448"
    after_media = ""
    splice = "hook"
    share_prefix = False
    add_special_tokens = False

    @property
    def feature_layers(self) -> Sequence[int | None]:
        return [None]

    def project(self, features: torch.Tensor, counts: list[int]) -> torch.Tensor:
        return self.projector(features)

    def frame(self, number: int, seconds: float, tokens: int) -> Layout:
        return [tokens]

    def video_layout(self, counts: list[int], seconds: list[float]) -> Layout:
        return [sum(counts)] if sum(counts) else []

    def token_types(self, input_ids: torch.Tensor, answers: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """0: seen by all of the prompt, pictures included; 1: an answer, read from left to right."""
        return {"token_type_ids": torch.zeros_like(input_ids) if answers is None else answers.long()}

    def chat(self, text: str, first: bool = True) -> str:
        cut = max((match.end() for match in TAG.finditer(text)), default=0)
        return f"{text[:cut]}{self.tokenizer.bos_token}{text[cut:]}\n"
