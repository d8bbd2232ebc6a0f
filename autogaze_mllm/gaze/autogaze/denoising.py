"""Clips without the noise of the camera's sensor, as a gaze model sees them that asks for it (`do_denoise`).

Noise differs in every frame, so a model that looks for what changed spends its patches on it. Averaging over time takes
it away where nothing moves, and a local Wiener filter (Lee 1980) what is left where something does. How much of it
there is, is estimated from the clip (`NoiseMeter`). Frames with hardly any come out as they went in: a model has learnt
with faint noise, and faint texture looks the same.

Shapes: B clips, T frames, H x W pixels.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

from ..selectors.noise import NoiseMeter

CHANGE, WINDOW = (1.8, 3.0), 5  # mean squared differences over a window, noise alone gives 1: up to, and from here on
FAINT = 0.013, 0.02  # noise up to the first is left, that from the second on is taken off whole; black to white is 1
LOCAL = 3  # side of the Wiener filter's window, in pixels
TOGETHER = 256  # clips; a GPU cannot pad frames that lie 2**31 numbers apart in memory, as those of 900 clips do


@torch.no_grad()
def denoised(frames: torch.Tensor) -> torch.Tensor:
    """frames (B, T, 3, H, W) in [0, 1] -> the same shape and range. A clip's result depends on that clip alone. A
    single picture stays as it is: texture looks like noise there."""
    if frames.shape[1] == 1:
        return frames
    if len(frames) > TOGETHER:
        return torch.cat([denoised(part) for part in frames.split(TOGETHER)])
    meter, shown = NoiseMeter(), []
    levels = [_worth(meter.next_frame(frame)) for frame in frames.unbind(1)]
    levels[0] = levels[1]  # the first frame is a single picture, too
    average = frames[:, 0]
    count = torch.ones_like(average[:, :1])  # frames that are averaged, of each pixel
    for frame, level in zip(frames.unbind(1), levels, strict=True):
        variance = level.square()[:, None, None, None]
        if frame.device.type == "cpu" and not bool(variance.any()):  # elsewhere looking would cost more
            average, count = frame, torch.ones_like(count)
            shown.append(frame)
            continue
        if shown:
            average, count = _averaged(frame, average, count, variance)
        shown.append(torch.where(variance > 0, _filtered(average, variance / count), frame).clamp(0, 1))
    return torch.stack(shown, dim=1)


def _worth(level: torch.Tensor) -> torch.Tensor:
    """Deviation of the noise (B,) -> of the noise that is to be taken off."""
    low, high = FAINT
    return level * ((level - low) / (high - low)).clamp(0, 1).sqrt()


def _averaged(
    frame: torch.Tensor, average: torch.Tensor, count: torch.Tensor, variance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The average over time and over how many frames it goes, begun anew where the frame differs by more than noise."""
    off = _mean((frame - average).square().mean(dim=1, keepdim=True), WINDOW)
    ratio = off / (variance * (1 + 1 / count)).clamp(min=1e-12)
    low, high = CHANGE
    kept = count * ((high - ratio) / (high - low)).clamp(0, 1) * (variance > 0)
    return (kept * average + frame) / (kept + 1), kept + 1


def _filtered(picture: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    """Each pixel drawn towards the mean of its surroundings, the more, the more of their variance is noise."""
    mean = _mean(picture, LOCAL)
    power, of_mean = (values.square().mean(dim=1, keepdim=True) for values in (picture, mean))
    spread = _mean(power, LOCAL) - of_mean
    return mean + ((spread - variance).clamp(min=0) / spread.clamp(min=1e-12)) * (picture - mean)


def _mean(values: torch.Tensor, side: int) -> torch.Tensor:
    """Over a window around each pixel. As sums of shifted pictures, which take a CPU a fifth of the time of pooling."""
    height, width = values.shape[-2:]
    values = F.pad(values, (side // 2,) * 4, mode="replicate")
    rows = functools.reduce(torch.add, [values[..., shift : shift + height, :] for shift in range(side)])
    return functools.reduce(torch.add, [rows[..., shift : shift + width] for shift in range(side)]) / side**2
