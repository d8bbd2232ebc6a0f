"""What `prepare` gives: tensors of the prompts together with their media, and the check that they stay together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import BatchFeature

from ...common.errors import InputError
from ..call_state import Stats
from ..families import Family
from ..media import Media

DENSE_INPUTS = ("pixel_values", "pixel_values_videos")


class MediaRows(list[list[Media]]):
    """The media of each prompt, in order. stats: what it cost to prepare them."""

    def __init__(self, rows: Iterable[list[Media]] = (), stats: Stats | None = None) -> None:
        super().__init__(rows)
        self.stats = stats or {}


class ModelInputs(BatchFeature):
    """input_ids, attention_mask (B, L) and media: `model(**inputs)` and `model.generate(**inputs)` take them.

    As transformers' processors give them: a mapping, whose entries are attributes too, and which moves with `.to`.
    """

    def to(self, *args: Any, **kwargs: Any) -> ModelInputs:
        """Tensors moved, and floats cast. Media stay where they are: they are moved where they are used."""
        media = self.data.pop("media", None)
        super().to(*args, **kwargs)
        if media is not None:
            self.data["media"] = media
        return self

    @property
    def stats(self) -> Stats:
        """What it cost to prepare them."""
        return getattr(self.data.get("media"), "stats", {})


def stats_of(media: Sequence[Sequence[Media]] | None) -> Stats:
    """Stats to begin a call with: a copy of what it cost to prepare its media, where they know it."""
    known: Stats = getattr(media, "stats", {})
    return {**known, "seconds": dict(known.get("seconds", {}))}


def check_media(media: Any) -> None:
    """Raises InputError for what is neither None nor media of prompts."""
    rows = media if isinstance(media, Sequence) else [None]
    fits = all(isinstance(row, Sequence) and all(isinstance(item, Media) for item in row) for row in rows)
    if media is not None and not fits:
        raise InputError("media must be what prepare() gave, together with its input_ids")


def check_complete(
    family: Family, input_ids: torch.Tensor | None, given: Mapping[str, Any], gazing: bool, generating: bool
) -> None:
    """For a call without media. Raises InputError when they were lost on the way, or would bypass gaze.

    given: what else the base is called with.
    """
    dense = [name for name in DENSE_INPUTS if given.get(name) is not None]
    if dense and gazing:
        raise InputError(f"{dense[0]} would bypass gaze: use prepare(), or `with model.disabled()` for the dense base")
    if dense or input_ids is None or given.get("inputs_embeds") is not None:
        return
    past = given.get("past_key_values")
    known = int(past.get_seq_length()) if generating and past is not None else 0  # what is not read any more
    lost = int(family.is_visual(input_ids[:, known:]).sum())
    if lost:
        raise InputError(
            f"input_ids hold {lost} placeholders of videos or images, but no media came with them: pass on all that "
            "prepare() gave (input_ids, attention_mask and media)"
        )
