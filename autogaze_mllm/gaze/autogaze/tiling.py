"""Other resolutions: a frame of another size is gazed tile by tile, and the tiles' choices are put together.

The target frame has as many scales as the model. With e cells per side at the model's finest scale, the frame is cut
into ceil(target cells / e) tiles per axis (zero-padded at the bottom and right), every tile is one row of the model's
batch, and at each scale the tiles' cells are laid side by side and cropped to the target's cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ...common.errors import InputError
from ..grid import PatchGrid


@dataclass(frozen=True)
class Tiling:
    """How frames of `target` are cut for a model with the grid `native`. rows, columns: tiles per axis."""

    native: PatchGrid
    target: PatchGrid
    rows: int
    columns: int

    @classmethod
    def plan(cls, native: PatchGrid, target: PatchGrid) -> Tiling | None:
        """None when the target is the model's own grid, so that nothing has to be done."""
        if native.scales == target.scales and native.cells == target.cells:
            return None
        if len(native.scales) != len(target.scales):
            raise InputError(
                f"target grid {target} has {len(target.scales)} scales, the gaze model {len(native.scales)} ({native})"
            )
        cells, (rows, columns) = native.cells[-1], target.cells[-1]
        return cls(native, target, -(-rows // cells[0]), -(-columns // cells[1]))

    @property
    def count(self) -> int:
        return self.rows * self.columns

    def split(self, video: torch.Tensor) -> torch.Tensor:
        """(B, T, C, H, W) at the target's largest scale -> (B * rows * columns, T, C, tile, tile)."""
        height, width = video.shape[-2:]
        if (height, width) != self.target.scales[-1]:
            want = self.target.scales[-1]
            raise InputError(
                f"video is {width}x{height} pixels, the largest target scale is {want[1]}x{want[0]}: resize it first"
            )
        tile_h, tile_w = (cells * self.target.patch for cells in self.native.cells[-1])
        # Negative padding crops: the side is not a multiple of the patch, and the remainder belongs to no patch.
        video = F.pad(video, (0, self.columns * tile_w - width, 0, self.rows * tile_h - height))
        batch, frames, channels = video.shape[:3]
        video = video.view(batch, frames, channels, self.rows, tile_h, self.columns, tile_w)
        return video.permute(0, 3, 5, 1, 2, 4, 6).reshape(-1, frames, channels, tile_h, tile_w)

    def merge(self, values: torch.Tensor) -> torch.Tensor:
        """Per-patch values of the tiles (B * tiles, T, native patches) -> (B, T, target patches).

        Cells of the target that no tile covers (coarse scales that grew more than the finest) get 0.
        """
        merged = []
        frames = values.shape[1]
        for part, (cell_rows, cell_columns), (rows, columns) in zip(
            values.split(list(self.native.counts), dim=2), self.native.cells, self.target.cells, strict=True
        ):
            grid = part.reshape(-1, self.rows, self.columns, frames, cell_rows, cell_columns)
            grid = grid.permute(0, 3, 1, 4, 2, 5).reshape(
                -1, frames, self.rows * cell_rows, self.columns * cell_columns
            )
            grid = F.pad(grid, (0, columns - grid.shape[3], 0, rows - grid.shape[2]))
            merged.append(grid.flatten(2))
        return torch.cat(merged, dim=2)
