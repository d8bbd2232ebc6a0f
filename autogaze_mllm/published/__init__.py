"""The names, arguments and results of the published AutoGaze code: its quick start runs but for the import lines.

    from autogaze_mllm.published import AutoGaze, AutoGazeImageProcessor, SiglipVisionModel
    from autogaze_mllm.published import read_video_pyav, transform_video_for_pytorch

Everything here is the package's own, called by other names: a model of this room stands wherever an `am.AutoGaze` or an
`am.GazedSiglipVisionModel` does. What differs from the published code, and why: docs/published.md.
"""

from __future__ import annotations

from .gaze import AutoGaze, AutoGazeConfig, AutoGazeImageProcessor
from .registration import register
from .siglip import SiglipVisionModel
from .video import process_video_frames, read_video_pyav, sample_frame_indices, transform_video_for_pytorch

GazedSiglipVisionModel = SiglipVisionModel

__all__ = [
    "AutoGaze",
    "AutoGazeConfig",
    "AutoGazeImageProcessor",
    "GazedSiglipVisionModel",
    "SiglipVisionModel",
    "process_video_frames",
    "read_video_pyav",
    "sample_frame_indices",
    "transform_video_for_pytorch",
]

register()
