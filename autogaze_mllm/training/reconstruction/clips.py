"""Which frames of a video are measured together: clips of frames spread over it, or of consecutive ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ...common.drawing.labels import told_apart
from ...common.errors import InputError
from ...common.pixels import resize_frames
from ...gaze.grid import PatchGrid
from ...video.reader import VideoReader
from ...video.sampling import sample_frames

LENGTH = 16  # frames of a clip, as the gaze model was trained and as the pipeline cuts a video


@dataclass(frozen=True)
class ClipPlan:
    """How a video is cut into clips of at most `length` frames.

    spread: so many frames, evenly spread over the video and cut into clips; None: consecutive frames. starts: the first
    frame of each clip; None: every `stride` frames (None: `length`, so that clips do not overlap). most: clips of a
    video.
    """

    spread: int | None = None
    length: int = LENGTH
    starts: tuple[int, ...] | None = None
    stride: int | None = None
    most: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("frames", self.spread), ("clip-len", self.length), ("stride", self.stride)):
            if value is not None and value < 1:
                raise InputError(f"--{name} must be at least 1, got {value}")
        if self.most is not None and self.most < 1:
            raise InputError(f"--max-clips must be at least 1, got {self.most}")
        if self.starts is not None and (not self.starts or min(self.starts) < 0):
            raise InputError(f"--clip-starts must be numbers of frames from 0 on, got {list(self.starts)}")
        if self.starts is not None and self.stride is not None:
            raise InputError("--clip-starts says where clips begin, and so does --stride: give one of them")

    def cut(self, total: int, name: str) -> list[list[int]]:
        """Numbers of the frames of each clip, for a video of `total` frames. name: for errors."""
        if self.spread is not None:
            frames = sample_frames(total, self.spread)
            clips = [frames[at : at + self.length] for at in range(0, len(frames), self.length)]
        else:
            starts: Sequence[int] = range(0, total, self.stride or self.length)
            if self.starts is not None:
                starts = list(dict.fromkeys(self.starts))
                beyond = [start for start in starts if start >= total]
                if beyond:
                    raise InputError(f"{name}: no clip can start at frame {beyond[0]}: the video has {total} frames")
            clips = [list(range(start, min(start + self.length, total))) for start in starts]
        return clips[: self.most]


@dataclass(frozen=True)
class Clip:
    """frames: their numbers in the file `path`. video: what the file is called in tables; number: of the clip in it."""

    path: Path
    video: str
    number: int
    frames: tuple[int, ...]

    @property
    def start(self) -> int:
        return self.frames[0]

    @property
    def name(self) -> str:
        return f"clip_{self.number:02}_start_{self.start:04}"

    @property
    def id(self) -> str:
        return f"{self.video}/{self.name}"

    def read(self, grid: PatchGrid) -> tuple[torch.Tensor, list[int]]:
        """Pixels (T, 3, S, S) uint8, squashed to the grid's largest scale, and the numbers of the frames: those that
        could be decoded."""
        chunk = next(VideoReader(self.path).read(self.frames, chunk=len(self.frames)))
        return resize_frames(chunk.frames, *grid.scales[-1], torch.device("cpu")), chunk.indices


def plan_clips(videos: Sequence[Path], plan: ClipPlan) -> list[Clip]:
    """The clips of all videos, each file once."""
    found = []
    for name, label in told_apart(str(path) for path in videos).items():
        for number, frames in enumerate(plan.cut(len(VideoReader(Path(name))), name)):
            found.append(Clip(Path(name), label, number, tuple(frames)))
    return found


def read_clips(path: Path, grid: PatchGrid, frames: int, length: int = LENGTH) -> Iterator[torch.Tensor]:
    """Pixels (T, 3, S, S) uint8 of clips of at most `length` out of `frames` frames spread over the video."""
    for clip in plan_clips([path], ClipPlan(frames, length)):
        yield clip.read(grid)[0]
