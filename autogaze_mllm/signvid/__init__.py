"""SignVid: generated videos in which small signs turn up for a short while, and questions about them, as in HLVid.

What a sign says is printed in fine lines: it can be read at full resolution and not when the frame is shrunk to a
third, which `legible` proves. Everything follows from a seed; train and test share neither seeds nor fonts nor
backgrounds.
"""

from __future__ import annotations

from .dataset import SignVidConfig, ensure_signvid, read_truth, write_signvid
from .plan import VideoPlan, VideoShape, plan_video

__all__ = ["SignVidConfig", "VideoPlan", "VideoShape", "ensure_signvid", "plan_video", "read_truth", "write_signvid"]
