"""What a selection is worth: the interface of the reconstruction tasks.

Shapes: B clips, T frames, R frames that are rebuilt, n selected entries over all frames, N patches per frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from ...gaze.grid import PatchGrid
from ...gaze.selection import GazingInfo, Selection

GazeInput = GazingInfo | dict[str, Any]


@dataclass(frozen=True)
class TaskResult:
    """frame_losses: (B, R), differentiable where the task is trained; frames: the R frame numbers, in the order asked
    for; reconstruction: (B, R, 3, H, W) in the task's values; task_losses, task_losses_mask: (B, n) the loss after
    each entry and where it is known; traj_len_each_reward: (R,) entries that each reward is about, padding counted;
    kept: (B, R) real entries in each rebuilt frame; gazing_ratio: kept entries / (B * T * N).
    """

    frame_losses: torch.Tensor
    frames: list[int]
    reconstruction: torch.Tensor
    task_losses: torch.Tensor
    task_losses_mask: torch.Tensor
    traj_len_each_reward: torch.Tensor
    kept: torch.Tensor
    gazing_ratio: float

    @property
    def loss(self) -> torch.Tensor:
        """(B,) mean over the rebuilt frames."""
        return self.frame_losses.mean(dim=1)

    @property
    def reward(self) -> torch.Tensor:
        """(B, R), no gradient."""
        return -self.frame_losses.detach()


class ReconstructionTask(Protocol):
    """A measure of how well the kept patches show the video.

    `grid`: the patches that it understands. `usual_loss`: where a frame is shown well enough, if nothing else is said.
    `normalize`: frames (..., 3, H, W) in [0, 1] -> the task's values, and
    `denormalize` back. Calling it measures a selection on `frames` (None: the task's default choice).
    """

    name: str
    grid: PatchGrid
    usual_loss: float

    def normalize(self, frames: torch.Tensor) -> torch.Tensor: ...

    def denormalize(self, frames: torch.Tensor) -> torch.Tensor: ...

    def __call__(self, video: torch.Tensor, info: GazeInput, frames: list[int] | None = None) -> TaskResult: ...


@runtime_checkable
class TrainableTask(Protocol):
    """A task with weights, on disk in folders. frozen: with the networks that it measures by and that never change,
    so that the folder needs nothing else."""

    def save_pretrained(self, folder: str | Path, *, frozen: bool = True) -> None: ...

    def load_weights(self, weights: Mapping[str, torch.Tensor], source: str) -> None: ...


def trajectory_lengths(counts: list[int], frames: list[int], device: torch.device) -> torch.Tensor:
    """(R,) entries of each rebuilt frame and all before it."""
    ends = torch.tensor(counts, device=device).cumsum(0)
    return ends[torch.tensor(frames, device=device)]


def kept_in_frames(selection: Selection, frames: list[int]) -> torch.Tensor:
    """(B, R) real entries of each of `frames`."""
    kept = [part.sum(dim=1) for part in selection.keep.split(selection.counts, dim=1)]
    return torch.stack([kept[frame] for frame in frames], dim=1)
