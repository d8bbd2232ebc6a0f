"""What other selectors keep to show a clip as well as a selection does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...gaze.selection import GazingInfo
from ...gaze.selectors.baselines import RandomSelector
from ...gaze.selectors.pixel_diff import PixelDiffSelector
from ..search.greedy import search_mosaic
from ..tasks.mosaic_task import MosaicTask
from .scores import ClipScore

ROUNDS = 9  # halvings of the span that holds the strength looked for


@dataclass(frozen=True)
class Matched:
    """Patches that a clip's selection keeps, and those that others keep to be no worse on average over its frames."""

    loss: float
    patches: int
    greedy: int
    random: int
    pixel_diff: int


@torch.no_grad()
def match(clip: torch.Tensor, score: ClipScore, task: MosaicTask, device: torch.device) -> Matched:
    """greedy: the search that reaches the loss of every frame. random, pixel_diff: the fewest patches at which the mean
    loss is no larger, over the ratio and over the loss to stop at."""
    frames = clip[None].to(device).float() / 255
    video, wanted = task.normalize(frames), score.mean("loss")
    targets = torch.tensor([[frame.loss for frame in score.frames]], device=device)
    found = search_mosaic(task, video, targets + 1e-6, torch.full(targets.shape, task.grid.size))

    def random(share: float) -> tuple[int, float]:
        return _measured(task, video, RandomSelector().select(frames, task.grid, share, None))

    def pixel_diff(share: float) -> tuple[int, float]:
        stop = 0.5 * (1 - share) ** 3  # finer steps where the rule is strict
        return _measured(task, video, PixelDiffSelector().select(frames, task.grid, 1.0, stop))

    return Matched(
        loss=wanted,
        patches=score.patches,
        greedy=int((found.ids >= 0).sum()),
        random=_fewest(random, wanted),
        pixel_diff=_fewest(pixel_diff, wanted),
    )


def _measured(task: MosaicTask, video: torch.Tensor, info: GazingInfo) -> tuple[int, float]:
    result = task(video, info)
    return int(result.kept.sum()), float(result.loss.mean())


def _fewest(measure: Callable[[float], tuple[int, float]], wanted: float) -> int:
    """Bisects the strength in (0, 1]; keeps the fewest patches that were good enough."""
    low, high, best = 0.0, 1.0, measure(1.0)[0]
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        patches, loss = measure(middle)
        if loss <= wanted:
            high, best = middle, min(best, patches)
        else:
            low = middle
    return best
