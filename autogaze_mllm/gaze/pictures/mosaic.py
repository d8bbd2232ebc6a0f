"""The picture that the kept patches give: finer scales painted over coarser ones, over what earlier frames left.

Closed form, without parameters. Every patch is enlarged from its own pixels only, so the picture shows exactly what
was kept and nothing of its neighbours.
"""

from __future__ import annotations

import math

import torch

from ...common.pixels import resize_bicubic
from ..grid import PatchGrid

BLANK = 0.5  # the canvas before the first frame


class PatchPainter:
    """Painting on a canvas (B, 3, H, W) with values in [0, 1] at the grid's largest scale."""

    def __init__(self, grid: PatchGrid, device: torch.device) -> None:
        self.grid = grid
        height, width = grid.scales[-1]
        self.axes = []
        for (scale_h, scale_w), (rows, columns) in zip(grid.scales, grid.cells, strict=True):
            self.axes.append(
                (
                    PainterAxis(height, scale_h, rows, grid.patch, device),
                    PainterAxis(width, scale_w, columns, grid.patch, device),
                )
            )

    def pictures(self, frames: torch.Tensor) -> list[torch.Tensor]:
        """(B, 3, H, W) -> per scale, the frame as its patches show it, enlarged to (B, 3, H, W)."""
        result = []
        for (scale_h, scale_w), (vertical, horizontal) in zip(self.grid.scales, self.axes, strict=True):
            small = resize_bicubic(frames, scale_h, scale_w)
            whole = small.shape == frames.shape  # nothing to enlarge
            result.append(small if whole else vertical.enlarge @ small @ horizontal.enlarge.T)
        return result

    def spread(self, values: torch.Tensor, scale: int) -> torch.Tensor:
        """Per patch (B, n_s) -> per pixel (B, H, W), 0 where no patch of the scale lies."""
        vertical, horizontal = self.axes[scale]
        cells = values.unflatten(1, self.grid.cells[scale])
        spread = cells[:, vertical.cell][:, :, horizontal.cell]
        return spread.masked_fill(~(vertical.covered[:, None] & horizontal.covered), 0)

    def paint(self, canvas: torch.Tensor, pictures: list[torch.Tensor], masks: list[torch.Tensor]) -> torch.Tensor:
        """The canvas after painting the patches with mask 1; masks: per scale (B, n_s)."""
        for scale, (picture, mask) in enumerate(zip(pictures, masks, strict=True)):
            canvas = torch.where(self.spread(mask, scale)[:, None] > 0, picture, canvas)
        return canvas


class PainterAxis:
    """One direction of one scale. length: pixels of the canvas; side: pixels of the scale; cells: patches along it."""

    def __init__(self, length: int, side: int, cells: int, patch: int, device: torch.device) -> None:
        centre = (torch.arange(length, dtype=torch.float64) + 0.5) * side / length - 0.5
        cell = ((centre + 0.5) / patch).floor().long()
        self.cells = cells
        self.covered = (cell < cells).to(device)
        cell = cell.clamp(max=cells - 1)
        # Linear interpolation that never leaves the patch: what lies beyond its edge was not kept.
        low = centre.floor().long()
        weight = (centre - low).float()
        first, last = cell * patch, cell * patch + patch - 1
        rows = torch.arange(length)
        enlarge = torch.zeros(length, side)
        enlarge[rows, low.clamp(first, last)] += 1 - weight
        enlarge[rows, (low + 1).clamp(first, last)] += weight
        self.enlarge = enlarge.to(device)
        self.cell = cell.to(device)


def rebuild(frames: torch.Tensor, masks: list[torch.Tensor], grid: PatchGrid) -> torch.Tensor:
    """frames (B, T, 3, H, W) in [0, 1] at the largest scale; masks: per scale (B, T, n_s) -> rebuilt, as frames."""
    painter = PatchPainter(grid, frames.device)
    canvas = torch.full_like(frames[:, 0], BLANK)
    result = []
    for t in range(frames.shape[1]):
        canvas = painter.paint(canvas, painter.pictures(frames[:, t]), [mask[:, t] for mask in masks])
        result.append(canvas)
    return torch.stack(result, dim=1)


def psnr(squared_error: float) -> float:
    """Mean squared error of values in [0, 1] -> decibels (infinite for 0)."""
    return math.inf if squared_error == 0 else -10 * math.log10(squared_error)


class Atoms:
    """The frame cut along the patch borders of all scales: every atom lies in one patch of each scale (or in none).

    Errors are summed over atoms once a frame; competing patches then only add and compare these few numbers. Maps have
    the shape (B, atom rows, atom columns).
    """

    def __init__(self, painter: PatchPainter) -> None:
        self.grid = painter.grid
        self.rows = _AtomAxis([vertical for vertical, _ in painter.axes])
        self.columns = _AtomAxis([horizontal for _, horizontal in painter.axes])
        self.pixels = self.rows.members.sum(1)[:, None] * self.columns.members.sum(1)

    def squared_error(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) -> summed squared difference, mean over channels."""
        return self.rows.members @ (one - other).square().mean(dim=1) @ self.columns.members.T

    def spread(self, values: torch.Tensor, scale: int) -> torch.Tensor:
        """Per patch (B, n_s) -> map, 0 where no patch of the scale lies."""
        cells = values.unflatten(1, self.grid.cells[scale])
        return self.rows.of_cell[scale].T @ cells @ self.columns.of_cell[scale]

    def sums(self, maps: torch.Tensor, scale: int) -> torch.Tensor:
        """Map -> sum over each patch (B, n_s)."""
        return (self.rows.of_cell[scale] @ maps @ self.columns.of_cell[scale].T).flatten(1)


class _AtomAxis:
    """members: (atoms, pixels) 0/1; of_cell: per scale (cells, atoms) 0/1, a column of zeros where no patch lies."""

    def __init__(self, axes: list[PainterAxis]) -> None:
        where = torch.stack([torch.where(axis.covered, axis.cell, -1) for axis in axes])  # (scales, pixels)
        kinds, atom = torch.unique_consecutive(where, dim=1, return_inverse=True)
        numbers = torch.arange(kinds.shape[1], device=where.device)
        self.members = (atom[None] == numbers[:, None]).float()
        self.of_cell = [
            (cell[None] == torch.arange(axis.cells, device=where.device)[:, None]).float()
            for cell, axis in zip(kinds, axes, strict=True)
        ]
