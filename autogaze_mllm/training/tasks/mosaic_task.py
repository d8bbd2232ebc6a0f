"""The mosaic task: how well the picture painted from the kept patches shows the video. Closed form, no parameters.

The picture is that of `gaze.pictures.mosaic`: finer scales over coarser ones, over what earlier frames left. Its error
is summed once over *atoms*, the cells that the patch borders of all scales cut a frame into. Within an atom every patch
covers all or nothing, so painting a patch replaces a few of these sums, and the exact gain of every patch of a frame
is one small matrix product.

Shapes: B clips, T frames, N patches, S scales, A atoms.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch

from ...common.errors import InputError
from ...gaze.autogaze.processor import AutoGazeImageProcessor
from ...gaze.grid import PatchGrid
from ...gaze.pictures.mosaic import BLANK, Atoms, PatchPainter
from ...gaze.selection import read_selection
from ..config import MOSAIC_LOSS
from .base import GazeInput, TaskResult, kept_in_frames, trajectory_lengths

Measure = Literal["l1", "l2"]


class MosaicTask:
    """Errors are measured on the gaze model's preprocessed values, so that a loss means what it means for `l1` of the
    published task: 1 is about a ninth of the way from black to white.

    measure: mean absolute (`l1`) or mean squared (`l2`) difference over channels and pixels of a frame.
    """

    name = "mosaic"
    usual_loss = MOSAIC_LOSS

    def __init__(
        self, grid: PatchGrid, processor: AutoGazeImageProcessor | None = None, measure: Measure = "l1"
    ) -> None:
        if measure not in get_args(Measure):
            raise InputError(f"mosaic loss {measure!r} is not known; known: {', '.join(get_args(Measure))}")
        self.grid, self.measure = grid, measure
        self.processor = processor or AutoGazeImageProcessor()
        self._tables: dict[torch.device, MosaicTables] = {}

    def normalize(self, frames: torch.Tensor) -> torch.Tensor:
        return self.processor.normalize(frames)

    def denormalize(self, frames: torch.Tensor) -> torch.Tensor:
        zero, one = (self.normalize(frames.new_full((3, 1, 1), value)) for value in (0.0, 1.0))
        return (frames - zero) / (one - zero)

    def tables(self, device: torch.device) -> MosaicTables:
        if device not in self._tables:
            self._tables[device] = MosaicTables(self.grid, device)
        return self._tables[device]

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


class MosaicTables:
    """What depends on the grid alone.

    covers: (N, A) True where a patch lies; gather: (S * A, N) sums per-scale differences over each patch of its scale;
    scale: (N,) scale number of each patch.
    """

    def __init__(self, grid: PatchGrid, device: torch.device) -> None:
        self.painter = PatchPainter(grid, device)
        self.atoms = Atoms(self.painter)
        rows, columns = self.atoms.rows.of_cell, self.atoms.columns.of_cell
        cells = [torch.kron(r, c) for r, c in zip(rows, columns, strict=True)]  # per scale (n_s, A)
        self.covers = torch.cat(cells).bool()
        self.gather = torch.block_diag(*cells).T.contiguous()
        numbers = torch.arange(len(cells), device=device)
        self.scale = numbers.repeat_interleave(torch.tensor(grid.counts, device=device))
        self.scales = numbers[None, :, None]
        self.pixels = int(self.atoms.pixels.sum())

    def error(self, one: torch.Tensor, other: torch.Tensor, measure: Measure) -> torch.Tensor:
        """Images (B, 3, H, W) -> summed difference of each atom (B, A), mean over channels."""
        difference = (one - other).abs() if measure == "l1" else (one - other).square()
        # The order matters for speed: the sum over channels first, on contiguous rows.
        maps = difference.sum(dim=1) / one.shape[1]
        return (self.atoms.rows.members @ maps @ self.atoms.columns.members.T).flatten(1)


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
        measure = self.task.measure
        before = self.tables.error(wanted, self.canvas, measure)
        after = [self.tables.error(wanted, picture, measure) for picture in self.pictures]
        return MosaicFrame(self.tables, before, torch.stack(after, dim=1))

    def finish(self, frame: MosaicFrame) -> torch.Tensor:
        """Paints what was kept of the frame; the canvas (B, 3, H, W) is where the next frame starts."""
        masks = list(frame.chosen.float().split(list(self.task.grid.counts), dim=1))
        self.canvas = self.tables.painter.paint(self.canvas, self.pictures, masks)
        return self.canvas


class MosaicFrame:
    """One frame of B clips while patches are painted. error: (B, A) of the canvas; chosen: (B, N)."""

    def __init__(self, tables: MosaicTables, before: torch.Tensor, after: torch.Tensor) -> None:
        self.tables = tables
        self.error, self.after = before, after  # (B, A), (B, S, A)
        self.painted = torch.full_like(before, -1, dtype=torch.long)  # finest scale painted in this frame
        self.chosen = torch.zeros(len(before), len(tables.scale), dtype=torch.bool, device=before.device)
        self._rows = torch.arange(len(before), device=before.device)

    @property
    def loss(self) -> torch.Tensor:
        """(B,)"""
        return self.error.sum(dim=1) / self.tables.pixels

    def floor(self) -> torch.Tensor:
        """(B,) the loss that would be left if every place could be shown by the scale that shows it best, or stay as it
        is: 0 for a clean video, what noise leaves for a disturbed one. No selection does better."""
        best = torch.minimum(self.error, self.after.amin(dim=1))
        return best.sum(dim=1) / self.tables.pixels

    def gains(self) -> torch.Tensor:
        """(B, N) how much the frame's loss falls when each patch is painted next, -inf for those that are."""
        # A coarse patch is painted below finer ones of the same frame, so there it changes nothing.
        visible = self.painted[:, None] < self.tables.scales
        difference = (self.error[:, None] - self.after) * visible
        return (difference.flatten(1) @ self.tables.gather / self.tables.pixels).masked_fill(self.chosen, -torch.inf)

    def cell_errors(self) -> torch.Tensor:
        """(B, 1 + S, n_S) what each finest patch adds to the frame's loss: now, and as each scale would show it."""
        finest = self.tables.covers[self.tables.scale == len(self.tables.painter.axes) - 1].float()
        maps = torch.cat([self.error[:, None], self.after], dim=1)
        return maps @ finest.T / self.tables.pixels

    def paint(self, index: torch.Tensor, active: torch.Tensor) -> None:
        """index: (B,) patch to paint in every row; active: (B,) False leaves the row as it is."""
        scale = self.tables.scale[index][:, None]
        here = self.tables.covers[index] & (self.painted < scale) & active[:, None]
        self.error = torch.where(here, self.after[self._rows, scale[:, 0]], self.error)
        self.painted = torch.where(here, scale, self.painted)
        self.chosen[self._rows, index] |= active
