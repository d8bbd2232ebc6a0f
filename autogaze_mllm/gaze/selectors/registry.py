"""Selectors: anything that picks patches. All take the same frames and return the same GazingInfo."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from ...common.errors import InputError
from ..autogaze.config import PUBLISHED_TASK
from ..autogaze.model import AutoGaze
from ..autogaze.pretrained import BUNDLED
from ..settings import VideoSettings
from .base import Selector
from .baselines import AllSelector, RandomSelector
from .pixel_diff import PixelDiffSelector

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
