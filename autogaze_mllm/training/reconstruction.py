"""Measuring how well selections show a video: settings, numbers per frame, and what other selectors need for the same.

Shapes: a clip is (T, 3, S, S) uint8 at the grid's largest scale; it is measured alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..common.errors import InputError
from ..common.extras import require_extra
from ..common.pixels import resize_frames
from ..gaze.autogaze.model import AutoGaze
from ..gaze.grid import DEFAULT_GRID, PatchGrid
from ..gaze.mosaic import psnr
from ..gaze.ratio import Ratio, patches_per_frame
from ..gaze.selection import GazingInfo, build_info, read_selection
from ..gaze.selectors.base import PIXEL_LOSS, AnySelector, Selector, as_selector, selector_name
from ..gaze.selectors.baselines import RandomSelector
from ..gaze.selectors.pixel_diff import PixelDiffSelector
from ..video.reader import VideoReader
from ..video.sampling import sample_frames
from .search.greedy import search_mosaic
from .tasks.base import ReconstructionTask
from .tasks.mosaic import MosaicTask

PUBLISHED = "ratio_0.10,ratio_0.25,ratio_0.50,ratio_0.75,ratio_1.00,task_0.70,ratio_0.75_task_0.70"


@dataclass(frozen=True)
class Setting:
    """`ratio_R`, `task_L` or `ratio_R_task_L`: the share of a frame's patches at most, and the loss to stop at."""

    name: str
    ratio: float = 1.0
    loss: float | None = None

    @classmethod
    def parse(cls, name: str) -> Setting:
        parts = name.strip().split("_")
        try:
            values = {key: float(value) for key, value in zip(parts[::2], parts[1::2], strict=True)}
        except ValueError:
            values = {}
        if not values or not values.keys() <= {"ratio", "task"} or not 0 < values.get("ratio", 1.0) <= 1:
            raise InputError(f"setting {name!r}: expected ratio_0.25, task_0.70 or ratio_0.75_task_0.70")
        return cls(name.strip(), values.get("ratio", 1.0), values.get("task"))


class GreedySelector(Selector):
    """The search that labels come from, as a selector: it looks at the video that is to be rebuilt."""

    name = "greedy"
    default_loss = 0.2

    def select(self, frames: torch.Tensor, grid: PatchGrid, ratio: Ratio, loss: float | None) -> GazingInfo:
        task = MosaicTask(grid)
        budgets = patches_per_frame(ratio, grid.size, *frames.shape[:2])
        found = search_mosaic(task, task.normalize(frames), torch.full(budgets.shape, loss or 0.0), budgets)
        return build_info(found.ids.clamp(min=0), found.ids >= 0, found.counts, grid, pad_id=-1)


def own_unit(selector: AnySelector, loss: float | None, task: ReconstructionTask) -> float | None:
    """A loss of the task in the unit of the selector's stop rule: pixel-diff counts black to white as 1."""
    if loss is None or as_selector(selector).loss_unit != PIXEL_LOSS:
        return loss
    ends = [task.normalize(torch.full((3, 1, 1), value)) for value in (0.0, 1.0)]
    return loss / float((ends[1] - ends[0]).mean())


@dataclass(frozen=True)
class FrameScore:
    frame: int
    patches: int
    ratio: float
    loss: float
    mae: float
    mse: float
    psnr: float
    ssim: float
    stopped: bool


@dataclass(frozen=True)
class ClipScore:
    """One clip under one setting. predicted: at which loss it was asked to stop (None: not asked)."""

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


def read_clips(path: Path, grid: PatchGrid, frames: int, length: int = 16) -> Iterator[torch.Tensor]:
    """Clips of at most `length` frames out of `frames` frames spread over the video, squashed to the grid's size."""
    reader = VideoReader(path)
    for chunk in reader.read(sample_frames(len(reader), frames), chunk=length):
        yield resize_frames(chunk.frames, *grid.scales[-1], torch.device("cpu"))


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
    scores = []
    for number in range(len(clip)):
        off = rebuilt[number] - frames[0, number]
        mse, kept = float(off.square().mean()), int(result.kept[0, number])
        scores.append(
            FrameScore(
                frame=number,
                patches=kept,
                ratio=kept / task.grid.size,
                loss=float(result.frame_losses[0, number]),
                mae=float(off.abs().mean()),
                mse=mse,
                psnr=psnr(mse),
                ssim=_ssim(rebuilt[number], frames[0, number]),
                stopped=rule is not None and 1 < kept < limit,
            )
        )
    return ClipScore(selector_name(selector), setting, scores, gazed - start, done - gazed, info, rebuilt.cpu())


@dataclass(frozen=True)
class Matched:
    """Patches that a clip's selection keeps, and those that others keep to be no worse on average over its frames."""

    loss: float
    patches: int
    greedy: int
    random: int
    pixel_diff: int


@torch.no_grad()
def match(clip: torch.Tensor, score: ClipScore, task: MosaicTask, device: torch.device) -> Matched:
    """greedy: the search that reaches the loss of every frame. random, pixel_diff: the fewest patches at which the mean
    loss is no larger, over the ratio and over the loss to stop at."""
    frames = clip[None].to(device).float() / 255
    video, wanted = task.normalize(frames), score.mean("loss")
    targets = torch.tensor([[frame.loss for frame in score.frames]], device=device)
    found = search_mosaic(task, video, targets + 1e-6, torch.full(targets.shape, task.grid.size))

    def random(share: float) -> tuple[int, float]:
        return _measured(task, video, RandomSelector().select(frames, task.grid, share, None))

    def pixel_diff(share: float) -> tuple[int, float]:
        stop = 0.5 * (1 - share) ** 3  # finer steps where the rule is strict
        return _measured(task, video, PixelDiffSelector().select(frames, task.grid, 1.0, stop))

    return Matched(
        loss=wanted,
        patches=score.patches,
        greedy=int((found.ids >= 0).sum()),
        random=_fewest(random, wanted),
        pixel_diff=_fewest(pixel_diff, wanted),
    )


def _measured(task: MosaicTask, video: torch.Tensor, info: GazingInfo) -> tuple[int, float]:
    result = task(video, info)
    return int(result.kept.sum()), float(result.loss.mean())


def _fewest(measure: object, wanted: float, rounds: int = 9) -> int:
    """Bisects the strength in (0, 1]; keeps the fewest patches that were good enough."""
    assert callable(measure)
    low, high, best = 0.0, 1.0, int(measure(1.0)[0])
    for _ in range(rounds):
        middle = (low + high) / 2
        patches, loss = measure(middle)
        if loss <= wanted:
            high, best = middle, min(best, patches)
        else:
            low = middle
    return best


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


def default_task(selector: AnySelector) -> MosaicTask:
    """The mosaic on the gaze model's own grid and values."""
    if isinstance(selector, AutoGaze):
        return MosaicTask(selector.grid, selector.processor)
    return MosaicTask(DEFAULT_GRID)


def _ssim(one: torch.Tensor, other: torch.Tensor) -> float:
    """Structural similarity (Wang et al. 2004) of images (3, H, W) in [0, 1], mean over channels."""
    require_extra("train", "SSIM", "scikit-image")
    from skimage.metrics import structural_similarity

    return float(structural_similarity(one.cpu().numpy(), other.cpu().numpy(), channel_axis=0, data_range=1.0))


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
