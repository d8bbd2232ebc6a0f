"""One video or image of a prompt."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..gaze.gazed_video import GazedVideo
from ..gaze.token_map import TokenMap

if TYPE_CHECKING:
    from .prompts.prompt_cache import PromptPrefix

TAG = re.compile(r"(?<!\\)<(video|image)>")  # where a medium stands in a prompt; after a backslash it is text
Layout = list[str | int]  # text between pictures, and how many placeholders stand for each


@dataclass
class Media:
    """One video or image of a prompt.

    layout: what it becomes in the prompt: pieces of text, and runs of placeholders by their length.
    content: a GazedVideo, the tensors that the base model's own vision path takes, or visual tokens (n, D) from the
    cache. token_map: where the tokens of a gazed video lie. cache_key: where they are to be kept, if anywhere, as long
    as the model's vision state is still `cache_state`. prefix: what the LLM made of a prompt that began with it, where
    that is kept.
    """

    layout: Layout
    content: GazedVideo | dict[str, Any] | torch.Tensor
    token_map: TokenMap | None = None
    cache_key: str | None = None
    cache_state: str | None = None
    prefix: PromptPrefix | None = None

    @property
    def runs(self) -> list[int]:
        """Lengths of the runs of placeholders."""
        return [piece for piece in self.layout if isinstance(piece, int)]

    @property
    def tokens(self) -> int:
        """Visual tokens that it takes in the prompt."""
        return sum(self.runs)

    @property
    def dense(self) -> dict[str, Any]:
        """What the base model's own vision path takes; nothing where the medium was gazed."""
        return self.content if isinstance(self.content, dict) else {}
