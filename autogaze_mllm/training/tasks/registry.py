"""A reconstruction task by its name."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ...gaze.autogaze.processor import AutoGazeImageProcessor
from ...gaze.grid import PatchGrid
from .base import ReconstructionTask
from .mosaic import MosaicTask


def load_task(
    name: str,
    grid: PatchGrid,
    processor: AutoGazeImageProcessor | None = None,
    *,
    device: torch.device | str = "cpu",
    sample_rate: float = 1.0,
    feature_models: Mapping[str, str] | None = None,
    changes: Mapping[str, str] | None = None,
) -> ReconstructionTask:
    """`mosaic`, or the folder or hub id of a VideoMAE on the same grid; the rest is for the latter, see `VideoMAETask`.
    changes: of its configuration, `loss_type` and `loss_weights` above all."""
    if name == "mosaic":
        return MosaicTask(grid, processor)
    from .videomae.task import VideoMAETask

    task = VideoMAETask.from_pretrained(
        name, device=device, sample_rate=sample_rate, feature_models=feature_models, changes=changes
    )
    grid.check_same(task.grid, "the gaze model", name)
    return task
