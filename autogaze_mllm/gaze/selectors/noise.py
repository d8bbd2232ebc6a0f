"""How much of what differs between frames is noise of the sensor, estimated from the clip itself.

Noise is everywhere, also where nothing moves and where nothing is drawn. So it is measured block by block, within
frames and in what two frames do not share, and the quieter blocks decide: motion and texture only ever make a block
louder.

Shapes: B clips, H x W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

BLOCK = 16
QUIET = 0.2  # the quantile of the blocks that decides
# A second difference in both directions (Immerkaer 1996): white noise of deviation 1 comes out with deviation 6, and
# smooth surfaces, slow gradients and straight edges along the axes come out as nothing.
KERNEL = ((1.0, -2.0, 1.0), (-2.0, 4.0, -2.0), (1.0, -2.0, 1.0))


class NoiseMeter:
    """Goes through the frames of clips; what it says of a frame depends on that frame and the ones before."""

    def __init__(self) -> None:
        self._last: torch.Tensor | None = None
        self._within: list[torch.Tensor] = []
        self._between: list[torch.Tensor] = []

    def next_frame(self, frame: torch.Tensor) -> torch.Tensor:
        """frame (B, 3, H, W) in [0, 1] -> (B,) standard deviation of the noise of a pixel, 0 where there is none."""
        if min(frame.shape[-2:]) < BLOCK + 2:
            return frame.new_zeros(len(frame))
        self._within.append(block_levels(frame))
        if self._last is not None:
            self._between.append(block_levels(frame - self._last) / 2**0.5)
        self._last = frame
        level = torch.cat(self._within, dim=1).quantile(QUIET, dim=1)
        if self._between:
            level = torch.minimum(level, torch.cat(self._between, dim=1).quantile(QUIET, dim=1))
        return level


def block_levels(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) -> (B, blocks) the deviation of the noise in each block, by the median, mean over channels."""
    kernel = images.new_tensor(KERNEL)[None, None] / 6
    high = F.conv2d(images.flatten(0, 1)[:, None], kernel).abs()
    rows, columns = (side // BLOCK * BLOCK for side in high.shape[-2:])
    blocks = high[:, 0, :rows, :columns].unflatten(2, (-1, BLOCK)).unflatten(1, (-1, BLOCK)).transpose(2, 3)
    middle = blocks.flatten(3).median(dim=3).values / 0.6745
    return middle.flatten(1).unflatten(0, images.shape[:2]).mean(dim=1)
