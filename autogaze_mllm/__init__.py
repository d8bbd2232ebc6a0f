"""AutoGaze for multimodal LLMs: the tower and the LLM see only the few patches of a video worth looking at.

Notable design decisions: composition around a base model, never patching; ragged and packed, never padded; the grid
travels with the indices; a clip's result depends on that clip alone.

Names are imported when they are first used: torch and transformers take seconds, and `--help` needs neither.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .common.errors import InputError
    from .common.pixels import PixelFormat
    from .finetuning.config import FinetuneConfig
    from .finetuning.run import finetune
    from .gaze.autogaze.config import AutoGazeConfig
    from .gaze.autogaze.decoding.state import GazeState
    from .gaze.autogaze.greedy import GreedySelector
    from .gaze.autogaze.model import AutoGaze
    from .gaze.autogaze.processor import AutoGazeImageProcessor
    from .gaze.gazed_video import GazedVideo
    from .gaze.grid import PatchGrid
    from .gaze.pipeline import gaze_video
    from .gaze.selection import GazingInfo
    from .gaze.selectors.base import Selector
    from .gaze.selectors.baselines import AllSelector, RandomSelector
    from .gaze.selectors.pixel_diff import PixelDiffSelector
    from .gaze.settings import VideoSettings, preset
    from .mllm.calls.answers import Answer
    from .mllm.families import Family, register_family
    from .mllm.loading import load
    from .mllm.model import GazedModel
    from .mllm.wrap import wrap
    from .video.sources import Video
    from .vision.adapters import TowerAdapter, register_tower
    from .vision.tower import GazedSiglipVisionModel, GazedVisionModel

__version__ = "0.1.0"  # the only place where it stands

__all__ = [
    "AllSelector",
    "Answer",
    "AutoGaze",
    "AutoGazeConfig",
    "AutoGazeImageProcessor",
    "Family",
    "FinetuneConfig",
    "GazeState",
    "GazedModel",
    "GazedSiglipVisionModel",
    "GazedVideo",
    "GazedVisionModel",
    "GazingInfo",
    "GreedySelector",
    "InputError",
    "PatchGrid",
    "PixelDiffSelector",
    "PixelFormat",
    "RandomSelector",
    "Selector",
    "TowerAdapter",
    "Video",
    "VideoSettings",
    "finetune",
    "gaze_video",
    "load",
    "preset",
    "register_family",
    "register_tower",
    "wrap",
]

_HOMES = {
    ".common.errors": ("InputError",),
    ".common.pixels": ("PixelFormat",),
    ".finetuning.config": ("FinetuneConfig",),
    ".finetuning.run": ("finetune",),
    ".gaze.autogaze.config": ("AutoGazeConfig",),
    ".gaze.autogaze.decoding.state": ("GazeState",),
    ".gaze.autogaze.greedy": ("GreedySelector",),
    ".gaze.autogaze.model": ("AutoGaze",),
    ".gaze.autogaze.processor": ("AutoGazeImageProcessor",),
    ".gaze.gazed_video": ("GazedVideo",),
    ".gaze.grid": ("PatchGrid",),
    ".gaze.pipeline": ("gaze_video",),
    ".gaze.selection": ("GazingInfo",),
    ".gaze.selectors.base": ("Selector",),
    ".gaze.selectors.baselines": ("AllSelector", "RandomSelector"),
    ".gaze.selectors.pixel_diff": ("PixelDiffSelector",),
    ".gaze.settings": ("VideoSettings", "preset"),
    ".mllm.calls.answers": ("Answer",),
    ".mllm.families": ("Family", "register_family"),
    ".mllm.loading": ("load",),
    ".mllm.model": ("GazedModel",),
    ".mllm.wrap": ("wrap",),
    ".video.sources": ("Video",),
    ".vision.adapters": ("TowerAdapter", "register_tower"),
    ".vision.tower": ("GazedSiglipVisionModel", "GazedVisionModel"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOME[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
