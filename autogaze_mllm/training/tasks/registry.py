"""A reconstruction task by its name."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ...gaze.autogaze.processor import AutoGazeImageProcessor
from ...gaze.grid import DEFAULT_GRID, PatchGrid
from .base import ReconstructionTask
from .mosaic_task import MosaicTask


def load_task(
    name: str,
    grid: PatchGrid | None = None,
    processor: AutoGazeImageProcessor | None = None,
    *,
    device: torch.device | str = "cpu",
    sample_rate: float | None = None,
    feature_models: Mapping[str, str] | None = None,
    changes: Mapping[str, str] | None = None,
) -> ReconstructionTask:
    """`mosaic`, or the folder or hub id of a VideoMAE; the rest is for the latter, see `VideoMAETask.from_pretrained`.

    grid: the one that it must be on, and that a plain ViT-MAE gets; None: the VideoMAE's own, or the published one.
    """
    if name == "mosaic":
        return MosaicTask(grid or DEFAULT_GRID, processor)
    from .videomae.task import VideoMAETask

    task = VideoMAETask.from_pretrained(
        name, device=device, sample_rate=sample_rate, feature_models=feature_models, changes=changes, grid=grid
    )
    if grid is not None:
        grid.check_same(task.grid, "the gaze model", name)
    return task
