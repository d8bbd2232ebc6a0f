"""The rival that serving engines offer: every patch goes through the tower, and tokens are dropped afterwards.

It saves the LLM's time and none of the tower's. Tokens of the first frame stay; of all others those stay that differ
most from the token at the same place one frame before (cosine of the projected features), until the share is reached.
This is the rule of Efficient Video Sampling (EVS) as vLLM offers it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ...common.errors import InputError
from ..grid import PatchGrid
from ..ratio import Ratio
from ..selection import GazingInfo, build_info
from ..token_map import TokenMap
from .base import Selector


class PostTowerSelector(Selector):
    """Keeps the finest scale whole, as the dense model sees it. `ratio` is the share of its tokens that is left after
    the tower; of a list, the mean."""

    name = "post-tower"
    thread_safe = True
    after_tower = True

    def identity(self) -> dict[str, Any]:
        return {"name": self.name}

    def select(self, frames: torch.Tensor, grid: PatchGrid, ratio: Ratio, loss: float | None) -> GazingInfo:
        batch, steps = frames.shape[:2]
        finest = torch.arange(grid.offsets[-2], grid.size, device=frames.device)
        ids = finest.repeat(steps).expand(batch, -1)
        return build_info(ids, torch.ones_like(ids, dtype=torch.bool), [len(finest)] * steps, grid, pad_id=-1)


def tokens_to_keep(tokens: torch.Tensor, video: TokenMap, share: float) -> torch.Tensor:
    """tokens (n, D) of a video of which the tower saw everything -> (n,) which are kept: share * n of them, rounded,
    and at least those of the first frame. Thumbnails stay whole.

    Raises InputError where tokens are not those of whole frames.
    """
    frames = len(video.counts) - video.thumbnails
    each = video.counts[0] if video.counts else 0
    if len(tokens) != len(video) or any(count != each for count in video.counts[:frames]):
        raise InputError("post-tower drops tokens of whole frames, each of one patch: this model joins or adds tokens")
    x = tokens[: frames * each].float().view(frames, each, -1)
    change = 1 - F.cosine_similarity(x[1:], x[:-1], dim=-1)
    score = torch.cat([change.new_full((1, each), torch.inf), change]).flatten()
    wanted = min(max(round(share * len(score)), each), len(score))
    kept = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    kept[score.topk(wanted).indices] = True
    kept[frames * each :] = True
    return kept
