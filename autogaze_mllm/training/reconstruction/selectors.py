"""The task that a selector is measured by, and its losses in the selector's own unit."""

from __future__ import annotations

import torch

from ...gaze.autogaze.model import AutoGaze
from ...gaze.grid import DEFAULT_GRID
from ...gaze.selectors.base import PIXEL_LOSS, AnySelector, as_selector
from ..tasks.base import ReconstructionTask
from ..tasks.mosaic_task import MosaicTask


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
