"""What a model in training does on held-out clips: how much it keeps, how well that shows the video, and pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..common.storage.files import atomic_write, output_folder
from ..gaze.autogaze.model import AutoGaze
from ..gaze.grid import PatchGrid
from ..gaze.overlay import draw_patches, patch_box
from ..gaze.selection import GazingInfo, Selection, read_selection
from ..gaze.selectors.baselines import RandomSelector
from .config import TrainingConfig
from .data.clips import ClipSource
from .search.greedy import search_mosaic
from .tasks.base import ReconstructionTask
from .tasks.mosaic import MosaicTask

PICTURES = 4  # clips shown


@torch.no_grad()
def validate(
    gaze: AutoGaze, task: ReconstructionTask, clips: ClipSource, settings: TrainingConfig, picture: Path
) -> dict[str, float]:
    """Greedy decoding of the first clips with the validation budget and stop rule.

    -> val_loss (of the task), val_gazing_ratio, val_patches (of a clip), val_asked (the loss at which frames stopped,
    over the one asked for), and for the mosaic task val_greedy_patches: what the greedy search needs for the same loss
    in every frame. Writes the picture: original, kept patches, reconstruction.
    """
    gaze.eval()
    losses, ratios, patches, greedy, stopped, shown = [], [], [], [], [], []
    device = gaze.device
    for number in range(min(settings.val_clips, len(clips))):
        frames = clips.clip(number).pixels[None].to(device).float() / 255
        info = _select(gaze, task, frames, settings)
        result = task(task.normalize(frames), info, list(range(frames.shape[1])))  # all, as training may not
        losses.append(float(result.loss.mean()))
        ratios.append(result.gazing_ratio)
        patches.append(float(result.kept.sum()))
        if settings.val_loss and info.task_loss_requirement is not None:
            stopped += _stopped_losses(info, result.frame_losses, result.kept, settings)
        if isinstance(task, MosaicTask):
            greedy.append(_greedy_patches(task, task.normalize(frames), result.frame_losses))
        if number < PICTURES:
            selection = read_selection(info, task.grid, "validation")
            shown.append(picture_rows(frames[0], selection, task.denormalize(result.reconstruction)[0], task.grid))
    output_folder(picture.parent)
    with atomic_write(picture) as temporary:
        Image.fromarray(np.concatenate(shown)).save(temporary, format="png")
    values = {
        "val_loss": float(np.mean(losses)),
        "val_gazing_ratio": float(np.mean(ratios)),
        "val_patches": float(np.mean(patches)),
    }
    if stopped and settings.val_loss:
        values["val_asked"] = float(np.mean(stopped)) / settings.val_loss
    if greedy:
        values["val_greedy_patches"] = float(np.mean(greedy))
    return values


def _select(gaze: AutoGaze, task: ReconstructionTask, frames: torch.Tensor, settings: TrainingConfig) -> GazingInfo:
    if not settings.train_gaze and settings.selections == "random":
        return RandomSelector().select(frames, task.grid, settings.val_ratio, None)
    return gaze.generate(
        gaze.processor.normalize(frames), settings.val_ratio, settings.val_loss or None, do_sample=False
    )


def _stopped_losses(
    info: GazingInfo, losses: torch.Tensor, kept: torch.Tensor, settings: TrainingConfig
) -> list[float]:
    """Losses (of the first row) of frames that the stop rule ended: more than the one patch that every frame keeps,
    and fewer than the budget."""
    assert info.num_vision_tokens_each_frame is not None
    limit = max(int(settings.val_ratio * info.num_vision_tokens_each_frame), 1)
    pairs = zip(losses[0].tolist(), kept[0].tolist(), strict=True)
    return [loss for loss, count in pairs if 1 < count < limit]


def _greedy_patches(task: MosaicTask, video: torch.Tensor, losses: torch.Tensor) -> float:
    """Patches that the greedy search keeps to be as good as `losses` (1, T) in every frame."""
    budgets = torch.full(losses.shape, task.grid.size)
    found = search_mosaic(task, video, losses + 1e-6, budgets)
    return float((found.ids >= 0).sum())


def picture_rows(
    frames: torch.Tensor, selection: Selection, rebuilt: torch.Tensor, grid: PatchGrid, columns: int = 8
) -> np.ndarray:
    """Three rows for a clip: its frames (T, 3, H, W) in [0, 1], the kept patches outlined, and `rebuilt`.

    selection: of this clip alone. At most `columns` frames, spread over the clip. -> (3 * H, columns * W, 3) uint8.
    """
    shown = np.unique(np.linspace(0, len(frames) - 1, columns).round().astype(int))

    def image(pixels: torch.Tensor) -> np.ndarray:
        return (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()

    originals = [image(frames[t]) for t in shown]
    kept = [outline_patches(original, selection, int(t), grid) for original, t in zip(originals, shown, strict=True)]
    rows = [originals, kept, [image(rebuilt[t]) for t in shown]]
    blank = [np.zeros_like(originals[0])] * (columns - len(shown))
    return np.concatenate([np.concatenate(row + blank, axis=1) for row in rows])


def outline_patches(frame: np.ndarray, selection: Selection, number: int, grid: PatchGrid) -> np.ndarray:
    """frame (H, W, 3) uint8 -> the same with the kept patches of frame `number` of row 0 outlined."""
    height, width = frame.shape[:2]
    wanted = selection.keep[0] & (selection.frame == number)
    places = zip(*(part.tolist() for part in grid.locate(selection.index[0][wanted])), strict=True)
    panel = (0, 0, width, height)
    boxes = [(scale, patch_box(grid, scale, row, column, panel)) for scale, row, column in places]
    return np.asarray(draw_patches(frame, boxes))
