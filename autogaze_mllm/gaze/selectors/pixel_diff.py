"""`pixel-diff`: a training-free selector that keeps what differs from what has been kept so far.

Every frame starts from the canvas that the patches kept in earlier frames painted (block-causal in time). Patches of
all scales compete by how much squared error they take away; coarse ones win where a coarse picture is enough, finer
ones follow where detail is missing. A frame is finished when it has spent its budget, or when no place of the size of
one finest patch is off by more than `loss`.

Sensor noise differs in every frame without anything having changed. So it is estimated from the clip how much there is
(`noise.py`), and errors are counted as they would be against the picture without it: what noise adds to a difference is
taken off it, and what a patch would bring onto the canvas is put on its account (Stein's unbiased estimate of risk).
In a single picture texture looks as noise does, so there is no floor.
`pixel-diff-raw` takes every difference for change.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...common.pixels import resize_bicubic
from ...common.storage.json_text import Fields
from ..grid import PatchGrid
from ..pictures.mosaic import BLANK, Atoms, PatchPainter
from ..ratio import Ratio, patches_per_frame
from ..selection import GazingInfo, info_of_masks
from .base import PIXEL_LOSS, Selector
from .noise import METER, NoiseMeter

RAW = "pixel-diff-raw"
MARGIN = 0.2  # a patch must take away more than this share of the noise's variance: estimates are noisy themselves
MAX_ROUNDS = 24  # each round takes every patch that beats all patches it overlaps; 4 to 10 rounds are usual


class PixelDiffSelector(Selector):
    """`loss`: root mean square error, on a scale where black to white is 1, that a place may be off by.

    noise_floor: whether what sensor noise explains does not count as change. Without, its name is pixel-diff-raw.
    """

    name = "pixel-diff"
    default_loss = 0.05
    loss_unit = PIXEL_LOSS
    thread_safe = True

    def __init__(self, noise_floor: bool = True) -> None:
        self.noise_floor = noise_floor
        if not noise_floor:
            self.name = RAW

    def identity(self) -> dict[str, Any]:
        # The name that both rules had before there was a floor by default: what caches hold of the raw one stays good.
        return {"name": PixelDiffSelector.name, "noise_floor": METER if self.noise_floor else False}

    def store(self, folder: Path) -> dict[str, Any]:
        return {**super().store(folder), "noise_floor": self.noise_floor}

    @classmethod
    def restored(cls, entry: dict[str, Any]) -> PixelDiffSelector:
        # What does not say was saved before there was a floor.
        return cls(Fields(entry, "gaze").get("noise_floor", bool, False))

    def select(self, frames: torch.Tensor, grid: PatchGrid, ratio: Ratio, loss: float | None) -> GazingInfo:
        """frames (B, T, 3, H, W) in [0, 1] at the grid's largest scale; loss None: only the budget ends a frame."""
        frames = frames.float()
        batch, steps = frames.shape[:2]
        budgets = patches_per_frame(ratio, grid.size, batch, steps).to(frames.device)
        painter = PatchPainter(grid, frames.device)
        atoms = Atoms(painter)
        canvas = torch.full_like(frames[:, 0], BLANK)
        meter = NoiseMeter() if self.noise_floor and steps > 1 else None
        own = [0.0] * len(painter.axes) if meter is None else _own_share(painter)
        masks = []
        for t in range(steps):
            level = frames.new_zeros(batch) if meter is None else meter.next_frame(frames[:, t])
            noise = Noise(level.square(), own)
            mask, canvas = _next_frame(painter, atoms, canvas, frames[:, t], budgets[:, t], loss or 0.0, noise)
            masks.append(mask)
        return info_of_masks(torch.stack(masks, dim=1), grid, has_task_loss_requirement=loss is not None)


class RawPixelDiffSelector(PixelDiffSelector):
    """pixel-diff without a noise floor, by its name."""

    name = RAW
    thread_safe = True
    identity = PixelDiffSelector.identity

    def __init__(self) -> None:
        super().__init__(noise_floor=False)

    @classmethod
    def restored(cls, entry: dict[str, Any]) -> RawPixelDiffSelector:
        return cls()


@dataclass(frozen=True)
class Noise:
    """variance: (B,) of a pixel; own: per scale, the share of a pixel's own noise in what its patch shows there."""

    variance: torch.Tensor
    own: list[float]

    def of(self, rows: torch.Tensor) -> Noise:
        return Noise(self.variance[rows], self.own)

    def off(self, error: torch.Tensor, pixels: torch.Tensor, own: float = 0.0) -> torch.Tensor:
        """Squared error against the noisy frame (B, rows, columns) -> what to expect against the clean one. own: 0 for
        a picture that does not come from this frame."""
        return error - self.variance[:, None, None] * (1 - 2 * own) * pixels


def _own_share(painter: PatchPainter) -> list[float]:
    """1 for the finest scale, which is the frame itself, less for those that average over pixels."""
    shares = []
    for (height, width), axes in zip(painter.grid.scales, painter.axes, strict=True):
        share = 1.0
        for side, axis in zip((height, width), axes, strict=True):
            length = axis.enlarge.shape[0]
            # Lines along the other direction: enlarging is separable, and so is its trace.
            lines = torch.eye(length, device=axis.enlarge.device)[None, None].expand(1, 1, length, length)
            shrunk = resize_bicubic(lines, side, length)[0, 0]
            shown = shrunk if side == length else axis.enlarge @ shrunk
            share *= float(shown.diagonal().mean())
        shares.append(share)
    return shares


def _next_frame(
    painter: PatchPainter,
    atoms: Atoms,
    canvas: torch.Tensor,
    frame: torch.Tensor,
    budgets: torch.Tensor,
    loss: float,
    noise: Noise,
) -> tuple[torch.Tensor, torch.Tensor]:
    """canvas, frame (B, 3, H, W), budgets (B,) -> patches kept (B, N) 0/1 and the canvas with them painted.

    Clips in which nothing is wrong keep one patch, the finest one where the error is largest (every frame keeps at
    least one, as with the gaze model), and cost no more than the comparison.
    """
    finest = len(painter.axes) - 1
    before = noise.off(atoms.squared_error(frame, canvas), atoms.pixels)
    wrong = atoms.sums(before, finest)
    # No patch makes a place better than the noise in it.
    bearable = (noise.variance * (1 + MARGIN)).clamp(min=loss**2)
    allowed = atoms.sums(atoms.pixels[None], finest) * bearable[:, None]
    mask = frame.new_zeros(len(frame), painter.grid.size)
    mask.scatter_(1, painter.grid.offsets[finest] + wrong.argmax(dim=1, keepdim=True), 1.0)
    # The finest scale is the canvas itself, so its picture is the frame.
    quiet = torch.where(painter.spread(mask[:, painter.grid.offsets[finest] :], finest)[:, None] > 0, frame, canvas)
    busy = (wrong > allowed).any(dim=1).nonzero().squeeze(1)
    if not len(busy):
        return mask, quiet
    pictures = painter.pictures(frame[busy])
    noise = noise.of(busy)
    after = [
        noise.off(atoms.squared_error(frame[busy], picture), atoms.pixels, own)
        for picture, own in zip(pictures, noise.own, strict=True)
    ]
    mask[busy] = _choose(atoms, before[busy], after, budgets[busy], allowed[busy], MARGIN * noise.variance)
    quiet[busy] = painter.paint(canvas[busy], pictures, list(mask[busy].split(list(painter.grid.counts), dim=1)))
    return mask, quiet


def _choose(
    atoms: Atoms,
    before: torch.Tensor,
    after: list[torch.Tensor],
    budgets: torch.Tensor,
    allowed: torch.Tensor,
    margin: torch.Tensor,
) -> torch.Tensor:
    """before: error map of the canvas; after: that of each scale's picture; allowed: (B, n) error that a finest patch
    may keep, exceeded somewhere in every row; margin: (B,) error of a pixel that is not worth a patch. -> (B, N) 0/1,
    at least one patch and at most `budgets` (B,) per row."""
    grid, finest = atoms.grid, len(after) - 1
    painted = torch.full_like(before, -1)  # finest scale painted in this frame
    chosen = before.new_zeros(len(before), grid.size)
    spent = margin[:, None, None] * atoms.pixels
    for _ in range(MAX_ROUNDS):
        bad = atoms.spread((atoms.sums(before, finest) > allowed).float(), finest)
        gains = []
        for scale, error in enumerate(after):
            # A coarse patch is painted below finer ones of the same frame, so there it changes nothing.
            gain = atoms.sums((before - error - spent) * (painted < scale), scale)
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
