"""What a model in training does on held-out clips: how much it keeps, how well that shows the video, and pictures."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from ..common.compute.distributed import gathered
from ..gaze.autogaze.budget import dirichlet_ratios, draw_ratio, draw_requirement
from ..gaze.autogaze.config import BudgetConfig
from ..gaze.autogaze.model import AutoGaze
from ..gaze.ratio import Ratio, patches_per_frame
from ..gaze.selection import GazingInfo, Selection, read_selection
from ..gaze.selectors.baselines import RandomSelector
from .config import TrainingConfig
from .data.clips import Clip, ClipSource
from .monitoring.pictures import ShownClip
from .search.greedy import search_mosaic
from .tasks.base import ReconstructionTask, TaskResult
from .tasks.mosaic_task import MosaicTask

PICTURES = 4  # clips shown


@dataclass(frozen=True)
class ClipResult:
    """Of one clip. asked: the loss of each frame that the stop rule ended, over the one asked for; greedy: patches that
    the greedy search needs for the same loss in every frame, with the mosaic."""

    loss: float
    ratio: float
    patches: int
    asked: list[float]
    greedy: int | None


@torch.no_grad()
def validate(
    gaze: AutoGaze,
    task: ReconstructionTask,
    clips: ClipSource,
    settings: TrainingConfig,
    *,
    rank: int = 0,
    world: int = 1,
    progress: bool = False,
) -> tuple[dict[str, float], list[ShownClip]]:
    """Greedy decoding of the first `val_clips` clips (-1: all) with the budgets of validation, shared among `world`
    processes, all of which call this. What is random about a clip's budgets comes from the seed and its number.

    -> means over the clips: val_loss (of the task), val_gazing_ratio, val_patches (of a clip), val_asked (the loss at
    which frames stopped, over the one asked for), and for the mosaic val_greedy_patches; and the first `PICTURES` of
    this process's clips.
    """
    budget = settings.val_budget(gaze.config.budget, clips.settings.frames // gaze.config.encoder.temporal_patch_size)
    count = len(clips) if settings.val_clips < 0 else min(settings.val_clips, len(clips))
    mine = np.array_split(np.arange(count), world)[rank].tolist()
    asked = settings.train_gaze or settings.selections == "gaze"
    results: list[ClipResult] = []
    shown: list[ShownClip] = []
    with _evaluating(gaze, task):
        for number in tqdm(mine, desc="validation", unit="clip", leave=False, disable=not progress):
            clip = clips.clip(number)
            random.seed(settings.seed * 1_000_003 + number)
            torch.manual_seed(settings.seed * 1_000_003 + number)
            result, picture = _measure(gaze if asked else None, gaze.device, task, clip, budget, len(shown) < PICTURES)
            results.append(result)
            shown += [picture] if picture is not None else []
    return _means([one for part in gathered(results) for one in part]), shown


def _means(results: list[ClipResult]) -> dict[str, float]:
    values = {
        "val_clips": float(len(results)),
        "val_loss": float(np.mean([one.loss for one in results])),
        "val_gazing_ratio": float(np.mean([one.ratio for one in results])),
        "val_patches": float(np.mean([one.patches for one in results])),
    }
    asked = [value for one in results for value in one.asked]
    greedy = [one.greedy for one in results if one.greedy is not None]
    if asked:
        values["val_asked"] = float(np.mean(asked))
    if greedy:
        values["val_greedy_patches"] = float(np.mean(greedy))
    return values


@contextmanager
def _evaluating(*models: object) -> Iterator[None]:
    """The modules among them are in evaluation mode meanwhile."""
    modules = [model for model in models if isinstance(model, nn.Module)]
    before = [module.training for module in modules]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.train(training)


def _measure(
    gaze: AutoGaze | None,
    device: torch.device,
    task: ReconstructionTask,
    clip: Clip,
    budget: BudgetConfig,
    show: bool,
) -> tuple[ClipResult, ShownClip | None]:
    """gaze: None for random patches, as many as the ratio lets a frame have."""
    frames = clip.pixels[None].to(device).float() / 255
    loss_threshold: float | None = None
    if gaze is None:
        info = RandomSelector().select(frames, task.grid, draw_ratio(budget, False), None)
        limits = patches_per_frame(1.0, task.grid.size, 1, frames.shape[1])[0]
    else:
        info, limits, loss_threshold = select(gaze, gaze.processor.prepare(frames), budget)
    video = task.normalize(frames)
    result = task(video, info, list(range(frames.shape[1])))
    losses = result.frame_losses[0].tolist()
    measured = ClipResult(
        loss=float(result.loss.mean()),
        ratio=result.gazing_ratio,
        patches=int(result.kept.sum()),
        asked=_asked(result, limits, loss_threshold),
        greedy=_greedy_patches(task, video, result.frame_losses) if isinstance(task, MosaicTask) else None,
    )
    if not show:
        return measured, None
    selection = read_selection(info, task.grid, "validation")
    here = Selection(selection.index.cpu(), selection.keep.cpu(), selection.frame.cpu(), selection.counts)
    rebuilt = task.denormalize(result.reconstruction)[0].cpu()
    return measured, ShownClip(clip.path.name, frames[0].cpu(), here, rebuilt, losses, task.grid)


def select(gaze: AutoGaze, pixels: torch.Tensor, budget: BudgetConfig) -> tuple[GazingInfo, torch.Tensor, float | None]:
    """What the model keeps of one clip (1, T, 3, H, W), by the strategies that `budget` has for inference, whatever the
    model's own are. -> also the patches that each frame might have kept (T,), and the loss to stop at, if any."""
    size = gaze.config.num_vision_tokens_each_frame
    steps = pixels.shape[1] // gaze.config.encoder.temporal_patch_size
    loss_threshold = draw_requirement(budget, False) if budget.use_requirement_inference else None
    share = draw_ratio(budget, False)
    ratio: Ratio = share
    if budget.frame_inference == "dirichlet":
        ratio = dirichlet_ratios(share, budget.dirichlet_alpha, steps)
    limits = patches_per_frame(ratio, size, 1, steps)[0]
    if budget.frame_inference == "self":
        first = gaze.generate(pixels, share, draw_requirement(budget, False), do_sample=False, reward_guidance=0)
        kept = read_selection(first, gaze.grid, "validation")
        counts = torch.stack([part.sum() for part in kept.keep[0].split(kept.counts)])
        ratio = (counts.clamp(min=1) + 0.5) / size  # the half is cut off again
    return gaze.generate(pixels, ratio, loss_threshold, do_sample=False, reward_guidance=0), limits, loss_threshold


def _asked(result: TaskResult, limits: torch.Tensor, loss_threshold: float | None) -> list[float]:
    """Of frames that the stop rule ended: more than the one patch that every frame keeps, and fewer than its limit."""
    if not loss_threshold:
        return []
    rows = zip(result.frame_losses[0].tolist(), result.kept[0].tolist(), limits.tolist(), strict=True)
    return [loss / loss_threshold for loss, count, limit in rows if 1 < count < limit]


def _greedy_patches(task: MosaicTask, video: torch.Tensor, losses: torch.Tensor) -> int:
    """Patches that the greedy search keeps to be as good as `losses` (1, T) in every frame."""
    budgets = torch.full(losses.shape, task.grid.size)
    found = search_mosaic(task, video, losses + 1e-6, budgets)
    return int((found.ids >= 0).sum())
