"""Selectors: anything that picks patches. All take the same frames and return the same GazingInfo."""

from __future__ import annotations

import copy
import zlib
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from ..errors import InputError
from .budget import Ratio, patches_per_frame
from .checkpoint import BUNDLED
from .config import PUBLISHED_TASK
from .grid import PatchGrid, mask_to_positions
from .info import GazingInfo, build_info
from .model import AutoGaze
from .pixel_diff import PixelDiffSelector
from .settings import VideoSettings


@runtime_checkable
class Selector(Protocol):
    @property
    def default_loss(self) -> float | None:
        """The stop rule used when none is given, in the selector's own unit (None: no stop rule)."""
        ...

    def select(self, frames: torch.Tensor, grid: PatchGrid, ratio: Ratio, loss: float | None) -> GazingInfo:
        """frames (B, T, 3, H, W) in [0, 1] at the grid's largest scale -> positions on `grid`.

        ratio: share of the patches that a frame may keep, one number or one per frame. loss: stop rule or None.
        A clip's result depends on that clip alone.
        """
        ...


class AllSelector:
    """Keeps every patch of every scale; ratio and loss do not limit it."""

    name = "all"
    default_loss: float | None = None

    def select(self, frames: torch.Tensor, grid: PatchGrid, ratio: Ratio, loss: float | None) -> GazingInfo:
        batch, steps = frames.shape[:2]
        ids = torch.arange(grid.size, device=frames.device).repeat(steps).expand(batch, -1)
        return build_info(ids, torch.ones_like(ids, dtype=torch.bool), [grid.size] * steps, grid, pad_id=-1)


class RandomSelector:
    """Patches drawn without looking, the baseline to beat. The seed and the clip's content decide, nothing else."""

    name = "random"
    default_loss: float | None = None

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def select(self, frames: torch.Tensor, grid: PatchGrid, ratio: Ratio, loss: float | None) -> GazingInfo:
        batch, steps = frames.shape[:2]
        budgets = patches_per_frame(ratio, grid.size, batch, steps)
        masks = torch.zeros(batch, steps, grid.size)
        thumbs = (frames[..., ::16, ::16].float() * 255).round().to("cpu", torch.uint8)
        for row in range(batch):
            seed = zlib.crc32(thumbs[row].numpy().tobytes(), self.seed & 0xFFFFFFFF)
            generator = torch.Generator().manual_seed(seed)
            for t in range(steps):
                kept = torch.randperm(grid.size, generator=generator)[: int(budgets[row, t])]
                masks[row, t, kept] = 1
        found = [mask_to_positions(masks[:, t].to(frames.device)) for t in range(steps)]
        ids = torch.cat([index.clamp(min=0) for index, _ in found], dim=1)
        keep = ~torch.cat([padded for _, padded in found], dim=1)
        return build_info(ids, keep, [index.shape[1] for index, _ in found], grid, pad_id=-1)


NAMED = {"pixel-diff": PixelDiffSelector, "random": RandomSelector, "all": AllSelector}


def load_selector(
    gaze: Selector | str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **hub: Any,
) -> Selector:
    """A selector object, one of the names in NAMED, or an AutoGaze folder, hub id or "bundled" (moved to device and
    dtype)."""
    if isinstance(gaze, (str, Path)):
        if str(gaze) in NAMED:
            return NAMED[str(gaze)]()
        try:
            return AutoGaze.from_pretrained(gaze, device=device, dtype=dtype, **hub)
        except InputError as error:
            raise InputError(f"{error}. Selectors that need no download: {', '.join((BUNDLED, *NAMED))}") from error
    if isinstance(gaze, AutoGaze):
        same = torch.device(device or gaze.device) == gaze.device and (dtype or gaze.dtype) == gaze.dtype
        # The caller's own model stays as it is: another wrapper may be using it.
        return gaze if same else copy.deepcopy(gaze).to(device=device, dtype=dtype)
    if isinstance(gaze, Selector) and not isinstance(gaze, type):
        return gaze
    names = ", ".join((BUNDLED, *NAMED))
    raise InputError(f"gaze={gaze!r}: expected a model id or folder, one of {names}, or a selector object")


def stop_rule(loss: float | None, selector: Selector, settings: VideoSettings) -> float | None:
    """The loss in force: `loss`, or the selector's default where it is None. Returns None for no stop rule (0)."""
    published = isinstance(selector, AutoGaze) and selector.config.reconstruction_task == PUBLISHED_TASK
    default = settings.predicted_loss if published else selector.default_loss
    chosen = default if loss is None else loss
    return None if chosen == 0 else chosen


def selector_name(selector: Selector) -> str:
    return getattr(selector, "name", type(selector).__name__)
