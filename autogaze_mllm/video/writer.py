"""Writing a video file, for overlays, demos and tests."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from ..errors import InputError
from ..files import atomic_write, output_folder


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: float, *, codec: str = "libx264",
                options: dict[str, str] | None = None) -> None:
    """frames: (height, width, 3) uint8 RGB, even sides, all alike. The file takes its name when it is complete."""
    target = Path(path)
    output_folder(target.parent)
    if target.is_dir():
        raise InputError(f"{target}: is a folder, expected the name of a video file")
    if target.suffix.lower() not in (".mp4", ".mkv", ".mov", ".avi", ".webm", ".ts"):
        raise InputError(f"{target}: expected a video file name such as overlay.mp4")
    with atomic_write(target) as temporary:
        container_format = {".mkv": "matroska", ".ts": "mpegts"}.get(target.suffix.lower(), target.suffix.lower()[1:])
        with av.open(str(temporary), "w", format=container_format) as container:
            stream = None
            for frame in frames:
                if stream is None:
                    stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1000), options=options or {})
                    stream.height, stream.width = frame.shape[:2]
                    stream.pix_fmt = "yuv420p"
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            if stream is None:
                raise InputError(f"{target}: there is no frame to write")
            container.mux(stream.encode())
