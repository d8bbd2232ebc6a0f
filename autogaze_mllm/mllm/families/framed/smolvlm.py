"""SmolVLM, SmolVLM2 and Idefics3: r x r patches side by side become one token (pixel shuffle).

A frame stands between two markers; SmolVLM2 also says how many frames there are and the time of each. Idefics3 knows
images alone: a video is its frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image

from ...media import Layout, Media
from .base import FramedFamily

MARK = "<fake_token_around_image>"


class Idefics3Family(FramedFamily):
    model_type = "idefics3"
    title = "Idefics3"
    example = "HuggingFaceM4/Idefics3-8B-Llama3"
    after_media = ""
    PREFIXES: ClassVar[dict[str, tuple[str, ...]]] = {
        "projector": ("model.connector.",),
        "tower": ("model.vision_model.",),
        "llm": ("model.text_model.", "lm_head."),
    }

    @property
    def tower(self) -> Any:
        return self.base.model.vision_model

    @property
    def language_model(self) -> Any:
        return self.base.model.text_model

    @property
    def group(self) -> int:
        return self.config.scale_factor

    @property
    def feature_layers(self) -> Sequence[int | None]:
        return [None]

    def project(self, features: torch.Tensor, counts: list[int]) -> torch.Tensor:
        return self.base.model.connector(features).flatten(0, 1)  # each group as a picture of its own

    def frame(self, number: int, seconds: float, tokens: int) -> Layout:
        return picture(tokens)

    def dense_image(self, image: Image.Image, alone: bool) -> Media:
        inputs = self.image_processor(images=[image], return_tensors="pt", return_row_col_info=True)
        layout: Layout = []
        for row in range(inputs["rows"][0][0]):
            for column in range(inputs["cols"][0][0]):
                layout += [f"{MARK}<row_{row + 1}_col_{column + 1}>", self.per_picture]
            layout.append("\n")
        layout += ["\n"] if layout else []
        return Media([*layout, *picture(self.per_picture)], {"pixel_values": inputs["pixel_values"][0]})

    def dense_features(self, content: dict[str, Any]) -> torch.Tensor:
        return super().dense_features({"pixel_values": content["pixel_values"][None]})

    def dense_inputs(self, media: Sequence[Sequence[Media]]) -> dict[str, Any] | None:
        """(B, pictures, 3, S, S); prompts with fewer pictures get blank ones, which the base leaves out."""
        rows = [torch.cat([item.dense["pixel_values"] for item in items]) for items in media if items]
        if not rows or len(rows) < len(media):
            return None if rows else {}
        most = max(map(len, rows))
        filled = [torch.cat([row, row.new_zeros(most - len(row), *row.shape[1:])]) for row in rows]
        return {"pixel_values": torch.stack(filled).to(self.device)}

    def chat(self, text: str, first: bool = True) -> str:
        return f"{self.tokenizer.bos_token if first else ''}User:{text}<end_of_utterance>\nAssistant:"

    def answer(self, text: str) -> str:
        return f" {text}<end_of_utterance>\n"


class SmolVLMFamily(Idefics3Family):
    model_type = "smolvlm"
    title = "SmolVLM, SmolVLM2"
    example = "HuggingFaceTB/SmolVLM2-2.2B-Instruct"

    def video_layout(self, counts: list[int], seconds: list[float]) -> Layout:
        shown = [time for count, time in zip(counts, seconds, strict=True) if count]
        if not shown:
            return []
        times = sorted(set(seconds))  # thumbnails come after all frames, at times of theirs
        between = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.5
        whole = int(times[-1] + between)
        length = f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
        head = (
            f"You are provided the following series of {in_words(len(shown))} frames from a {length} [H:MM:SS] video.\n"
        )
        return [head, *super().video_layout(counts, seconds), "\n\n"]

    def frame(self, number: int, seconds: float, tokens: int) -> Layout:
        start, *rest = picture(tokens)
        return [f"\nFrame from {int(seconds // 60):02d}:{int(seconds % 60):02d}:{start}", *rest]


def picture(tokens: int) -> Layout:
    return [f"{MARK}<global-img>", tokens, MARK]


SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
ONES = tuple(SMALL.split(" "))
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def in_words(number: int) -> str:
    """English words for 0 <= number < 1,000,000, as the family's prompts write counts."""
    if number < 20:
        return ONES[number]
    if number < 100:
        ten = TENS[number // 10 - 2]
        return f"{ten}-{ONES[number % 10]}" if number % 10 else ten
    unit, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    head, rest = f"{in_words(number // unit)} {name}", number % unit
    if not rest:
        return head
    return f"{head} and {in_words(rest)}" if rest < 100 else f"{head}, {in_words(rest)}"
