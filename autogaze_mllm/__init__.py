"""AutoGaze for multimodal LLMs: the tower and the LLM see only the few patches of a video worth looking at.

Notable design decisions: composition around a base model, never patching; ragged and packed, never padded; the grid
travels with the indices; a clip's result depends on that clip alone.
"""

from .errors import InputError
from .gaze.config import AutoGazeConfig
from .gaze.gazed_video import GazedVideo
from .gaze.generation import GazeState
from .gaze.grid import PatchGrid
from .gaze.info import GazingInfo
from .gaze.model import AutoGaze
from .gaze.pipeline import PixelFormat, gaze_video
from .gaze.processor import AutoGazeImageProcessor
from .gaze.selectors import AllSelector, PixelDiffSelector, RandomSelector, Selector
from .gaze.settings import VideoSettings, preset
from .mllm.model import GazedModel
from .mllm.wrap import load, wrap
from .vision.tower import GazedSiglipVisionModel

__version__ = "0.1.0"

__all__ = [
    "AllSelector",
    "AutoGaze",
    "AutoGazeConfig",
    "AutoGazeImageProcessor",
    "GazeState",
    "GazedModel",
    "GazedSiglipVisionModel",
    "GazedVideo",
    "GazingInfo",
    "InputError",
    "PatchGrid",
    "PixelDiffSelector",
    "PixelFormat",
    "RandomSelector",
    "Selector",
    "VideoSettings",
    "gaze_video",
    "load",
    "preset",
    "wrap",
]
