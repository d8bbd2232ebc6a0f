"""The numbers of one clip under one setting.

Shapes: a clip is (T, 3, S, S) uint8 at the grid's largest scale; it is measured alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...common.extras import require_extra
from ...gaze.grid import PatchGrid
from ...gaze.pictures.mosaic import psnr
from ...gaze.ratio import patches_per_frame
from ...gaze.selection import GazingInfo, read_selection
from ...gaze.selectors.base import AnySelector, selector_name
from ..tasks.base import ReconstructionTask
from .selectors import own_unit
from .settings import Setting


@dataclass(frozen=True)
class FrameScore:
    """patches: kept; entries: of the selection, padding included; ratio: patches of all that the frame has. exact: the
    rebuilt picture is the frame, byte for byte, so that there is no PSNR (None). stopped: by the loss, and neither by
    the ratio nor at the first patch."""

    frame: int
    patches: int
    entries: int
    ratio: float
    loss: float
    mae: float
    mse: float
    psnr: float | None
    ssim: float
    exact: bool
    stopped: bool


@dataclass(frozen=True)
class ClipScore:
    """One clip under one setting. info: what was kept; rebuilt: (T, 3, S, S) in [0, 1]."""

    selector: str
    setting: Setting
    frames: list[FrameScore]
    gaze_seconds: float
    reconstruction_seconds: float
    info: GazingInfo
    rebuilt: torch.Tensor

    def mean(self, name: str) -> float:
        return float(np.mean([getattr(frame, name) for frame in self.frames]))

    @property
    def patches(self) -> int:
        return sum(frame.patches for frame in self.frames)


@torch.no_grad()
def score_clip(
    clip: torch.Tensor, selector: AnySelector, setting: Setting, task: ReconstructionTask, device: torch.device
) -> ClipScore:
    frames = clip[None].to(device).float() / 255
    rule = own_unit(selector, setting.loss, task)
    start = _now(device)
    info = selector.select(frames, task.grid, setting.ratio, rule)
    gazed = _now(device)
    result = task(task.normalize(frames), info)
    done = _now(device)
    rebuilt = task.denormalize(result.reconstruction)[0].clamp(0, 1)
    limit = int(patches_per_frame(setting.ratio, task.grid.size, 1, 1))
    entries = read_selection(info, task.grid, "the measurement").counts
    scores = []
    for number in range(len(clip)):
        off = rebuilt[number] - frames[0, number]
        mse, kept = float(off.square().mean()), int(result.kept[0, number])
        exact = torch.equal((rebuilt[number] * 255).round().byte(), clip[number].to(device))
        scores.append(
            FrameScore(
                frame=number,
                patches=kept,
                entries=entries[number],
                ratio=kept / task.grid.size,
                loss=float(result.frame_losses[0, number]),
                mae=float(off.abs().mean()),
                mse=mse,
                psnr=None if exact else psnr(mse),
                ssim=_ssim(rebuilt[number], frames[0, number]),
                exact=exact,
                stopped=rule is not None and 1 < kept < limit,
            )
        )
    return ClipScore(selector_name(selector), setting, scores, gazed - start, done - gazed, info, rebuilt.cpu())


def mean_psnr(errors: Sequence[float], exact: int) -> float | None:
    """Decibels of the mean of squared errors (the mean of decibels would let one good frame outweigh ten bad ones);
    None where all pictures are exact. exact: how many of them are."""
    return None if exact == len(errors) else psnr(float(np.mean(errors)))


def heat_map(scores: Sequence[ClipScore], grid: PatchGrid) -> np.ndarray:
    """How often each place of the finest scale was looked at, at any scale, (rows, columns) mean over frames."""
    rows, columns = grid.cells[-1]
    total, frames = np.zeros((rows, columns)), 0
    for score in scores:
        selection = read_selection(score.info, grid, "the heat map")
        for scale, row, column in zip(
            *(part[selection.keep].tolist() for part in grid.locate(selection.index)), strict=True
        ):
            high, wide = rows / grid.cells[scale][0], columns / grid.cells[scale][1]
            top, left = round(row * high), round(column * wide)
            total[top : max(round((row + 1) * high), top + 1), left : max(round((column + 1) * wide), left + 1)] += 1
        frames += len(score.frames)
    return total / max(frames, 1)


def calibration(scores: Sequence[ClipScore]) -> float | None:
    """Measured loss over the loss asked for, mean over the frames that the stop rule ended; None without any."""
    ratios = [
        frame.loss / score.setting.loss
        for score in scores
        for frame in score.frames
        if frame.stopped and score.setting.loss
    ]
    return float(np.mean(ratios)) if ratios else None


def _ssim(one: torch.Tensor, other: torch.Tensor) -> float:
    """Structural similarity (Wang et al. 2004) of images (3, H, W) in [0, 1], mean over channels."""
    require_extra("train", "SSIM", "scikit-image")
    from skimage.metrics import structural_similarity

    return float(structural_similarity(one.cpu().numpy(), other.cpu().numpy(), channel_axis=0, data_range=1.0))


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
