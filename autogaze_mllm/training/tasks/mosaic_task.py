"""The mosaic task: how well the picture painted from the kept patches shows the video. Closed form, no parameters.

The picture is that of `gaze.pictures.mosaic`: finer scales over coarser ones, over what earlier frames left; what each
patch would bring is worked out in `gaze.pictures.gains`.

Shapes: B clips, T frames, N patches, S scales.
"""

from __future__ import annotations

from typing import get_args

import torch

from ...common.errors import InputError
from ...gaze.autogaze.config import MOSAIC_TASK
from ...gaze.autogaze.processor import AutoGazeImageProcessor
from ...gaze.grid import PatchGrid
from ...gaze.pictures.gains import Measure, MosaicFrame, MosaicTables, mosaic_tables
from ...gaze.pictures.mosaic import BLANK
from ...gaze.selection import read_selection
from ..config import MOSAIC_LOSS
from .base import GazeInput, TaskResult, kept_in_frames, trajectory_lengths


class MosaicTask:
    """Errors are measured on the gaze model's preprocessed values, so that a loss means what it means for `l1` of the
    published task: 1 is about a ninth of the way from black to white.

    measure: mean absolute (`l1`) or mean squared (`l2`) difference over channels and pixels of a frame.
    """

    name = MOSAIC_TASK
    usual_loss = MOSAIC_LOSS

    def __init__(
        self, grid: PatchGrid, processor: AutoGazeImageProcessor | None = None, measure: Measure = "l1"
    ) -> None:
        if measure not in get_args(Measure):
            raise InputError(f"mosaic loss {measure!r} is not known; known: {', '.join(get_args(Measure))}")
        self.grid, self.measure = grid, measure
        self.processor = processor or AutoGazeImageProcessor()

    def normalize(self, frames: torch.Tensor) -> torch.Tensor:
        return self.processor.normalize(frames)

    def denormalize(self, frames: torch.Tensor) -> torch.Tensor:
        zero, one = (self.normalize(frames.new_full((3, 1, 1), value)) for value in (0.0, 1.0))
        return (frames - zero) / (one - zero)

    def tables(self, device: torch.device) -> MosaicTables:
        return mosaic_tables(self.grid, device)

    def blank(self, like: torch.Tensor) -> torch.Tensor:
        """The canvas before the first frame, for frames (B, 3, H, W)."""
        return self.normalize(torch.full_like(like, BLANK))

    def check(self, video: torch.Tensor) -> None:
        if video.ndim != 5 or tuple(video.shape[-2:]) != self.grid.scales[-1]:
            raise InputError(f"mosaic: video {tuple(video.shape)} is not (B, T, 3, H, W) at the size of {self.grid}")

    @torch.no_grad()
    def __call__(
        self,
        video: torch.Tensor,
        info: GazeInput,
        frames: list[int] | None = None,
        reference: torch.Tensor | None = None,
    ) -> TaskResult:
        """video: (B, T, 3, H, W), normalised, at the grid's largest scale. The loss after every entry is known.

        reference: what the picture should show, as `video`, where that is a disturbed version of it.
        """
        self.check(video)
        selection = read_selection(info, self.grid, "the mosaic task")
        walk = MosaicWalk(self, video, reference)
        losses, pictures = [], []
        indices = selection.index.split(selection.counts, dim=1)
        keeps = selection.keep.split(selection.counts, dim=1)
        for index, keep in zip(indices, keeps, strict=True):
            frame = walk.next_frame()
            for column in range(index.shape[1]):
                frame.paint(index[:, column], keep[:, column])
                losses.append(frame.loss)
            pictures.append((frame.loss, walk.finish(frame)))
        chosen = list(range(video.shape[1])) if frames is None else frames
        if not chosen or min(chosen) < 0 or max(chosen) >= len(pictures):
            raise InputError(f"mosaic: frames {chosen} to rebuild are not among the {len(pictures)} of the clip")
        mask = torch.isin(selection.frame, torch.tensor(chosen, device=video.device))
        return TaskResult(
            frame_losses=torch.stack([pictures[t][0] for t in chosen], dim=1),
            frames=chosen,
            reconstruction=torch.stack([pictures[t][1] for t in chosen], dim=1),
            task_losses=torch.stack(losses, dim=1) if losses else video.new_zeros(len(video), 0),
            task_losses_mask=mask.float().expand(len(video), -1),
            traj_len_each_reward=trajectory_lengths(selection.counts, chosen, video.device),
            kept=kept_in_frames(selection, chosen),
            gazing_ratio=float(selection.keep.sum()) / (video.shape[0] * video.shape[1] * self.grid.size),
        )


class MosaicWalk:
    """Goes through the frames of clips (B, T, 3, H, W), painting as it is told.

    Patches are painted as `video` shows them; errors are those against `reference` (None: against the same video).
    """

    def __init__(self, task: MosaicTask, video: torch.Tensor, reference: torch.Tensor | None = None) -> None:
        self.task, self.video = task, video
        self.reference = video if reference is None else reference
        task.check(self.reference)
        self.tables = task.tables(video.device)
        self.canvas = task.blank(video[:, 0])
        self.number = -1
        self.pictures: list[torch.Tensor] = []

    def next_frame(self) -> MosaicFrame:
        self.number += 1
        wanted = self.reference[:, self.number]
        self.pictures = self.tables.painter.pictures(self.video[:, self.number])
        return MosaicFrame(self.tables, *self.tables.errors(wanted, self.canvas, self.pictures, self.task.measure))

    def finish(self, frame: MosaicFrame) -> torch.Tensor:
        """Paints what was kept of the frame; the canvas (B, 3, H, W) is where the next frame starts."""
        self.canvas = frame.painted_on(self.canvas, self.pictures)
        return self.canvas
