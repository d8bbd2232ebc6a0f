"""What is to be done with every video of a folder, and on what device."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..gaze.settings import VideoSettings

if TYPE_CHECKING:
    from ..gaze.selectors.base import AnySelector


@dataclass(frozen=True)
class IndexJob:
    """What is to be done with every video; goes to the workers as it is.

    folder, out: of the videos, of the index. model: whose form gazed videos have (None: the bundled one). encode: keep
    its visual tokens, too. gaze, settings, overrides: as of `load_or_wrap`. device: None: an accelerator if there is
    one.
    """

    folder: str
    out: str
    model: str | None = None
    encode: bool = False
    gaze: AnySelector | str | None = None
    settings: VideoSettings | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    device: str | None = None


def placed(job: IndexJob) -> IndexJob:
    """The same job for processes that work in other folders: what lies on the disk by its whole path."""

    def whole(name: str | None) -> str | None:
        return str(Path(name).resolve()) if name is not None and Path(name).is_dir() else name

    gaze = whole(job.gaze) if isinstance(job.gaze, str) else job.gaze
    folder, out = str(Path(job.folder).resolve()), str(Path(job.out).resolve())
    return replace(job, folder=folder, out=out, model=whole(job.model), gaze=gaze)


def chosen_device(name: str | None, number: int) -> str:
    if name is not None:
        return name
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if kind is None:
        return "cpu"
    return f"cuda:{number % torch.cuda.device_count()}" if kind.type == "cuda" else str(kind)
