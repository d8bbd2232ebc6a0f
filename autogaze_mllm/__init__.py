"""AutoGaze for multimodal LLMs: the tower and the LLM see only the few patches of a video worth looking at.

Notable design decisions: composition around a base model, never patching; ragged and packed, never padded; the grid
travels with the indices; a clip's result depends on that clip alone.
"""

from .common.errors import InputError
from .common.pixels import PixelFormat
from .gaze.autogaze.config import AutoGazeConfig
from .gaze.autogaze.decoding.generation import GazeState
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
from .mllm.loading import load
from .mllm.model import GazedModel
from .mllm.wrap import wrap
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
