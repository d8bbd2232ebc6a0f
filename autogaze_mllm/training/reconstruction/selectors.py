"""What selections are measured beside models: greedy search as a selector, and losses in a selector's own unit."""

from __future__ import annotations

from typing import Any

import torch

from ...gaze.autogaze.model import AutoGaze
from ...gaze.grid import DEFAULT_GRID, PatchGrid
from ...gaze.ratio import Ratio, patches_per_frame
from ...gaze.selection import GazingInfo, build_info
from ...gaze.selectors.base import PIXEL_LOSS, AnySelector, Selector, as_selector
from ..search.greedy import search_mosaic
from ..tasks.base import ReconstructionTask
from ..tasks.mosaic_task import MosaicTask


class GreedySelector(Selector):
    """The search that labels come from, as a selector: it looks at the video that is to be rebuilt."""

    name = "greedy"
    default_loss = 0.2

    def identity(self) -> dict[str, Any]:
        return {"name": self.name}

    def select(self, frames: torch.Tensor, grid: PatchGrid, ratio: Ratio, loss: float | None) -> GazingInfo:
        task = MosaicTask(grid)
        budgets = patches_per_frame(ratio, grid.size, *frames.shape[:2])
        found = search_mosaic(task, task.normalize(frames), torch.full(budgets.shape, loss or 0.0), budgets)
        return build_info(found.ids.clamp(min=0), found.ids >= 0, found.counts, grid, pad_id=-1)


def own_unit(selector: AnySelector, loss: float | None, task: ReconstructionTask) -> float | None:
    """A loss of the task in the unit of the selector's stop rule: pixel-diff counts black to white as 1."""
    if loss is None or as_selector(selector).loss_unit != PIXEL_LOSS:
        return loss
    ends = [task.normalize(torch.full((3, 1, 1), value)) for value in (0.0, 1.0)]
    return loss / float((ends[1] - ends[0]).mean())


def default_task(selector: AnySelector) -> MosaicTask:
    """The mosaic on the gaze model's own grid and values."""
    if isinstance(selector, AutoGaze):
        return MosaicTask(selector.grid, selector.processor)
    return MosaicTask(DEFAULT_GRID)
