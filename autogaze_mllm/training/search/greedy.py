"""Greedy search: which patch next? The one that lowers the frame's loss most, until a loss or a budget is reached.

The picks are the labels of next-token prediction. Ties go to the lower index, so that the same clip always has the
same labels.

Shapes: B clips, T frames, N patches of a frame, n entries over all frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...gaze.grid import PatchGrid
from ..tasks.mosaic import MosaicTask, MosaicWalk

TIE = 1e-6  # gains that differ by less are the same: rounding must not decide


@dataclass(frozen=True)
class SearchResult:
    """ids: (B, n) index within the frame, -1 where a row has fewer; losses: (B, n) the frame's loss after each entry
    (a row's last one repeated); counts: entries of each frame; gains: (B, n, N) how much each patch would have lowered
    the loss when the entry was picked; errors: (B, T, 1 + S, n_S) see `MosaicFrame.cell_errors`; both where asked for.
    """

    ids: torch.Tensor
    losses: torch.Tensor
    counts: list[int]
    gains: torch.Tensor | None = None
    errors: torch.Tensor | None = None

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
class Disturbance:
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


def best_patch(gain: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, N) -> the largest gain and the first patch that has it, both (B,)."""
    best = gain.amax(dim=1)
    near = gain >= (best - TIE - 1e-4 * best.abs())[:, None]
    return best, near.to(torch.uint8).argmax(dim=1)


@torch.no_grad()
def search_mosaic(
    task: MosaicTask,
    video: torch.Tensor,
    targets: torch.Tensor,
    budgets: torch.Tensor,
    disturbance: Disturbance | None = None,
    with_gains: bool = False,
) -> SearchResult:
    """video: (B, T, 3, H, W) normalised; targets, budgets: (B, T) the loss at which a frame is done, patches at most.

    Every frame has at least one entry. A frame also ends when no patch lowers its loss.
    """
    task.check(video)
    batch, steps = video.shape[:2]
    walk = MosaicWalk(task, video)
    ids: list[torch.Tensor] = []
    losses: list[torch.Tensor] = []
    gains: list[torch.Tensor] = []
    errors: list[torch.Tensor] = []
    counts: list[int] = []
    for t in range(steps):
        frame = walk.next_frame()
        if with_gains:
            errors.append(frame.cell_errors())
        active = torch.ones(batch, dtype=torch.bool, device=video.device)
        limit, target = budgets[:, t].to(video.device), targets[:, t].to(video.device)
        for number in range(int(budgets[:, t].max())):
            gain = frame.gains()
            best, pick = best_patch(gain)
            if number:
                active = active & (best > TIE) & (frame.loss > target) & (number < limit)
                if not bool(active.any()):
                    break
            if disturbance is not None:
                pick = disturbance.change(pick, frame.chosen, t, number)
            frame.paint(pick, active)
            ids.append(torch.where(active, pick, -1))
            losses.append(frame.loss)
            if with_gains:
                gains.append(gain)
        walk.finish(frame)
        counts.append(len(ids) - sum(counts))
    return SearchResult(
        torch.stack(ids, dim=1),
        torch.stack(losses, dim=1),
        counts,
        torch.stack(gains, dim=1) if with_gains else None,
        torch.stack(errors, dim=1) if with_gains else None,
    )
