"""How much of what differs between frames is noise of the sensor, estimated from the clip itself.

Noise is everywhere, also where nothing moves and where nothing is drawn. So it is measured block by block, within
frames and in what two frames do not share, and the quieter blocks decide: motion and texture only ever make a block
louder.

It is measured in second differences in both directions, 1 -2 1 by 1 -2 1 (Immerkaer 1996): white noise of deviation 1
comes out with deviation 6, and smooth surfaces, slow gradients and straight edges along the axes come out as nothing.
Those of neighbours are nearly the same numbers, so every second one of every second row tells as much as all of them.

Shapes: B clips, H x W pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import torch

METER = 2  # raise it when the same frames begin to give other levels
BLOCK = 16  # pixels
QUIET = 0.2  # the share of the blocks that is quieter than the level
WINDOW = 16  # frames that are remembered, so that a frame costs the same however long the clip is
STEP = 2  # pixels between the second differences that are taken
# The median of absolute values is 0.6745 of a normal deviation. That of the 64 of a block scatters, and the quieter
# blocks are those where it came out low: 3.5 % lower (simulated) than where all 256 values are taken.
MEDIAN = 6 * 0.6745 * 0.965


class NoiseMeter:
    """Goes through the frames of clips; what it says of a frame depends on that frame and the ones before."""

    def __init__(self) -> None:
        self._last: torch.Tensor | None = None
        self._within: deque[torch.Tensor] = deque(maxlen=WINDOW)
        self._between: deque[torch.Tensor] = deque(maxlen=WINDOW)

    def next_frame(self, frame: torch.Tensor) -> torch.Tensor:
        """frame (B, 3, H, W) in [0, 1] -> (B,) standard deviation of the noise of a pixel, 0 where there is none."""
        if min(frame.shape[-2:]) < BLOCK + 2:
            return frame.new_zeros(len(frame))
        rough = second_differences(frame)
        self._within.append(block_levels(rough))
        if self._last is not None:
            self._between.append(block_levels(rough - self._last) / 2**0.5)
        self._last = rough
        level = _quiet(self._within)
        return torch.minimum(level, _quiet(self._between)) if self._between else level


def second_differences(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) -> (B, 3, h, w), every STEP pixels."""
    down = images[..., :-2:STEP, :] + images[..., 2::STEP, :] - 2 * images[..., 1:-1:STEP, :]
    return down[..., :-2:STEP] + down[..., 2::STEP] - 2 * down[..., 1:-1:STEP]


def block_levels(rough: torch.Tensor) -> torch.Tensor:
    """Second differences (B, 3, h, w) -> (B, blocks) the deviation of the noise in each block, by the median, mean over
    channels."""
    side = BLOCK // STEP
    rows, columns = (length // side * side for length in rough.shape[-2:])
    blocks = rough[..., :rows, :columns].abs().unflatten(3, (-1, side)).unflatten(2, (-1, side)).transpose(3, 4)
    return blocks.flatten(4).median(dim=4).values.flatten(2).mean(dim=1) / MEDIAN


def _quiet(levels: Iterable[torch.Tensor]) -> torch.Tensor:
    """(B, blocks) of several frames -> (B,)"""
    found = torch.cat(tuple(levels), dim=1)
    return found.kthvalue(1 + round(QUIET * (found.shape[1] - 1)), dim=1).values
