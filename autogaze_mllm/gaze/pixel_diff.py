"""`pixel-diff`: a training-free selector that keeps what differs from what has been kept so far.

Every frame starts from the canvas that the patches kept in earlier frames painted (block-causal in time). Patches of all
scales compete by how much squared error they take away; coarse ones win where a coarse picture is enough, finer ones
follow where detail is missing. A frame is finished when it has spent its budget, or when no place of the size of one
finest patch is off by more than `loss`.
"""

from __future__ import annotations

import torch

from .budget import Ratio, patches_per_frame
from .grid import PatchGrid, mask_to_positions
from .info import GazingInfo, build_info
from .mosaic import BLANK, PatchPainter

MAX_ROUNDS = 24  # each round takes every patch that beats all patches it overlaps; 4 to 10 rounds are usual


class PixelDiffSelector:
    """`loss`: root mean square error, on a scale where black to white is 1, that a place may be off by."""

    name = "pixel-diff"
    default_loss = 0.06

    def select(self, frames: torch.Tensor, grid: PatchGrid, ratio: Ratio, loss: float | None) -> GazingInfo:
        """frames (B, T, 3, H, W) in [0, 1] at the grid's largest scale; loss None: only the budget ends a frame."""
        frames = frames.float()
        batch, steps = frames.shape[:2]
        budgets = patches_per_frame(ratio, grid.size, batch, steps).to(frames.device)
        painter = PatchPainter(grid, frames.device)
        canvas = torch.full_like(frames[:, 0], BLANK)
        ids, keeps = [], []
        for t in range(steps):
            pictures = painter.pictures(frames[:, t])
            mask = _choose(painter, canvas, frames[:, t], pictures, budgets[:, t], loss)
            canvas = painter.paint(canvas, pictures, list(mask.split(list(grid.counts), dim=1)))
            index, padded = mask_to_positions(mask)
            ids.append(index.clamp(min=0))
            keeps.append(~padded)
        return build_info(
            torch.cat(ids, dim=1), torch.cat(keeps, dim=1), [part.shape[1] for part in ids], grid, pad_id=-1,
            has_task_loss_requirement=loss is not None,
        )


def _choose(painter: PatchPainter, canvas: torch.Tensor, frame: torch.Tensor, pictures: list[torch.Tensor],
            budgets: torch.Tensor, loss: float | None) -> torch.Tensor:
    """-> (B, N) 0/1, at least one patch and at most `budgets` (B,) per row."""
    grid, batch = painter.grid, len(frame)
    before = (frame - canvas).square().mean(dim=1)  # (B, H, W)
    after = [(frame - picture).square().mean(dim=1) for picture in pictures]
    areas = [painter.sums(torch.ones_like(before), scale) for scale in range(len(pictures))]
    painted = torch.full_like(before, -1)  # finest scale painted in this frame
    chosen = torch.zeros(batch, grid.size, device=frame.device)
    finest = len(pictures) - 1
    for number in range(MAX_ROUNDS):
        wrong = painter.sums(before, finest) / areas[finest].clamp(min=1)
        bad = wrong > (0.0 if loss is None else loss) ** 2
        bad_pixels = painter.spread(bad.float(), finest)
        gains = []
        for scale in range(len(pictures)):
            # A coarse patch is painted below finer ones of the same frame, so there it changes nothing.
            gain = painter.sums((before - after[scale]) * (painted < scale), scale)
            useful = painter.sums(bad_pixels, scale) > 0
            gains.append(gain.masked_fill(~useful, 0.0))
        gain = torch.cat(gains, dim=1).masked_fill(chosen > 0, 0.0)
        if number == 0:
            # Every frame keeps at least one patch, as with the gaze model: the best of all if nothing is wrong.
            first = torch.cat([painter.sums(before - a, s) for s, a in enumerate(after)], dim=1).argmax(dim=1, keepdim=True)
            lost = (gain <= 0).all(dim=1, keepdim=True)
            gain = gain.scatter_add(1, first, lost.float())
        winners = _beats_neighbours(painter, gain)
        left = budgets - chosen.sum(dim=1).long()
        rank = gain.masked_fill(~winners, 0.0).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        take = winners & (rank < left[:, None])
        if not bool(take.any()):
            break
        chosen = chosen + take
        for scale, part in enumerate(take.float().split(list(grid.counts), dim=1)):
            here = (painter.spread(part, scale) > 0) & (painted < scale)
            before = torch.where(here, after[scale], before)
            painted = torch.where(here, float(scale), painted)
    return chosen


def _beats_neighbours(painter: PatchPainter, gain: torch.Tensor) -> torch.Tensor:
    """(B, N) -> True where a patch's gain is positive and no overlapping patch of any scale has a larger one."""
    parts = gain.split(list(painter.grid.counts), dim=1)
    spread = [painter.spread(part, scale) for scale, part in enumerate(parts)]
    best = torch.stack(spread).amax(dim=0)
    result = []
    for scale, (part, here) in enumerate(zip(parts, spread, strict=True)):
        beaten = painter.sums((here < best).float(), scale) > 0
        result.append((part > 0) & ~beaten)
    return torch.cat(result, dim=1)
