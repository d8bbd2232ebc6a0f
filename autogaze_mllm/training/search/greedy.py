"""Greedy search: which patch next? The one that lowers the frame's loss most, until a loss or a budget is reached.

The picks are the labels of next-token prediction. Ties go to the lower index, so that the same clip always has the
same labels.

Shapes: B clips, T frames, N patches of a frame, n entries over all frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...gaze.grid import PatchGrid
from ...gaze.pictures.gains import TIE, MosaicFrame, best_patch
from ...gaze.selection import read_selection
from ..tasks.base import GazeInput
from ..tasks.mosaic_task import MosaicTask, MosaicWalk

CHECK_EVERY = 8  # picks between two looks at whether a search on a GPU is done


@dataclass(frozen=True)
class SearchResult:
    """ids: (B, n) index within the frame, -1 where a row has fewer; losses: (B, n) the frame's loss after each entry
    (a row's last one repeated); counts: entries of each frame; gains: (B, n, N) how much each patch would have lowered
    the loss when the entry was picked; errors: (B, T, 1 + S, n_S) see `MosaicFrame.cell_errors`; both where asked for.
    floors: (B, T) `MosaicFrame.floor` of each frame, where the video is a disturbed version of a reference.
    """

    ids: torch.Tensor
    losses: torch.Tensor
    counts: list[int]
    gains: torch.Tensor | None = None
    errors: torch.Tensor | None = None
    floors: torch.Tensor | None = None

    @property
    def excess(self) -> torch.Tensor:
        """(B, n) the part of each loss that more patches could take away."""
        if self.floors is None:
            return self.losses
        counts = torch.tensor(self.counts, device=self.losses.device)
        return (self.losses - self.floors.repeat_interleave(counts, dim=1)).clamp(min=0)

    def entries(self) -> torch.Tensor:
        """(B, T) entries of each row and frame, up to its last real one, on the host."""
        parts = []
        for ids in self.ids.split(self.counts, dim=1):
            ranks = torch.arange(1, ids.shape[1] + 1, device=ids.device)
            parts.append(((ids >= 0) * ranks).amax(dim=1))
        return torch.stack(parts, dim=1).cpu()

    def rows(self, chosen: torch.Tensor, entries: torch.Tensor) -> SearchResult:
        """The rows `chosen` (b,), without the padding that only the others need. entries: of all rows, `entries()`."""
        starts = torch.tensor([0, *self.counts[:-1]]).cumsum(0).tolist()
        counts = entries[chosen].amax(dim=0).tolist()
        columns = torch.cat([torch.arange(s, s + count) for s, count in zip(starts, counts, strict=True)])
        index = chosen.to(self.ids.device)
        columns = columns.to(self.ids.device)

        def cut(values: torch.Tensor) -> torch.Tensor:
            return values[index][:, columns]

        return SearchResult(
            cut(self.ids),
            cut(self.losses),
            counts,
            None if self.gains is None else cut(self.gains),
            None if self.errors is None else self.errors[index],
            None if self.floors is None else self.floors[index],
        )

    def info(self, grid: PatchGrid) -> dict[str, torch.Tensor]:
        """In the form that the gaze model scores."""
        counts = torch.tensor(self.counts, device=self.ids.device)
        frame = torch.repeat_interleave(torch.arange(len(counts), device=self.ids.device), counts)
        padded = self.ids < 0
        return {
            "gazing_pos": torch.where(padded, -1, self.ids + frame * grid.size),
            "if_padded_gazing": padded,
            "num_gazing_each_frame": counts,
        }


@dataclass(frozen=True)
class ExplorationNoise:
    """Random picks in between, so that a model learns from states that its own mistakes lead to.

    share: (B,) of picks that are random; draws: (B, T, N, 2) uniform numbers in [0, 1), which patch and whether.
    """

    share: torch.Tensor
    draws: torch.Tensor

    def change(self, pick: torch.Tensor, chosen: torch.Tensor, frame: int, number: int) -> torch.Tensor:
        """pick: (B,), chosen: (B, N) -> picks, some replaced by a patch that is still free."""
        draws = self.draws[:, frame, number]
        other = (draws[:, 0] * chosen.shape[1]).long().clamp(max=chosen.shape[1] - 1)
        free = ~chosen.gather(1, other[:, None]).squeeze(1)
        return torch.where((draws[:, 1] < self.share) & free, other, pick)


@torch.no_grad()
def search_mosaic(
    task: MosaicTask,
    video: torch.Tensor,
    targets: torch.Tensor,
    budgets: torch.Tensor,
    disturbance: ExplorationNoise | None = None,
    with_gains: bool = False,
    reference: torch.Tensor | None = None,
    above_floor: bool = False,
) -> SearchResult:
    """video: (B, T, 3, H, W) normalised; targets, budgets: (B, T) the loss at which a frame is done, patches at most.

    Every frame has at least one entry. A frame also ends when no patch lowers its loss. reference: what the picture
    should show, where `video` is a disturbed version of it; above_floor: targets are then what is allowed beyond that
    which noise leaves (`MosaicFrame.floor`).
    """
    task.check(video)
    walk, record = MosaicWalk(task, video, reference), SearchRecord(with_gains)
    for t in range(video.shape[1]):
        frame = walk.next_frame()
        target = targets[:, t].to(video.device)
        floor = None if reference is None else frame.floor()
        record.begin(frame, floor)
        target = target + floor if above_floor and floor is not None else target
        _search_frame(frame, target, budgets[:, t], record, None if disturbance is None else (disturbance, t))
        walk.finish(frame)
    return record.result()


def _search_frame(
    frame: MosaicFrame,
    target: torch.Tensor,
    budget: torch.Tensor,
    record: SearchRecord,
    disturbance: tuple[ExplorationNoise, int] | None,
) -> None:
    """target, budget: (B,). disturbance: with the number of the frame."""
    most, limit = int(budget.max()), budget.to(target.device)
    active = torch.ones_like(target, dtype=torch.bool)
    # Asking a GPU whether any row goes on makes the host wait for it; entries after the last pick are dropped below.
    every = CHECK_EVERY if target.device.type != "cpu" else 1
    actives = []
    for number in range(most):
        gain = frame.gains()
        best, pick = best_patch(gain)
        if number:
            active = active & (best > TIE) & (frame.loss > target) & (number < limit)
            if number % every == 0 and not bool(active.any()):
                break
        if disturbance is not None:
            pick = disturbance[0].change(pick, frame.chosen, disturbance[1], number)
        frame.paint(pick, active)
        actives.append(active)
        record.add(torch.where(active, pick, -1), frame.loss, gain)
    record.end(int(torch.stack(actives).any(dim=1).sum()))


@torch.no_grad()
def follow_mosaic(
    task: MosaicTask, video: torch.Tensor, info: GazeInput, reference: torch.Tensor | None = None
) -> SearchResult:
    """The labels along a selection that is given, the model's own say: what each patch was worth, and the loss, after
    every entry. Arguments as in `search_mosaic`."""
    task.check(video)
    selection = read_selection(info, task.grid, "the search")
    walk, record = MosaicWalk(task, video, reference), SearchRecord(with_gains=True)
    indices = selection.index.split(selection.counts, dim=1)
    keeps = selection.keep.split(selection.counts, dim=1)
    for index, keep in zip(indices, keeps, strict=True):
        frame = walk.next_frame()
        record.begin(frame, None if reference is None else frame.floor())
        for column in range(index.shape[1]):
            gain = frame.gains()
            frame.paint(index[:, column], keep[:, column])
            record.add(torch.where(keep[:, column], index[:, column], -1), frame.loss, gain)
        record.end(index.shape[1])
        walk.finish(frame)
    return record.result()


class SearchRecord:
    """Collects a `SearchResult`, entry by entry."""

    def __init__(self, with_gains: bool) -> None:
        self.with_gains = with_gains
        self.ids: list[torch.Tensor] = []
        self.losses: list[torch.Tensor] = []
        self.gains: list[torch.Tensor] = []
        self.errors: list[torch.Tensor] = []
        self.floors: list[torch.Tensor] = []
        self.counts: list[int] = []

    def begin(self, frame: MosaicFrame, floor: torch.Tensor | None) -> None:
        if self.with_gains:
            self.errors.append(frame.cell_errors())
        if floor is not None:
            self.floors.append(floor)

    def add(self, ids: torch.Tensor, losses: torch.Tensor, gains: torch.Tensor) -> None:
        self.ids.append(ids)
        self.losses.append(losses)
        if self.with_gains:
            self.gains.append(gains)

    def end(self, count: int) -> None:
        """The frame has `count` entries; what was added after them is dropped."""
        total = sum(self.counts) + count
        for entries in (self.ids, self.losses, self.gains):
            del entries[total:]
        self.counts.append(count)

    def result(self) -> SearchResult:
        return SearchResult(
            torch.stack(self.ids, dim=1),
            torch.stack(self.losses, dim=1),
            self.counts,
            torch.stack(self.gains, dim=1) if self.with_gains else None,
            torch.stack(self.errors, dim=1) if self.with_gains else None,
            torch.stack(self.floors, dim=1) if self.floors else None,
        )
