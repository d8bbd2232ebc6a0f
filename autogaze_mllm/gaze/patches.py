"""Cutting the kept patches, and only those, out of the pixels of a video."""

from __future__ import annotations

import numpy as np
import torch

from ..common.pixels import resize_bicubic
from .grid import PatchGrid


def gather_patches(pixels: torch.Tensor, grid: PatchGrid, frame: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """pixels (F, 3, H, W) of any size; frame, index: (n,) which frame and which position on `grid`.

    -> (n, 3 * patch * patch), each patch in the order channel, row, column. A frame is resized to a scale only when
    one of its patches at that scale is kept.
    """
    patch = grid.patch
    scale, row, column = grid.locate(index)
    result = pixels.new_empty(len(index), pixels.shape[1] * patch * patch)
    for number, ((height, width), (rows, columns)) in enumerate(zip(grid.scales, grid.cells, strict=True)):
        wanted = (scale == number).nonzero().squeeze(1)
        if not len(wanted):
            continue
        if pixels.shape[-2:] == (height, width):
            picture, local = pixels, frame[wanted]  # nothing to resize, and nothing is copied
        else:
            needed, local = torch.unique(frame[wanted], return_inverse=True)
            picture = resize_bicubic(pixels[needed], height, width)
        picture = picture[..., : rows * patch, : columns * patch]
        cells = picture.unflatten(3, (columns, patch)).unflatten(2, (rows, patch))  # (f, 3, rows, p, columns, p)
        result[wanted] = cells[local, :, row[wanted], :, column[wanted], :].flatten(1)
    return result


class PatchStore:
    """Rows (n, D) added batch by batch and held once.

    Joining a list of tensors holds everything twice for a moment, which for a long video is gigabytes. On the CPU rows
    go into one block instead, which grows by reallocation: for large blocks that moves pages, not bytes.
    """

    STEP = 64 << 20  # bytes that the block grows by at most; a small one doubles, since new bytes are zeroed first

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._block = np.empty(0, dtype=np.uint8)
        self._used = 0
        self._like: torch.Tensor | None = None
        self._elsewhere: list[torch.Tensor] = []

    def add(self, rows: torch.Tensor) -> None:
        """All rows added have the same width, type and device."""
        self._like = rows[:0]
        if rows.device.type != "cpu":
            self._elsewhere.append(rows)
            return
        raw = rows.detach().contiguous().view(torch.uint8).numpy().ravel()
        end = self._used + raw.size
        if end > self._block.size:
            self._block.resize(max(end, self._block.size + min(self._block.size, self.STEP)), refcheck=False)
        self._block[self._used : end] = raw
        self._used = end

    def take(self) -> torch.Tensor:
        """All rows in one tensor; the store is empty afterwards."""
        if self._like is None:
            raise ValueError("nothing was added")
        block, used, like, elsewhere = self._block, self._used, self._like, self._elsewhere
        self._clear()
        if elsewhere:
            return torch.cat(elsewhere)
        block.resize(used, refcheck=False)
        return torch.from_numpy(block).view(like.dtype).view(-1, like.shape[1])
