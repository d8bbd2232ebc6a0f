"""Writing a video file, for overlays, demos and tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace

from ..common.errors import InputError
from ..common.storage.files import atomic_write, output_folder

FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".avi": "avi", ".ts": "mpegts"}
CODECS = {".webm": "libvpx-vp9"}  # libx264 elsewhere
# What x264 may use of a processor that has AVX-512: all but that.
ASM = "MMX2,SSE2,SSSE3,SSE4.2,AVX,FMA3,BMI1,BMI2,AVX2"


def x264_options(options: dict[str, str] | None = None) -> dict[str, str]:
    """These options of libx264, such that the same frames become the same bytes.

    Its AVX-512 code for the bit rates of macroblocks (mbtree) gives, about once in fifty files, other ones, even with
    one thread; what it gives the other times is what it gives without AVX-512.
    """
    chosen = dict(options or {})
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        given = chosen.get("x264-params")
        chosen["x264-params"] = f"{given}:asm={ASM}" if given else f"asm={ASM}"
    return chosen


@contextmanager
def video_writer(
    path: str | Path, fps: float, *, codec: str | None = None, options: dict[str, str] | None = None
) -> Iterator[Callable[[np.ndarray], None]]:
    """Gives a function that takes frames (height, width, 3) uint8 RGB, even sides, all alike.

    The file takes its name only when the block ends without an error and at least one frame was written.
    """
    target = Path(path)
    if target.is_dir():
        raise InputError(f"{target}: is a folder, expected the name of a video file")
    if target.suffix.lower() not in FORMATS:
        raise InputError(f"{target}: expected the name of a video file ({', '.join(FORMATS)})")
    if not fps > 0:
        raise InputError(f"{target}: the frame rate must be above 0, got {fps}")
    output_folder(target.parent)
    container_format = FORMATS[target.suffix.lower()]
    default = CODECS.get(target.suffix.lower(), "libx264")
    with atomic_write(target) as temporary, av.open(str(temporary), "w", format=container_format) as container:
        stream: Any = None  # made from the first frame, which tells the size

        def write(frame: np.ndarray) -> None:
            nonlocal stream
            if stream is None:
                if frame.shape[0] % 2 or frame.shape[1] % 2:
                    raise InputError(f"{target}: frames need even sides, got {frame.shape[1]}x{frame.shape[0]}")
                name = codec or default
                chosen = x264_options(options) if name == "libx264" else options or {}
                stream = container.add_stream(name, rate=Fraction(fps).limit_denominator(1000), options=chosen)
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv420p"
                # What the conversion from RGB makes; a file that does not say so is guessed to be something else.
                stream.codec_context.colorspace = Colorspace.ITU601
                stream.codec_context.color_range = ColorRange.MPEG
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))

        yield write
        if stream is None:
            raise InputError(f"{target}: there is no frame to write")
        container.mux(stream.encode())


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    fps: float,
    *,
    codec: str | None = None,
    options: dict[str, str] | None = None,
) -> None:
    """All frames into one file, see `video_writer`."""
    with video_writer(path, fps, codec=codec, options=options) as write:
        for frame in frames:
            write(frame)
