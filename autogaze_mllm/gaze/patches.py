"""Cutting the kept patches, and only those, out of the pixels of a video."""

from __future__ import annotations

import torch

from .encoder import resize_bicubic
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
        needed, local = torch.unique(frame[wanted], return_inverse=True)
        picture = resize_bicubic(pixels[needed], height, width)[..., : rows * patch, : columns * patch]
        cells = picture.unflatten(3, (columns, patch)).unflatten(2, (rows, patch))  # (f, 3, rows, p, columns, p)
        result[wanted] = cells[local, :, row[wanted], :, column[wanted], :].flatten(1)
    return result
