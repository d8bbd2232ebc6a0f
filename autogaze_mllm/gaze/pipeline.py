"""gaze_video: from a file to its gazed patches, one chunk at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from ..errors import InputError
from ..video.reader import VideoReader
from ..video.sampling import sample_frames
from .gazed_video import GazedVideo
from .grid import PatchGrid
from .info import GazingInfo
from .model import AutoGaze
from .selectors import Selector, load_selector, selector_name
from .settings import VideoSettings

DEFAULT_GRID = PatchGrid.of("32+64+112+224", 16)  # that of the released gaze model


@dataclass
class Stopwatch:
    """Seconds per stage; an accelerator's queue is emptied first, so that work is counted where it was asked for."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            if self.device.type != "cpu":
                torch.accelerator.synchronize(self.device)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class PixelFormat:
    """How the tower wants its pixels: (x - mean) / std of values in [0, 1]."""

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def normalize(self, frames: torch.Tensor) -> torch.Tensor:
        """(..., 3, H, W) in [0, 1] -> the tower's values."""
        mean = torch.tensor(self.mean, device=frames.device, dtype=frames.dtype)[:, None, None]
        std = torch.tensor(self.std, device=frames.device, dtype=frames.dtype)[:, None, None]
        return (frames - mean) / std


def resize_frames(frames: np.ndarray, height: int, width: int, device: torch.device) -> torch.Tensor:
    """uint8 (n, H, W, 3) -> (n, 3, height, width) float32 in [0, 1]: antialiased bicubic, aspect not kept."""
    pixels = torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).float() / 255
    if pixels.shape[-2:] == (height, width):
        return pixels
    return F.interpolate(pixels, size=(height, width), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)


# Called after every chunk with its file frames (n, H, W, 3), resized frames (1, n, 3, h, w) and selection.
ChunkListener = Callable[[np.ndarray, torch.Tensor, GazingInfo], None]


def sampled_chunks(
    source: str | Path, settings: VideoSettings, reader: VideoReader | None = None
) -> Iterator[tuple[np.ndarray, list[float]]]:
    """The sampled frames of a file in chunks (n, H, W, 3) uint8 with their times, n <= settings.chunk_frames."""
    reader = reader or VideoReader(source)
    for chunk in reader.read(sample_frames(len(reader), settings.frames), settings.chunk_frames):
        yield chunk.frames, chunk.seconds


def gaze_video(
    source: str | Path,
    gaze: Selector | str | Path = "pixel-diff",
    settings: VideoSettings | None = None,
    *,
    grid: PatchGrid | None = None,
    pixels: PixelFormat | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = False,
    listener: ChunkListener | None = None,
) -> GazedVideo:
    """Reads a video file and keeps the gazed patches of `settings.frames` evenly spread frames.

    gaze: a selector, its name, or an AutoGaze folder or hub id. grid: what to select on (default: the gaze model's
    own). pixels, dtype: what the tower wants. The whole video is never held: frames live for one chunk. stats of the
    result: frames, frames_lost, patches, patches_total, selector, seconds per stage.
    """
    settings = settings or VideoSettings()
    selector = load_selector(gaze, device=device, dtype=dtype)
    if grid is None:
        grid = selector.grid if isinstance(selector, AutoGaze) else DEFAULT_GRID
    place = torch.device(device) if device is not None else torch.device("cpu")
    clock = Stopwatch(place)
    pixels = pixels or PixelFormat()
    with clock.stage("decode"):
        reader = VideoReader(source)
    chunks = sampled_chunks(source, settings, reader)
    parts: list[GazedVideo] = []
    frames_done = 0
    with tqdm(
        total=min(settings.frames, len(reader)), unit="frame", desc="gazing", disable=not progress, leave=False
    ) as bar:
        while True:
            with clock.stage("decode"):
                chunk = next(chunks, None)
            if chunk is None:
                break
            raw, seconds = chunk
            with clock.stage("resize"):
                frames = resize_frames(raw, *grid.scales[-1], place)[None]
            with clock.stage("gaze"), torch.no_grad():
                info = selector.select(
                    frames, grid, settings.ratio_for(len(raw)), settings.loss_for(selector.default_loss)
                )
            with clock.stage("gather"):
                normal = pixels.normalize(frames).to(dtype or frames.dtype)
                parts.append(GazedVideo.from_info(normal, info, grid, torch.tensor(seconds)))
            frames_done += len(raw)
            bar.update(len(raw))
            bar.set_postfix(kept=sum(map(len, parts)))
            if listener is not None:
                listener(raw, frames, info)
    if not parts:
        raise InputError(f"{source}: no frame could be decoded")
    result = GazedVideo.concatenate(parts)
    result.stats = {
        "source": str(source),
        "frames": frames_done,
        "frames_lost": len(reader.lost),
        "patches": len(result),
        "patches_total": result.total_patches,
        "selector": selector_name(selector),
        "seconds": clock.seconds,
    }
    return result
