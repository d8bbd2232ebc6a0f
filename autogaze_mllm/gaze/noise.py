"""How much of what differs between frames is noise of the sensor, estimated from the clip itself.

Noise is everywhere, also where nothing moves and where nothing is drawn. So it is measured block by block, in what two
frames do not share, and the quieter blocks decide: motion and texture only ever make a block louder.

Shapes: B clips, T frames, H x W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

BLOCK = 16
QUIET = 0.2  # the quantile of the blocks that decides
# A second difference in both directions (Immerkaer 1996): white noise of deviation 1 comes out with deviation 6, and
# smooth surfaces, slow gradients and straight edges along the axes come out as nothing.
KERNEL = ((1.0, -2.0, 1.0), (-2.0, 4.0, -2.0), (1.0, -2.0, 1.0))


def noise_level(frames: torch.Tensor) -> torch.Tensor:
    """frames (B, T, 3, H, W) in [0, 1] -> (B,) standard deviation of the noise of a pixel, 0 where there is none.

    From differences of neighbouring frames; of a single frame, from the frame. Each clip's number is its own alone.
    """
    batch, steps = frames.shape[:2]
    if min(frames.shape[-2:]) < BLOCK + 2:
        return frames.new_zeros(batch)
    levels = []
    for t in range(max(steps - 1, 1)):
        here = (frames[:, t + 1] - frames[:, t]) / 2**0.5 if steps > 1 else frames[:, 0]
        levels.append(_block_levels(here))
    return torch.cat(levels, dim=1).quantile(QUIET, dim=1)


def _block_levels(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) -> (B, blocks) the deviation in each block, by the median, mean over channels."""
    kernel = images.new_tensor(KERNEL)[None, None] / 6
    high = F.conv2d(images.flatten(0, 1)[:, None], kernel).abs()
    rows, columns = (side // BLOCK * BLOCK for side in high.shape[-2:])
    blocks = high[:, 0, :rows, :columns].unflatten(2, (-1, BLOCK)).unflatten(1, (-1, BLOCK)).transpose(2, 3)
    middle = blocks.flatten(3).median(dim=3).values / 0.6745
    return middle.flatten(1).unflatten(0, images.shape[:2]).mean(dim=1)
