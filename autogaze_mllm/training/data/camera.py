"""What cameras do to a video: a clip as it should be shown, and as a selector gets to see it.

Noise is added at the selector's size, per pixel. The codec sees the frames that are between the chosen ones, too, with
the short side at most CODED pixels. Shaking and darkness belong to what is to be shown; noise and codecs do not.

Shapes: T frames of a clip, S pixels a side.
"""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import av
import numpy as np
import torch

from ...common.errors import InputError
from ...common.pixels import resize_frames
from ...video.reader import VideoReader
from ...video.sampling import sample_frames
from ...video.writer import x264_options
from .degrade import add_noise

CODED = 448
NOISE = {"noise-low": 0.02, "noise-middle": 0.05, "noise-high": 0.1}  # deviation at mid grey, black to white is 1
CODEC = {"h264-crf-30": 30, "h264-crf-37": 37, "h264-crf-44": 44}
CONDITIONS = ("clean", *NOISE, *CODEC, "shake", "low-light")
DARKNESS = 0.25  # of the light, and twice the noise of noise-low: after the gain of the sensor the noise is what counts


class CameraClip:
    """The frames of a file, read once, under every condition."""

    def __init__(self, path: Path, frames: int, side: int) -> None:
        """frames: of a clip, evenly spread over the file."""
        self.path, self.side = path, side
        whole = [chunk.frames for chunk in VideoReader(path).read()]
        factor = min(CODED / min(whole[0].shape[1:3]), 1.0)
        height, width = (round(length * factor / 2) * 2 for length in whole[0].shape[1:3])
        parts = [resize_frames(part, height, width, torch.device("cpu")) for part in whole]
        self.frames = torch.cat(parts).permute(0, 2, 3, 1).numpy()  # (all, h, w, 3)
        self.chosen = sample_frames(len(self.frames), frames)
        self.generator = torch.Generator()

    def under(self, condition: str) -> tuple[torch.Tensor, torch.Tensor]:
        """-> what is to be shown and what is seen, both (T, 3, S, S) uint8; a file's are always the same."""
        self.generator.manual_seed(zlib.crc32(f"{self.path.name} {condition}".encode()))
        shown = self._resized(self.frames)
        if condition == "clean":
            return shown, shown
        if condition in NOISE:
            return shown, self._noisy(shown, NOISE[condition])
        if condition in CODEC:
            return shown, self._resized(coded(self.frames, CODEC[condition]))
        if condition == "shake":
            shaken = self._resized(self._shaken())
            return shaken, self._noisy(shaken, NOISE["noise-low"] / 2)
        if condition == "low-light":
            dark = (shown.float() * DARKNESS).round().byte()
            return dark, self._noisy(dark, 2 * NOISE["noise-low"])
        raise InputError(f"condition {condition!r} is not known; known: {', '.join(CONDITIONS)}")

    def _resized(self, frames: np.ndarray) -> torch.Tensor:
        return resize_frames(frames[self.chosen], self.side, self.side, torch.device("cpu"))

    def _noisy(self, frames: torch.Tensor, strength: float) -> torch.Tensor:
        half = torch.tensor([0.5])
        noisy = add_noise(frames[None].float() / 255, torch.tensor([strength]), half * 0, half, self.generator)
        return (noisy[0] * 255).round().byte()

    def _shaken(self) -> np.ndarray:
        """A window of 95 % of the frame that wanders by one or two hundredths of it, from each frame to the next."""
        height, width = self.frames.shape[1:3]
        rng = np.random.default_rng(self.generator.initial_seed())
        offset, frames = np.full(2, 0.025), []
        for frame in self.frames:
            offset = (0.025 + 0.7 * (offset - 0.025) + rng.normal(0, 0.01, 2)).clip(0, 0.05)
            top, left = round(offset[0] * height), round(offset[1] * width)
            frames.append(frame[top : top + round(0.95 * height), left : left + round(0.95 * width)])
        return np.stack(frames)


def coded(frames: np.ndarray, quality: int) -> np.ndarray:
    """(T, h, w, 3) uint8 through H.264 at this crf and back."""
    store = io.BytesIO()
    with av.open(store, "w", format="mp4") as container:
        options = x264_options({"crf": str(quality), "preset": "veryfast"})
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    store.seek(0)
    with av.open(store, "r") as stored:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in stored.decode(video=0)])
