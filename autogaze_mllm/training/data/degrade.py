"""What sensors and codecs do to frames, many clips at once, on any device.

Shapes: B clips, n frames, S pixels a side.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def add_noise(
    frames: torch.Tensor,
    strength: torch.Tensor,
    grain: torch.Tensor,
    colour: torch.Tensor,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """frames (B, n, 3, S, S) in [0, 1]; the others (B,). strength: standard deviation at mid grey, shot and read noise
    together. grain: share that neighbouring pixels have in common; colour: 0 the same in all channels, 1 in each its
    own."""

    def each(values: torch.Tensor) -> torch.Tensor:
        return values[:, None, None, None, None]

    shape = (*frames.shape[:2], 4, *frames.shape[3:])
    own, shared = torch.randn(shape, generator=generator, device=frames.device).split([3, 1], dim=2)
    noise = each(colour.sqrt()) * own + each((1 - colour).sqrt()) * shared
    smooth = F.avg_pool2d(noise.flatten(0, 1), 3, stride=1, padding=1).unflatten(0, frames.shape[:2]) * 3
    noise = each((1 - grain).sqrt()) * noise + each(grain.sqrt()) * smooth
    return (frames + each(strength) * (0.3 + 1.4 * frames).sqrt() * noise).clamp(0, 1)


def quantise(frames: torch.Tensor, coarse: torch.Tensor, block: int = 8) -> torch.Tensor:
    """Blocks as of a codec, frame by frame: frames (B, n, 3, S, S) in [0, 1], S a multiple of the block; coarse: (B,)
    step of the lowest frequencies, 0 leaves a row as it is. Colour is coarser than brightness."""
    number = torch.arange(block, device=frames.device, dtype=torch.float32)
    cosine = torch.cos(math.pi / block * (number[None] + 0.5) * number[:, None]) * math.sqrt(2 / block)
    cosine[0] /= math.sqrt(2)
    luma = frames.mean(dim=2, keepdim=True)
    planes = torch.cat([luma, frames - luma], dim=2)
    blocks = planes.unflatten(-1, (-1, block)).unflatten(-3, (-1, block)).transpose(-2, -3)  # (..., rows, cols, 8, 8)
    frequencies = cosine @ blocks @ cosine.T
    step = coarse.clamp(min=1e-6)[:, None, None] * (1 + 0.5 * (number[:, None] + number))
    weight = torch.tensor([1.0, 2.0, 2.0, 2.0], device=frames.device)
    step = step[:, None, None, None, None] * weight[:, None, None, None, None]  # (B, 1, 4, 1, 1, 8, 8)
    rounded = cosine.T @ ((frequencies / step).round() * step) @ cosine
    planes = rounded.transpose(-2, -3).flatten(-2).flatten(-3, -2)
    result = (planes[:, :, :1] + planes[:, :, 1:]).clamp(0, 1)
    return torch.where(coarse[:, None, None, None, None] > 0, result, frames)
