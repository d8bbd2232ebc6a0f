"""VideoSettings: how a video is turned into gazed patches, and the presets."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..common.errors import InputError
from ..common.fields import Number, PerFrame, setting, settings, settings_of
from ..video import PYAV, Decoder

UNSAID = {("decoder", PYAV), ("gain", None)}  # settings that came after things were stored, and what was so all along
SAMPLING, LIMITS = "sampling", "limits"  # groups of settings: which pictures a selector sees, what it may keep of them


@settings()
class VideoSettings:
    """What is taken from a video, and how much of it may be kept."""

    frames: int = setting(
        "frames taken from the video, evenly spread",
        default=32,
        report="frames taken from a video",
        at_least=1,
        slider=(1, 256, 1),
        group=SAMPLING,
    )
    fps: Number | None = setting(
        "frames taken for each second of the video, instead of --frames",
        usual=False,
        default=None,
        manual="frames taken for each second of the video, instead of `frames` of them spread evenly",
        report="frames taken for each second",
        metavar="N",
        above=0,
        at_most=1000,
        group=SAMPLING,
    )
    chunk_frames: int = setting(
        "frames that gaze sees together; then it starts anew",
        manual="frames of one clip; gaze starts anew in each",
        default=16,
        report="frames of a clip",
        at_least=1,
        metavar="N",
        group=SAMPLING,
    )
    max_tiles: int = setting(
        "cut a frame into at most N tiles",
        default=1,
        manual="a frame is cut into at most so many square tiles; 1: the whole frame is one",
        report="tiles of a frame at most",
        at_least=1,
        at_most=1024,  # all grids of so many tiles are looked through; published: 48
        refusal="max_tiles must be at least 1, and at most 1024",
        slider=(1, 144, 1),
        metavar="N",
        group=SAMPLING,
    )
    ratio: PerFrame = setting(
        "share of a frame's patches that may be kept, in (0, 1]",
        default=0.75,
        manual="share of a tile's patches that may be kept in a frame, in (0, 1]; in Python and in a file of options "
        "also one number per frame of a chunk",
        report="share of patches that may be kept",
        above=0,
        at_most=1,
        slider=(0.001, 1, 0.001),
        group=LIMITS,
    )
    loss: Number | None = setting(
        "a frame stops at this loss",
        default=None,
        usual="default: the selector's own; 0: never",
        manual="a frame stops once the selector's loss is not above it, in the [selector's unit](selectors.md); "
        "0: never",
        at_least=0,
        slider=(0, 1, 0.005),
        group=LIMITS,
    )
    gain: Number | None = setting(
        "a frame stops once no patch would bring more than this; then --loss ends nothing unless it is given",
        default=None,
        usual="default: the selector's own",
        manual="a frame stops once no patch that is left would bring more than this, [of what can be "
        "seen](selectors.md#what-a-patch-must-bring); `loss` then ends nothing unless it is given",
        report="what a patch must bring",
        at_least=0,
        group=LIMITS,
    )
    predicted_loss: Number = setting(
        "the default of --loss for gaze models that predict the published reconstruction loss",
        manual="the default of `loss` for gaze models that predict the published reconstruction loss",
        default=0.7,
        metavar="LOSS",
        at_least=0,
        group=LIMITS,
    )
    thumbnails: int = setting(
        "whole frames looked at besides the tiles",
        default=0,
        manual="whole frames that are looked at besides the tiles, each a clip of one frame",
        report="whole frames besides the tiles",
        at_least=0,
        metavar="N",
        group=SAMPLING,
    )
    thumbnail_ratio: Number = setting(
        "share of a thumbnail's patches that may be kept, in (0, 1]",
        default=1.0,
        report="share of patches kept of thumbnails",
        above=0,
        at_most=1,
        metavar="RATIO",
        group=LIMITS,
    )
    thumbnail_loss: Number | None = setting(
        "a thumbnail stops at this loss; 0: never",
        default=0.0,
        report="loss at which a thumbnail stops",
        metavar="LOSS",
        at_least=0,
        group=LIMITS,
    )
    enlarge: bool = setting(
        "cut a frame into more tiles than it has pixels for, too, if that fits its aspect better, as published",
        default=True,
        report="frames are cut into more tiles than they have pixels for",
        group=SAMPLING,
    )

    decoder: Decoder = setting(
        "what decodes video files: pyav, on the processor, or torchcodec, on the GPU where the device is one",
        manual="what decodes video files: `pyav`, on the processor, or `torchcodec`, on the GPU where the device is "
        "one; see [on a GPU](gpu.md#decoding-on-the-card)",
        default=PYAV,
        report="decoded by",
        group=SAMPLING,
    )

    def __post_init__(self) -> None:
        if isinstance(self.ratio, tuple) and len(self.ratio) != self.chunk_frames:
            raise InputError(f"ratio has {len(self.ratio)} entries, a chunk has {self.chunk_frames} frames")

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> VideoSettings:
        """Raises InputError for names that are not settings."""
        return cls().changed(**stored)

    def to_dict(self) -> dict[str, Any]:
        """Without a setting that came later where it changes nothing, so that what was stored before is still found."""
        known = dataclasses.asdict(self)
        return {name: value for name, value in known.items() if (name, value) not in UNSAID}

    def changed(self, **overrides: Any) -> VideoSettings:
        """A copy with other values; InputError naming the settings when one is unknown."""
        known = {field.name for field in dataclasses.fields(self)}
        unknown = sorted(overrides.keys() - known)
        if unknown:
            raise InputError(f"unknown setting {unknown[0]!r}; known: {', '.join(sorted(known))}")
        return dataclasses.replace(self, **overrides)

    def sampling(self) -> tuple[float | None, ...]:
        """What decides which pictures a selector gets to see; settings that agree in it can share the decoding."""
        return tuple(getattr(self, one.name) for one in settings_of(VideoSettings) if one.group == SAMPLING)

    def ratio_for(self, frames: int) -> float | list[float]:
        """The ratio for a chunk of this many frames (the last one of a video may be shorter)."""
        return list(self.ratio[:frames]) if isinstance(self.ratio, tuple) else self.ratio


_HD_RATIO = (0.2, *[0.06] * 15)

PRESETS: dict[str, VideoSettings] = {
    # The model card's values of NVILA-8B-HD-Video; what it keeps of thumbnails is everything.
    "nvila-hd": VideoSettings(frames=128, max_tiles=48, ratio=_HD_RATIO, predicted_loss=0.6, thumbnails=64),
    "nvila-hd-1k": VideoSettings(frames=1024, max_tiles=48, ratio=_HD_RATIO, predicted_loss=0.6, thumbnails=64),
    # For families that look at every video in its own shape (Qwen): max_tiles bounds the size of a frame.
    "qwen-hd": VideoSettings(frames=256, max_tiles=16, ratio=_HD_RATIO, enlarge=False),
    "qwen-fast": VideoSettings(frames=32, max_tiles=2, ratio=(0.25, *[0.1] * 15), enlarge=False),
    # Few frames, whole frames: for a first look and for models that were never trained on tiles.
    "fast": VideoSettings(frames=16, ratio=(0.25, *[0.1] * 15)),
    "quality": VideoSettings(frames=256, max_tiles=16, ratio=(0.5, *[0.25] * 15), thumbnails=64),
}


def preset(name: str) -> VideoSettings:
    """One of PRESETS; change single fields with `.changed(...)`."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
