"""VideoSettings: how a video is turned into gazed patches, and the presets."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

from ..common.errors import InputError

Ratio = float | tuple[float, ...]


@dataclass(frozen=True)
class VideoSettings:
    """frames: frames taken from a video, evenly spread. chunk_frames: frames of one clip; gaze starts anew in each.

    max_tiles: a frame is cut into at most this many square tiles (1: the whole frame is one); enlarge: also into more
    than it has pixels for, if that fits its aspect better, as published. ratio: share of a
    tile's patches that may be kept in a frame, in (0, 1]; one number, or one per frame of a chunk. loss: a frame stops
    once the selector's loss is not above it, in the selector's own unit; None: its default; 0: no stop rule.
    predicted_loss: the default for gaze models that predict the published reconstruction loss. thumbnails: whole
    frames that are looked at besides the tiles, each a clip of one frame, with a ratio and loss of their own (1 and 0:
    keep all).
    """

    frames: int = 32
    chunk_frames: int = 16
    max_tiles: int = 1
    ratio: Ratio = 0.75
    loss: float | None = None
    predicted_loss: float = 0.7
    thumbnails: int = 0
    thumbnail_ratio: float = 1.0
    thumbnail_loss: float | None = 0.0
    enlarge: bool = True

    def __post_init__(self) -> None:
        for name in ("frames", "chunk_frames", "max_tiles", "thumbnails"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), int):
                raise InputError(f"{name} must be a whole number, got {getattr(self, name)!r}")
        for name in ("loss", "predicted_loss", "thumbnail_ratio", "thumbnail_loss"):
            if not isinstance(getattr(self, name), (int, float, NoneType)):
                raise InputError(f"{name} must be a number, got {getattr(self, name)!r}")
        if not isinstance(self.enlarge, bool):
            raise InputError(f"enlarge must be true or false, got {self.enlarge!r}")
        for name in ("frames", "chunk_frames", "max_tiles"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.thumbnails < 0:
            raise InputError(f"thumbnails must be at least 0, got {self.thumbnails}")
        if isinstance(self.ratio, Sequence) and not isinstance(self.ratio, str):
            object.__setattr__(self, "ratio", tuple(self.ratio))
        ratios = self.ratio if isinstance(self.ratio, tuple) else (self.ratio,)
        for ratio in (*ratios, self.thumbnail_ratio):
            if not isinstance(ratio, (int, float)):
                raise InputError(f"ratio must be a number, or one per frame of a chunk, got {self.ratio!r}")
            if not 0 < ratio <= 1:
                raise InputError(f"ratio must lie in (0, 1], got {ratio}")
        if isinstance(self.ratio, tuple) and len(self.ratio) != self.chunk_frames:
            raise InputError(f"ratio has {len(self.ratio)} entries, a chunk has {self.chunk_frames} frames")
        for loss in (self.loss, self.predicted_loss, self.thumbnail_loss):
            if loss is not None and not loss >= 0:
                raise InputError(f"loss must be at least 0, got {loss}")

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> VideoSettings:
        """Raises InputError for names that are not settings."""
        return cls().changed(**stored)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def changed(self, **overrides: Any) -> VideoSettings:
        """A copy with other values; InputError naming the settings when one is unknown."""
        known = {field.name for field in dataclasses.fields(self)}
        unknown = sorted(overrides.keys() - known)
        if unknown:
            raise InputError(f"unknown setting {unknown[0]!r}; known: {', '.join(sorted(known))}")
        return dataclasses.replace(self, **overrides)

    def sampling(self) -> tuple[int, int, int, bool, int]:
        """What decides which pictures a selector gets to see; settings that agree in it can share the decoding."""
        return self.frames, self.chunk_frames, self.max_tiles, self.enlarge, self.thumbnails

    def ratio_for(self, frames: int) -> float | list[float]:
        """The ratio for a chunk of this many frames (the last one of a video may be shorter)."""
        return list(self.ratio[:frames]) if isinstance(self.ratio, tuple) else self.ratio


_HD_RATIO = (0.2, *[0.06] * 15)

PRESETS: dict[str, VideoSettings] = {
    # The model card's values of NVILA-8B-HD-Video; what it keeps of thumbnails is everything.
    "nvila-hd": VideoSettings(frames=128, max_tiles=48, ratio=_HD_RATIO, predicted_loss=0.6, thumbnails=64),
    "nvila-hd-1k": VideoSettings(frames=1024, max_tiles=48, ratio=_HD_RATIO, predicted_loss=0.6, thumbnails=64),
    # Few frames, whole frames: for a first look and for models that were never trained on tiles.
    "fast": VideoSettings(frames=16, ratio=(0.25, *[0.1] * 15)),
    "quality": VideoSettings(frames=256, max_tiles=16, ratio=(0.5, *[0.25] * 15), thumbnails=64),
}


def preset(name: str) -> VideoSettings:
    """One of PRESETS; change single fields with `.changed(...)`."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
