"""`pixel-diff`: a training-free selector that keeps what differs from what has been kept so far.

Every frame starts from the canvas that the patches kept in earlier frames painted (block-causal in time). Patches of
all scales compete by how much squared error they take away; coarse ones win where a coarse picture is enough, finer
ones follow where detail is missing. A frame is finished when it has spent its budget, or when no place of the size of
one finest patch is off by more than `loss`.
"""

from __future__ import annotations

from typing import Any

import torch

from ..grid import PatchGrid, mask_to_positions
from ..mosaic import BLANK, Atoms, PatchPainter
from ..ratio import Ratio, patches_per_frame
from ..selection import GazingInfo, build_info
from .base import PIXEL_LOSS, Selector

MAX_ROUNDS = 24  # each round takes every patch that beats all patches it overlaps; 4 to 10 rounds are usual


class PixelDiffSelector(Selector):
    """`loss`: root mean square error, on a scale where black to white is 1, that a place may be off by."""

    name = "pixel-diff"
    default_loss = 0.05
    loss_unit = PIXEL_LOSS
    thread_safe = True

    def identity(self) -> dict[str, Any]:
        return {"name": self.name}

    def select(self, frames: torch.Tensor, grid: PatchGrid, ratio: Ratio, loss: float | None) -> GazingInfo:
        """frames (B, T, 3, H, W) in [0, 1] at the grid's largest scale; loss None: only the budget ends a frame."""
        frames = frames.float()
        batch, steps = frames.shape[:2]
        budgets = patches_per_frame(ratio, grid.size, batch, steps).to(frames.device)
        painter = PatchPainter(grid, frames.device)
        atoms = Atoms(painter)
        canvas = torch.full_like(frames[:, 0], BLANK)
        ids, keeps = [], []
        for t in range(steps):
            mask, canvas = _next_frame(painter, atoms, canvas, frames[:, t], budgets[:, t], loss or 0.0)
            index, padded = mask_to_positions(mask)
            ids.append(index.clamp(min=0))
            keeps.append(~padded)
        return build_info(
            torch.cat(ids, dim=1),
            torch.cat(keeps, dim=1),
            [part.shape[1] for part in ids],
            grid,
            pad_id=-1,
            has_task_loss_requirement=loss is not None,
        )


def _next_frame(
    painter: PatchPainter, atoms: Atoms, canvas: torch.Tensor, frame: torch.Tensor, budgets: torch.Tensor, loss: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """canvas, frame (B, 3, H, W), budgets (B,) -> patches kept (B, N) 0/1 and the canvas with them painted.

    Clips in which nothing is wrong keep one patch, the finest one where the error is largest (every frame keeps at
    least one, as with the gaze model), and cost no more than the comparison.
    """
    finest = len(painter.axes) - 1
    before = atoms.squared_error(frame, canvas)
    wrong = atoms.sums(before, finest)
    allowed = atoms.sums(atoms.pixels[None], finest) * loss**2
    mask = frame.new_zeros(len(frame), painter.grid.size)
    mask.scatter_(1, painter.grid.offsets[finest] + wrong.argmax(dim=1, keepdim=True), 1.0)
    # The finest scale is the canvas itself, so its picture is the frame.
    quiet = torch.where(painter.spread(mask[:, painter.grid.offsets[finest] :], finest)[:, None] > 0, frame, canvas)
    busy = (wrong > allowed).any(dim=1).nonzero().squeeze(1)
    if not len(busy):
        return mask, quiet
    pictures = painter.pictures(frame[busy])
    after = [atoms.squared_error(frame[busy], picture) for picture in pictures]
    mask[busy] = _choose(atoms, before[busy], after, budgets[busy], allowed)
    quiet[busy] = painter.paint(canvas[busy], pictures, list(mask[busy].split(list(painter.grid.counts), dim=1)))
    return mask, quiet


def _choose(
    atoms: Atoms, before: torch.Tensor, after: list[torch.Tensor], budgets: torch.Tensor, allowed: torch.Tensor
) -> torch.Tensor:
    """before: error map of the canvas; after: that of each scale's picture; allowed: (1, n) error that a finest patch
    may keep, exceeded somewhere in every row. -> (B, N) 0/1, at least one patch and at most `budgets` (B,) per row."""
    grid, finest = atoms.grid, len(after) - 1
    painted = torch.full_like(before, -1)  # finest scale painted in this frame
    chosen = before.new_zeros(len(before), grid.size)
    for _ in range(MAX_ROUNDS):
        bad = atoms.spread((atoms.sums(before, finest) > allowed).float(), finest)
        gains = []
        for scale, error in enumerate(after):
            # A coarse patch is painted below finer ones of the same frame, so there it changes nothing.
            gain = atoms.sums((before - error) * (painted < scale), scale)
            gains.append(gain * (atoms.sums(bad, scale) > 0))
        gain = torch.cat(gains, dim=1).masked_fill(chosen > 0, 0.0)
        winners = _beats_neighbours(atoms, gain)
        left = budgets - chosen.sum(dim=1).long()
        rank = gain.masked_fill(~winners, 0.0).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        take = winners & (rank < left[:, None])
        if not bool(take.any()):
            break
        chosen = chosen + take
        for scale, part in enumerate(take.float().split(list(grid.counts), dim=1)):
            here = (atoms.spread(part, scale) > 0) & (painted < scale)
            before = torch.where(here, after[scale], before)
            painted = torch.where(here, float(scale), painted)
    return chosen


def _beats_neighbours(atoms: Atoms, gain: torch.Tensor) -> torch.Tensor:
    """(B, N) -> True where a patch's gain is positive and no overlapping patch of any scale has a larger one."""
    parts = gain.split(list(atoms.grid.counts), dim=1)
    spread = [atoms.spread(part, scale) for scale, part in enumerate(parts)]
    best = torch.stack(spread).amax(dim=0)
    beaten = [atoms.sums((here < best).float(), scale) > 0 for scale, here in enumerate(spread)]
    return (gain > 0) & ~torch.cat(beaten, dim=1)
