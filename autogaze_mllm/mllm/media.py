"""One video or image of a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..gaze.gazed_video import GazedVideo
from .prompt_cache import PromptPrefix


@dataclass
class Media:
    """One video or image of a prompt. tokens: visual tokens that it takes in the prompt.

    content: a GazedVideo, the tensors that the base model's own vision path takes, or visual tokens (n, D) from the
    cache. cache_key: where the tokens of a gazed video are to be kept, if anywhere, as long as the model's vision state
    is still `cache_state`. prefix: what the LLM made of a prompt that began with it, where that is kept.
    """

    tokens: int
    content: GazedVideo | dict[str, Any] | torch.Tensor
    cache_key: str | None = None
    cache_state: str | None = None
    prefix: PromptPrefix | None = None
