"""What a video may be: a file, its bytes, an open file, or frames in memory; a part of it; how densely it is looked at.

A plain source stands wherever a `Video` does, and a `Video` carries what a plain one cannot say.
"""

from __future__ import annotations

import hashlib
import json
import math
import numbers
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, get_args

import torch
from PIL import Image

from ..common.errors import InputError
from . import PYAV, Decoder
from .container import VideoFile, is_open_file
from .decoded import DecodedFrames, PictureReader, is_animation
from .reader import FrameReader, VideoReader, logger
from .torchcodec_reader import TorchcodecReader

TAKEN = (
    "a path, bytes, an open binary file, a list of pictures, an array or tensor (T, H, W, 3) or (T, 3, H, W), "
    "a decoded batch, or autogaze_mllm.Video of one of these"
)


@dataclass(frozen=True, eq=False)
class Video:
    """A video, or a part of one.

    source: a path, bytes, an open binary file, a list of pictures (Pillow, arrays, tensors), an array or a tensor
    (T, H, W, 3) or (T, 3, H, W) of uint8 or floats in [0, 1], or a batch that torchcodec or decord decoded.
    start, end: seconds; frames with start <= time < end are looked at.
    fps: of a file, how many frames are looked at for each second, instead of the `frames` of VideoSettings. Of frames
    in memory, how many of them are a second. times: of frames in memory, the seconds of each; then fps is as of a file.

    Raises InputError for what cannot be, as far as that is seen without reading it.
    """

    source: Any
    start: float | None = None
    end: float | None = None
    fps: float | None = None
    times: Sequence[float] | None = None

    def __post_init__(self) -> None:
        for name in ("start", "end", "fps"):
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        if self.start is not None and self.start < 0:
            raise InputError(f"start must be at least 0, got {self.start:g}")
        if self.end is not None and self.end <= (self.start or 0):
            raise InputError(f"end must be after start, got {self.start or 0:g} and {self.end:g}")
        if self.fps is not None and self.fps <= 0:
            raise InputError(f"fps must be above 0, got {self.fps:g}")
        kind = _kind(self.source)
        if kind is None:
            raise InputError(_refusal(self.source))
        if kind == "file" and self.times is not None:
            raise InputError("times are for frames in memory: a file has its own")

    def _identity(self) -> tuple[Any, ...]:
        """What two videos have in common that are the same; of sources without a name, only the object itself."""
        named = isinstance(self.source, (str, os.PathLike))
        source = os.fspath(self.source) if named else id(self.source)
        return named, source, self.start, self.end, self.fps, id(self.times)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Video) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    @property
    def sampling(self) -> float | None:
        """Frames to look at for each second, where this video says so itself."""
        taken_already = self.times is None and _kind(self.source) == "frames" and not _brings_times(self.source)
        return None if taken_already else self.fps

    def open(self, decoder: Decoder = PYAV, device: torch.device | None = None) -> FrameReader:
        """Raises InputError for what is no video. decoder: of a file, as in VideoSettings; device: where it decodes
        what PyAV does not."""
        if decoder not in get_args(Decoder):
            raise InputError(f"decoder must be one of {', '.join(get_args(Decoder))}, got {decoder!r}")
        if _kind(self.source) == "file":
            return _read_file(VideoFile(self.source), decoder, device or torch.device("cpu"))
        frames, times = self.source, self.times
        if _brings_times(frames):
            several = isinstance(frames, (list, tuple))
            own = [float(one.pts_seconds) for one in frames] if several else frames.pts_seconds
            frames, times = [one.data for one in frames] if several else frames.data, own if times is None else times
        elif hasattr(frames, "asnumpy"):
            frames = frames.asnumpy()
        return DecodedFrames(frames, self.fps, times)

    def sampled(
        self, frames: int, fps: float | None = None, decoder: Decoder = PYAV, device: torch.device | None = None
    ) -> tuple[FrameReader, list[int]]:
        """Its reader, and the numbers of the frames to look at. frames, fps: as in VideoSettings; decoder, device: as
        of `open`."""
        reader = self.open(decoder, device)
        if isinstance(reader, DecodedFrames) and not reader.timed and len(reader) > 1:
            advice = "say fps= or times= of autogaze_mllm.Video where times matter"
            logger.warning("%s: has no times and is taken to have %g a second; %s", reader.name, reader.fps, advice)
        return reader, reader.sample(frames, self.sampling or fps, self.start, self.end)

    def content(self) -> str:
        """A hash of everything that decides what is seen: of a whole file that of its bytes, of frames in memory that
        of their pixels and times."""
        in_file = _kind(self.source) == "file"
        digest = VideoFile(self.source).content() if in_file else _pixels(self.open())
        said = {name: getattr(self, name) for name in ("start", "end") if getattr(self, name) is not None}
        if self.sampling is not None:
            said["fps"] = self.sampling
        if not said:
            return digest
        return hashlib.blake2b(json.dumps({"of": digest, **said}, sort_keys=True).encode()).hexdigest()


VideoLike = (
    str
    | Path
    | bytes
    | BinaryIO
    | Video
    | torch.Tensor
    | Sequence[Image.Image]
    | Any  # arrays, decoded batches, and whatever else looks like one of these
)
"""What stands for one video."""


def as_video(source: VideoLike) -> Video:
    """Raises InputError naming the type of what is no video."""
    return source if isinstance(source, Video) else Video(source)


def videos_in(given: Any, start: float | None = None, end: float | None = None, fps: float | None = None) -> list[Any]:
    """One video, or a list of several -> a list. A list of frames is one video, a list of anything else several.

    start, end, fps: as of `Video`, of each, in place of what one says itself.
    """
    if given is None:
        return []
    if _is_frame(given):
        raise InputError(_refusal(given))
    several = isinstance(given, (list, tuple)) and not (given and all(map(_is_frame, given)))
    found = list(given) if several else [given]
    said: dict[str, Any] = {
        name: value for name, value in (("start", start), ("end", end), ("fps", fps)) if value is not None
    }
    return [replace(as_video(one), **said) for one in found] if said else found


def _read_file(file: VideoFile, decoder: Decoder, device: torch.device) -> FrameReader:
    if is_animation(file):
        return PictureReader(file, animated=True)
    reader = VideoReader(file)
    if not reader.is_picture:
        return reader if decoder == PYAV else TorchcodecReader(reader, device)
    try:
        return PictureReader(file)  # as it would be opened as a picture
    except InputError:  # a kind that Pillow does not know
        return reader


def _kind(source: Any) -> str | None:
    """ "file", "frames", or None for what is no video."""
    if isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)):
        return "file"
    if isinstance(source, (list, tuple)):
        return "frames" if source and all(map(_is_frame, source)) else None
    if _is_frame(source) or isinstance(source, type):
        return None
    if _timed(source) or hasattr(source, "asnumpy"):
        return "frames"
    if hasattr(source, "shape") and (isinstance(source, torch.Tensor) or hasattr(source, "__array__")):
        return "frames"
    return "file" if is_open_file(source) else None


def _is_frame(one: Any) -> bool:
    """Whether it is one picture."""
    shape = getattr(one.data if _timed(one) else one, "shape", None)
    return isinstance(one, Image.Image) or (isinstance(shape, tuple) and len(shape) == 3)


def _timed(source: Any) -> bool:
    """Whether torchcodec decoded it: a batch, or a single frame."""
    return hasattr(source, "pts_seconds") and hasattr(source, "data")


def _brings_times(source: Any) -> bool:
    return all(map(_timed, source)) if isinstance(source, (list, tuple)) else _timed(source)


def _refusal(source: Any) -> str:
    if _is_frame(source):
        return "a single picture is no video: give it among images, or a list of pictures"
    if isinstance(source, (list, tuple)):
        kinds = ", ".join(sorted({type(one).__name__ for one in source})) or "nothing"
        return f"a list of {kinds} is no video; a video is {TAKEN}"
    if callable(getattr(source, "between", None)):
        return "a video that was gazed already has no other frames; between(start, end) gives a part of it"
    return f"{type(source).__name__} is no video; a video is {TAKEN}"


def _number(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise InputError(f"{name} must be a number, got {value!r}")
    return float(value)


def _pixels(reader: FrameReader) -> str:
    digest = hashlib.blake2b(reader.seconds.tobytes())
    for chunk in reader.read(chunk=1):
        digest.update(f"{chunk.frames.shape}".encode())
        digest.update(chunk.frames.tobytes())
    return digest.hexdigest()
