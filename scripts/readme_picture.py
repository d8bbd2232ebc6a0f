"""Writes docs/overlay.png, the picture of the README: one frame of the demo's overlay video."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from autogaze_mllm.video.reader import VideoReader

if __name__ == "__main__":
    overlay, frame = Path(sys.argv[1]), int(sys.argv[2])
    target = Path(__file__).resolve().parents[1] / "docs" / "overlay.png"
    Image.fromarray(next(VideoReader(overlay).read([frame])).frames[0]).save(target, optimize=True)
