"""The selectors that have a name, and the gaze models of folders and of the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..common.errors import InputError
from .autogaze.greedy import GreedySelector
from .autogaze.model import AutoGaze
from .autogaze.pretrained import BUNDLED
from .selectors.base import AnySelector, Selector, is_selector
from .selectors.baselines import AllSelector, RandomSelector
from .selectors.pixel_diff import PixelDiffSelector, RawPixelDiffSelector
from .selectors.post_tower import PostTowerSelector

KINDS: tuple[type[Selector], ...] = (
    PixelDiffSelector,
    RawPixelDiffSelector,
    GreedySelector,
    RandomSelector,
    AllSelector,
    PostTowerSelector,
)
NAMED = {kind.name: kind for kind in KINDS}


def load_selector(
    gaze: AnySelector | str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **hub: Any,
) -> AnySelector:
    """A selector object, one of the names in NAMED, or an AutoGaze folder, hub id or "bundled" (moved to device and
    dtype)."""
    if isinstance(gaze, (str, Path)):
        if str(gaze) in NAMED:
            return NAMED[str(gaze)]()
        try:
            return AutoGaze.from_pretrained(gaze, device=device, dtype=dtype, **hub)
        except InputError as error:
            raise InputError(f"{error}. Selectors that need no download: {', '.join((BUNDLED, *NAMED))}") from error
    if isinstance(gaze, Selector):
        return gaze.moved(device, dtype)
    if is_selector(gaze):
        return gaze
    names = ", ".join((BUNDLED, *NAMED))
    raise InputError(f"gaze={gaze!r}: expected a model id or folder, one of {names}, or a selector object")


def stored_selector(entry: dict[str, Any], path: Path) -> AnySelector | str | Path:
    """What `load_selector` takes, of an entry that `Selector.store` made. path: the file that the entry stands in."""
    if "folder" in entry:
        return path.parent / entry["folder"]
    name = entry["name"]
    if name in NAMED:
        try:
            return NAMED[name].restored(entry)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    if name == BUNDLED:
        return name
    raise InputError(f"{path}: saved with a selector of your own ({name}): load it with gaze=<that selector>")
