"""What each patch would bring to the picture that is painted from the kept patches, in closed form.

The picture's error is summed once over *atoms*, the cells that the patch borders of all scales cut a frame into. Within
an atom every patch covers all or nothing, so painting a patch replaces a few of these sums, and the exact gain of every
patch of a frame is one small matrix product.

Shapes: B clips, N patches, S scales, A atoms.
"""

from __future__ import annotations

import functools
from typing import Literal

import torch

from ..grid import PatchGrid
from .mosaic import Atoms, PatchPainter

Measure = Literal["l1", "l2"]  # absolute or squared error
Counted = Measure | Literal["visible"]  # of a place, or what of its squared error is more than would go unseen
LOSS: Counted = "l1"  # what a gaze model of the mosaic predicts and stops by
TIE = 1e-6  # gains that differ by less are the same, and a lesser one is none: rounding must not decide
TOLERANCE = 0.3  # what a place may be off by unseen, in the gaze model's values: a thirtieth of black to white
Rows = torch.Tensor | slice
ALL = slice(None)


@functools.lru_cache(maxsize=32)
def mosaic_tables(grid: PatchGrid, device: torch.device) -> MosaicTables:
    with torch.inference_mode(False):  # the next caller may not be in it
        return MosaicTables(grid, device)


def best_patch(gain: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, N) -> the largest gain and the first patch that has it, both (B,)."""
    best = gain.amax(dim=1)
    near = gain >= (best - TIE - 1e-4 * best.abs())[:, None]
    return best, near.to(torch.uint8).argmax(dim=1)


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
        self.unseen = TOLERANCE**2 * self.atoms.pixels.flatten()

    def errors(
        self, wanted: torch.Tensor, canvas: torch.Tensor, pictures: list[torch.Tensor], measure: Counted = "l1"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (B, 3, H, W) -> errors of the atoms against `wanted`: of the canvas (B, A), of each scale's picture
        (B, S, A)."""
        before = self.error(wanted, canvas, measure)
        # The finest scale shows the frame itself, where that is what is wanted.
        after = [
            torch.zeros_like(before) if picture is wanted else self.error(wanted, picture, measure)
            for picture in pictures
        ]
        return before, torch.stack(after, dim=1)

    def error(self, one: torch.Tensor, other: torch.Tensor, measure: Counted) -> torch.Tensor:
        """Images (B, 3, H, W) -> summed difference of each atom (B, A), mean over channels."""
        difference = (one - other).abs() if measure == "l1" else (one - other).square()
        # The order matters for speed: the sum over channels first, on contiguous rows.
        maps = difference.sum(dim=1) / one.shape[1]
        sums = (self.atoms.rows.members @ maps @ self.atoms.columns.members.T).flatten(1)
        return (sums - self.unseen).clamp(min=0) if measure == "visible" else sums


class MosaicFrame:
    """One frame of B clips while patches are painted. error: (B, A) of the canvas; chosen: (B, N).

    What changes lies in tensors that stay where they are, so that an accelerator can record it. rows: those of the
    clips that are meant, all by default; values are theirs (b, ...).
    """

    def __init__(self, tables: MosaicTables, before: torch.Tensor, after: torch.Tensor) -> None:
        """before: (B, A) errors of the canvas; after: (B, S, A) of each scale's picture."""
        self.tables = tables
        self.error, self.after = before, after
        self.painted = torch.full_like(before, -1, dtype=torch.long)  # finest scale painted in this frame
        self.chosen = torch.zeros(len(before), len(tables.scale), dtype=torch.bool, device=before.device)

    def restart(self, before: torch.Tensor, after: torch.Tensor) -> None:
        """Another frame of the first of the clips."""
        count = len(before)
        self.error[:count], self.after[:count] = before, after
        self.painted.fill_(-1)
        self.chosen.zero_()

    @property
    def loss(self) -> torch.Tensor:
        """(B,)"""
        return self.loss_of(ALL)

    def loss_of(self, rows: Rows) -> torch.Tensor:
        """(b,)"""
        return self.error[rows].sum(dim=1) / self.tables.pixels

    def floor(self) -> torch.Tensor:
        """(B,) the loss that would be left if every place could be shown by the scale that shows it best, or stay as it
        is: 0 for a clean video, what noise leaves for a disturbed one. No selection does better."""
        best = torch.minimum(self.error, self.after.amin(dim=1))
        return best.sum(dim=1) / self.tables.pixels

    def gains(self, rows: Rows = ALL) -> torch.Tensor:
        """(b, N) how much the frame's loss falls when each patch is painted next, -inf for those that are."""
        # A coarse patch is painted below finer ones of the same frame, so there it changes nothing.
        visible = self.painted[rows][:, None] < self.tables.scales
        difference = (self.error[rows][:, None] - self.after[rows]) * visible
        gains = difference.flatten(1) @ self.tables.gather / self.tables.pixels
        return gains.masked_fill(self.chosen[rows], -torch.inf)

    def cell_errors(self) -> torch.Tensor:
        """(B, 1 + S, n_S) what each finest patch adds to the frame's loss: now, and as each scale would show it."""
        finest = self.tables.covers[self.tables.scale == len(self.tables.painter.axes) - 1].float()
        maps = torch.cat([self.error[:, None], self.after], dim=1)
        return maps @ finest.T / self.tables.pixels

    def paint(self, index: torch.Tensor, active: torch.Tensor, rows: Rows = ALL) -> None:
        """index: (b,) patch to paint in every row; active: (b,) False leaves the row as it is."""
        each = torch.arange(len(index), device=index.device)
        scale = self.tables.scale[index]
        painted, chosen = self.painted[rows], self.chosen[rows]
        here = self.tables.covers[index] & (painted < scale[:, None]) & active[:, None]
        self.error[rows] = torch.where(here, self.after[rows][each, scale], self.error[rows])
        self.painted[rows] = torch.where(here, scale[:, None], painted)
        chosen[each, index] |= active
        self.chosen[rows] = chosen

    def painted_on(self, canvas: torch.Tensor, pictures: list[torch.Tensor]) -> torch.Tensor:
        """Canvas (b, 3, H, W) -> with the chosen patches of the first b clips on it. pictures: of the frame."""
        chosen = self.chosen[: len(canvas)].float()
        return self.tables.painter.paint(
            canvas, pictures, list(chosen.split(list(self.tables.painter.grid.counts), dim=1))
        )
