"""Videos that are decoded already: pictures, arrays and tensors in memory, and what Pillow reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..common.errors import InputError, first_line
from ..common.pixels import CHANNELS, PICTURE_ERRORS, picture_array, rgb_picture
from .container import VideoFile
from .reader import USUAL_FPS, FrameReader


class DecodedFrames(FrameReader[np.ndarray]):
    """Frames that lie in memory.

    frames: (T, H, W, 3) or (T, 3, H, W), an array or a tensor on any device, uint8 or float in [0, 1]; or a list of
    pictures, each (H, W, 3), (3, H, W) or of Pillow. times: seconds of each, ascending; otherwise fps counts. timed:
    whether either was said.
    """

    def __init__(self, frames: Any, fps: float | None = None, times: Sequence[float] | None = None) -> None:
        super().__init__()
        self._frames = list(frames) if isinstance(frames, (list, tuple)) else frames
        count = len(self._frames)
        self.name = f"video of {count} frames"
        if not count:
            raise InputError("a video without a single frame was given")
        if hasattr(self._frames, "shape") and (len(frames.shape) != 4 or 0 in frames.shape or _last(frames) is None):
            raise InputError(f"frames have the shape {tuple(frames.shape)}, expected (T, H, W, 3) or (T, 3, H, W)")
        self._channels_last = _last(frames) if hasattr(self._frames, "shape") else None
        self.timed = times is not None or fps is not None
        if times is not None:
            self.seconds = _checked_times(times, count)
            span = float(self.seconds[-1] - self.seconds[0])
            self.fps = (count - 1) / span if span else 0.0
        else:
            self.fps = fps or USUAL_FPS
            self.seconds = np.arange(count) / self.fps

    def _pictures(self, wanted: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        for number in wanted:
            yield number, self._picture(number)

    def _picture(self, number: int) -> np.ndarray:
        frame = self._frames[number]
        if isinstance(frame, Image.Image):
            return np.asarray(rgb_picture(frame, f"{self.name}, frame {number}"))
        return picture_array(frame, f"{self.name}, frame {number}", self._channels_last)


class PictureReader(FrameReader[np.ndarray]):
    """A picture as a video, as Pillow reads it: one frame, or the frames of an animation."""

    def __init__(self, file: VideoFile, animated: bool = False) -> None:
        super().__init__()
        self.file, self.name = file, file.name
        self.seconds = np.zeros(1)
        with self._open() as image:
            count = getattr(image, "n_frames", 1) if animated else 1
            if count > 1:
                self._read_times(image, count)

    def _read_times(self, image: Image.Image, count: int) -> None:
        ends = [0.0]
        for number in range(count):
            self._seek(image, number)
            ends.append(ends[-1] + max(float(image.info.get("duration", 0)), 1.0) / 1000)
        self.seconds, self.last, self.fps = np.array(ends[:-1]), ends[-1] - ends[-2], count / ends[-1]

    def _pictures(self, wanted: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        with self._open() as image:
            for number in wanted:
                self._seek(image, number)
                yield number, np.asarray(rgb_picture(image, self.name))

    def _open(self) -> Image.Image:
        try:
            return Image.open(self.file.stream())
        except PICTURE_ERRORS as error:
            raise InputError(f"{self.name}: not a readable picture ({first_line(error)})") from error

    def _seek(self, image: Image.Image, number: int) -> None:
        try:
            image.seek(number)
            image.load()
        except (EOFError, *PICTURE_ERRORS) as error:
            raise InputError(
                f"{self.name}: picture {number} of an animation cannot be read ({first_line(error)})"
            ) from error


def is_animation(file: VideoFile) -> bool:
    """Whether a file is an animated picture that Pillow reads and FFmpeg does not."""
    head = file.head(64)
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X":
        return bool(head[20:21] and head[20] & 2)
    return head[4:12] == b"ftypavis"


def _last(frames: Any) -> bool | None:
    """Whether channels come last in (T, H, W, 3); False for (T, 3, H, W), None for neither."""
    if frames.shape[-1] == CHANNELS:
        return True
    return False if frames.shape[1] == CHANNELS else None


def _checked_times(times: Sequence[float], count: int) -> np.ndarray:
    try:
        seconds = np.asarray(times.detach().cpu() if isinstance(times, torch.Tensor) else times, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"times must be the seconds of each frame, got {type(times).__name__}") from error
    if seconds.shape != (count,):
        raise InputError(f"{count} frames need as many times, got {seconds.size}")
    if not np.isfinite(seconds).all() or (np.diff(seconds) <= 0).any():
        raise InputError("times must be finite and ascend from frame to frame")
    return seconds
