"""Clips of videos for training: which files, which frames, and their pixels.

Everything random about sample `number` of epoch `epoch` comes from the seed, the epoch and the number, so the same
clips come whatever the number of processes, and after a run was interrupted.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ...common.errors import InputError
from ...common.pixels import resize_frames
from ...common.storage.files import atomic_write
from ...common.storage.hashing import content_hash
from ...video.folder import VIDEO_ENDINGS
from ...video.reader import VideoReader
from ..config import ClipConfig

logger = logging.getLogger(__name__)


def find_videos(sources: str | Sequence[str], split: str = "train") -> list[Path]:
    """Video files of several sources (comma separated), sorted within each.

    A source is a folder with train/ and val/, a folder of videos (all of it is `train`), one video, or a text file
    that lists paths, one on a line, relative to itself. Raises InputError for one that is not there, or that has one of
    train/ and val/ and not the one that is asked for.
    """
    result: list[Path] = []
    for source in sources.split(",") if isinstance(sources, str) else sources:
        path = Path(source)
        if path.is_dir():
            split_here = any((path / name).is_dir() for name in ("train", "val"))
            folder = path / split if split_here else path
            if split_here and not folder.is_dir():
                raise InputError(f"{path}: has no {split}/")
            if split_here or split == "train":
                result += sorted(file for file in folder.iterdir() if file.suffix.lower() in VIDEO_ENDINGS)
        elif not path.is_file():
            raise InputError(f"{path}: no such folder, video or list of videos")
        elif path.suffix.lower() in VIDEO_ENDINGS:
            result += [path] * (split == "train")
        elif split == "train":
            lines = path.read_text(encoding="utf-8").split("\n")  # others may stand in a name
            result += [path.parent / line.strip() for line in lines if line.strip()]
    return result


def frame_indices(total: int, length: int, stride: int, rng: np.random.Generator | None = None) -> list[int]:
    """Frames of a clip: `length` numbers, about `stride` apart, from the start or from a random place.

    A video of at most length * stride frames gives its first ones, the last one repeated (docs/specification.md,
    "Frames and clips").
    """
    if total <= length * stride:
        return [min(number, total - 1) for number in range(length)]
    end = length * stride if rng is None else int(rng.integers(length * stride, total))
    start = end - length * stride
    spread = np.linspace(start, end, length).clip(start, end - 1)
    return [int(index) for index in spread]


@dataclass(frozen=True)
class Clip:
    """pixels: (T, 3, side, side) uint8. seed: for what else is random about this sample."""

    path: Path
    pixels: torch.Tensor
    seed: int


@dataclass
class ClipSource:
    """Clips of the files `paths`. Those that cannot be read are replaced by others, up to the share `unreadable`.

    random: whether anything about them is. labelled: they have labels, which are of clips from the first frame.
    decoded: a folder for decoded frames; where there is one, a video is decoded once and then mapped into memory.
    """

    paths: list[Path]
    settings: ClipConfig
    seed: int = 0
    random: bool = True
    unreadable: float = 0.05
    decoded: Path | None = None
    labelled: bool = False
    failed: dict[Path, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.paths:
            raise InputError("there are no videos to train on")

    def __len__(self) -> int:
        return len(self.paths)

    def clip(self, number: int, epoch: int = 0) -> Clip:
        """Raises InputError once more than `unreadable` of the files could not be read."""
        rng = np.random.default_rng([self.seed, epoch, number])
        seed = int(rng.integers(2**63))
        path = self.paths[number]
        while True:
            if path not in self.failed:
                try:
                    return Clip(path, self._pixels(path, rng if self.random else None), seed)
                except InputError as error:
                    self.failed[path] = str(error)
                    logger.warning("%s; another video takes its place", error)
            if len(self.failed) > self.unreadable * len(self.paths) or len(self.failed) == len(self.paths):
                raise InputError(
                    f"{len(self.failed)} of {len(self.paths)} videos cannot be read ({self.unreadable:.0%} allowed); "
                    f"last: {next(reversed(self.failed.values()))}"
                )
            path = self.paths[int(rng.integers(len(self.paths)))]

    def read(self, path: Path) -> torch.Tensor:
        """The clip from the start of a file, (T, 3, side, side) uint8."""
        return self._pixels(path, None)

    def _pixels(self, path: Path, rng: np.random.Generator | None) -> torch.Tensor:
        settings = self.settings
        low, high = settings.strides
        stride = low if rng is None else round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))
        first = settings.clip_start == "first" or (settings.clip_start == "auto" and self.labelled)
        start = None if first else rng
        if self.decoded is not None:
            stored = self._stored(path)
            frames = np.stack([stored[i] for i in frame_indices(len(stored), settings.frames, stride, start)])
        else:
            frames = _read(path, settings.frames, stride, start)
        if rng is None:
            return resize_frames(frames, settings.side, settings.side, torch.device("cpu"))
        top, left, height, width = _crop(frames.shape[1], frames.shape[2], settings, rng)
        frames = frames[:, top : top + height, left : left + width]
        pixels = resize_frames(np.ascontiguousarray(frames), settings.side, settings.side, torch.device("cpu"))
        if settings.mirror:
            pixels = pixels.flip(3) if rng.random() < 0.5 else pixels
            pixels = pixels.flip(0) if rng.random() < 0.25 else pixels
        return pixels

    def _stored(self, path: Path) -> np.ndarray:
        """All frames (n, h, w, 3) uint8, the short side 256 pixels at most, mapped from a file that is made once."""
        assert self.decoded is not None
        file = self.decoded / f"{content_hash(path)}.npy"
        if not file.exists():
            chunks = []
            for chunk in VideoReader(path, threads=1).read():
                height, width = chunk.frames.shape[1:3]
                factor = min(256 / min(height, width), 1.0)
                small = resize_frames(chunk.frames, round(height * factor), round(width * factor), torch.device("cpu"))
                chunks.append(small.permute(0, 2, 3, 1).numpy())
            if len({part.shape[1:] for part in chunks}) != 1:
                raise InputError(f"{path}: the size of its frames changes")
            self.decoded.mkdir(parents=True, exist_ok=True)
            with atomic_write(file) as temporary, temporary.open("wb") as output:
                np.save(output, np.concatenate(chunks), allow_pickle=False)
        return np.load(file, mmap_mode="r", allow_pickle=False)


def _read(path: Path, length: int, stride: int, rng: np.random.Generator | None) -> np.ndarray:
    """(length, h, w, 3) uint8; frames that cannot be decoded are replaced by the one before."""
    reader = VideoReader(path, threads=1)
    wanted = frame_indices(len(reader), length, stride, rng)
    frames: dict[int, np.ndarray] = {}
    for chunk in reader.read(wanted, chunk=1):
        frames[chunk.indices[0]] = chunk.frames[0]
    there = sorted(frames)
    nearest = [max((i for i in there if i <= number), default=there[0]) for number in wanted]
    if len({frames[i].shape for i in nearest}) != 1:
        raise InputError(f"{path}: the size of its frames changes")
    return np.stack([frames[i] for i in nearest])


def _crop(height: int, width: int, settings: ClipConfig, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random crop: its area at least `min_crop` of the whole, its aspect the frame's up
    to 4/3 either way, or in the range `crop_aspect`."""
    if settings.min_crop == 1:
        return 0, 0, height, width
    if settings.crop_aspect is not None:
        return resized_crop(height, width, (settings.min_crop, 1.0), settings.crop_aspect, rng)
    area = rng.uniform(settings.min_crop, 1)
    aspect = float(np.exp(rng.uniform(-np.log(4 / 3), np.log(4 / 3))))
    high = min(max(round(height * (area / aspect) ** 0.5), 16), height)
    wide = min(max(round(width * (area * aspect) ** 0.5), 16), width)
    return int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1)), high, wide


def resized_crop(
    height: int, width: int, area: tuple[float, float], aspect: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a crop by the rule of torchvision's `RandomResizedCrop`: a share of the area and an
    aspect (width over height, log-uniform) are drawn until the crop fits, ten times at most; then it is the largest one
    in the middle whose aspect is in the range."""
    for _ in range(10):
        share = rng.uniform(*area) * height * width
        ratio = float(np.exp(rng.uniform(np.log(aspect[0]), np.log(aspect[1]))))
        wide, high = round((share * ratio) ** 0.5), round((share / ratio) ** 0.5)
        if 0 < wide <= width and 0 < high <= height:
            return int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1)), high, wide
    high, wide = height, width
    if width / height < aspect[0]:
        high = min(max(round(width / aspect[0]), 1), height)
    elif width / height > aspect[1]:
        wide = min(max(round(height * aspect[1]), 1), width)
    return (height - high) // 2, (width - wide) // 2, high, wide
