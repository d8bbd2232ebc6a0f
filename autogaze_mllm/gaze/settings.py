"""VideoSettings: how a video is turned into gazed patches."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InputError


@dataclass(frozen=True)
class VideoSettings:
    """frames: frames taken from a video, evenly spread. chunk_frames: frames of one clip; gaze starts anew in each.

    ratio: share of a frame's patches that may be kept, in (0, 1]; one number, or one per frame of a chunk.
    loss: a frame stops once the selector's loss is not above it; None: the selector's own default; 0: no stop rule.
    """

    frames: int = 32
    chunk_frames: int = 16
    ratio: float | tuple[float, ...] = 0.75
    loss: float | None = None

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise InputError(f"frames must be at least 1, got {self.frames}")
        if self.chunk_frames < 1:
            raise InputError(f"chunk_frames must be at least 1, got {self.chunk_frames}")
        if isinstance(self.ratio, list):
            object.__setattr__(self, "ratio", tuple(self.ratio))
        ratios = self.ratio if isinstance(self.ratio, tuple) else (self.ratio,)
        if not ratios or not all(0 < ratio <= 1 for ratio in ratios):
            raise InputError(f"ratio must lie in (0, 1], got {self.ratio}")
        if isinstance(self.ratio, tuple) and len(self.ratio) != self.chunk_frames:
            raise InputError(f"ratio has {len(self.ratio)} entries, a chunk has {self.chunk_frames} frames")
        if self.loss is not None and not self.loss >= 0:
            raise InputError(f"loss must be at least 0, got {self.loss}")

    def ratio_for(self, frames: int) -> float | list[float]:
        """The ratio for a chunk of this many frames (the last one of a video may be shorter)."""
        return list(self.ratio[:frames]) if isinstance(self.ratio, tuple) else self.ratio

    def loss_for(self, default: float | None) -> float | None:
        """The stop rule in force for a selector with this default."""
        chosen = default if self.loss is None else self.loss
        return None if chosen == 0 else chosen

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
