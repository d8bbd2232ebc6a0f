"""gaze_video: from a video to its gazed patches, one chunk at a time.

Decoding and resizing run in a thread of their own, one chunk ahead. Pictures stay bytes until a few tiles of them are
gazed, so what is held is the chunk and the kept patches, not the video (`benchmarks/long_video.py` measures it).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..common.compute.cancelling import check_cancelled
from ..common.compute.memory import release_free_memory
from ..common.compute.workers import CoreWorkers, Prefetch
from ..common.errors import InputError
from ..common.pixels import PixelFormat
from ..common.progress import Advance, FrameProgress
from ..common.timing import Stopwatch
from ..video.frames import PictureChunk, PictureSource
from ..video.reader import FrameReader
from ..video.sources import VideoLike, as_video
from .autogaze.pretrained import BUNDLED
from .gazed_video import GazedVideo
from .grid import PatchGrid
from .patches import PatchStore
from .selection import with_whole_scale
from .selector_registry import load_selector
from .selectors.base import AnySelector, as_selector, ending_at, selector_name, stop_rule
from .selectors.baselines import AllSelector
from .settings import VideoSettings

DISPLAY_WIDTH = 560  # of the frames that a listener gets to show
RELEASE_EVERY = 16  # batches of clips
# Frames that are gazed together where the caller does not say how many clips. On a core of a CPU, fewer spend more time
# in starting operations than in computing, and more do not help; an H100 is no faster with more than 128 clips of 16
# (benchmarks/results/gaze_speed_h100.json). Their pictures in float may take a share of its memory.
CORE_FRAMES, ACCELERATOR_FRAMES = 32, 2048
MEMORY_SHARE = 32


@dataclass(frozen=True)
class GazedChunk:
    """What a listener sees of a chunk. pictures: (n, 3, H, W) uint8, all tiles together; masks: per scale (tiles, n,
    n_s) 0/1; tiles: (columns, rows); display: (n, 3, h, DISPLAY_WIDTH) uint8, the frames in their own aspect; grid: of
    each tile."""

    pictures: torch.Tensor
    masks: list[torch.Tensor]
    tiles: tuple[int, int]
    display: torch.Tensor
    grid: PatchGrid

    def tile(self, number: int) -> torch.Tensor:
        """(n, 3, tile height, tile width) uint8."""
        return cut_tiles(self.pictures, self.tiles, number, number + 1)[0]


@dataclass(frozen=True)
class _Form:
    """In what form patches are kept. grid: what is selected on; pixels, device, dtype: of the patches; clip_batch:
    clips gazed at a time, None: as many as are fast; tubelet: frames that are kept together; max_tiles: what a frame
    may be cut into; thumbnail_cells: None where thumbnails are pictures of their own; otherwise a frame chosen as one
    keeps a whole scale, the finest that has at most so many patches."""

    grid: PatchGrid
    pixels: PixelFormat
    device: torch.device
    dtype: torch.dtype
    clip_batch: int | None
    tubelet: int
    max_tiles: int
    thumbnail_cells: int | None

    def thumbnail_scale(self, tiles: int) -> int:
        """Number of the scale that a frame of so many tiles keeps whole where it is chosen as a thumbnail."""
        assert self.thumbnail_cells is not None
        small = [number for number, count in enumerate(self.grid.counts) if count * tiles <= self.thumbnail_cells]
        return max(small, default=0)


GridRule = Callable[[int, int, VideoSettings], PatchGrid | None]


def cut_tiles(pictures: torch.Tensor, tiles: tuple[int, int], start: int, end: int) -> torch.Tensor:
    """pictures (n, 3, rows * h, columns * w) -> tiles [start, end), counted row by row, (end - start, n, 3, h, w)."""
    columns, rows = tiles
    grid = pictures.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))  # (n, 3, rows, h, columns, w)
    return torch.stack([grid[:, :, number // columns, :, number % columns] for number in range(start, end)])


def gaze_video(
    source: VideoLike,
    gaze: AnySelector | str | Path = BUNDLED,
    settings: VideoSettings | None = None,
    *,
    grid: PatchGrid | None = None,
    pixels: PixelFormat | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    tubelet: int = 1,
    grid_for: GridRule | None = None,
    thumbnail_cells: int | None = None,
    clip_batch: int | None = None,
    progress: bool = False,
    listener: Callable[[GazedChunk], None] | None = None,
    advance: Advance | None = None,
) -> GazedVideo:
    """Reads a video and keeps its gazed patches, as `settings` says.

    source: a path, or what else `Video` takes; or a `Video`, for a part of one. gaze: a selector, its name, or an
    AutoGaze folder or hub id; default: the gaze model that is bundled. grid: what to select on (default: the gaze
    model's own). pixels, dtype: what the tower wants. tubelet: frames that are kept together (`GazedVideo`). grid_for:
    for towers that take pictures of any size: width, height and settings of a video -> what it is selected on as a
    whole, or None for tiles of `grid`. thumbnail_cells: for such towers, too: a frame chosen as a thumbnail keeps the
    finest scale of at most so many patches whole; None: thumbnails are pictures of their own. clip_batch: clips gazed
    at a time, on each core of a CPU (default: as many as are fast); bounds memory, never changes a result.
    stats of the result: frames, frames_lost, size (height and width of the frames), tiles, thumbnails, patches,
    patches_total, selector, seconds of work per stage, over all threads, and seconds_wall (decoding and resizing
    overlap with the rest); decoder, where it is not PyAV.
    """
    selector = load_selector(gaze, device=device, dtype=dtype)
    return gaze_variants(
        source,
        [(selector, settings or VideoSettings())],
        grid=grid,
        pixels=pixels,
        device=device,
        dtype=dtype,
        tubelet=tubelet,
        grid_for=grid_for,
        thumbnail_cells=thumbnail_cells,
        clip_batch=clip_batch,
        progress=progress,
        listener=listener,
        advance=advance,
    )[0]


def gaze_variants(
    source: VideoLike,
    variants: Sequence[tuple[AnySelector, VideoSettings]],
    *,
    grid: PatchGrid | None = None,
    pixels: PixelFormat | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    tubelet: int = 1,
    grid_for: GridRule | None = None,
    thumbnail_cells: int | None = None,
    clip_batch: int | None = None,
    progress: bool = False,
    listener: Callable[[GazedChunk], None] | None = None,
    advance: Advance | None = None,
) -> list[GazedVideo]:
    """Gazes a video in several ways at once, decoding it once; one result for each (selector, settings).

    The settings may differ in ratio and loss only: frames, chunks, tiles and thumbnails are shared. Options as for
    `gaze_video`; the listener is shown the first variant. Every result's stats hold the seconds of the shared decoding.
    """
    _check_variants(variants, clip_batch)
    selector, settings = variants[0]
    target = torch.device(device) if device is not None else torch.device("cpu")
    if settings.chunk_frames % tubelet:
        raise InputError(f"chunk_frames {settings.chunk_frames} is no multiple of the {tubelet} frames kept together")
    start = time.perf_counter()
    reader, indices = as_video(source).sampled(settings.frames, settings.fps, settings.decoder, target)
    whole = None if grid_for is None else grid_for(*_shown_size(reader, indices), settings)
    form = _Form(
        whole or (as_selector(selector).grid if grid is None else grid),
        pixels or PixelFormat(),
        target,
        dtype or torch.float32,
        clip_batch,
        tubelet,
        settings.max_tiles if whole is None else 1,
        thumbnail_cells,
    )
    pictures = _pictures(reader, indices, settings, form, shown=listener is not None)
    pictures.spent["decode"] += time.perf_counter() - start
    with (
        CoreWorkers(target) as workers,
        tqdm(total=len(indices), unit="frame", desc="gazing", disable=not progress, leave=False) as bar,
        Prefetch(pictures) as chunks,
    ):
        far = FrameProgress(bar, len(indices), len(variants), advance)
        gazers = [_Gazer(selector, settings, form, workers, far) for selector, settings in variants]
        for chunk in chunks:
            masks = [gazer.add(chunk) for gazer in gazers]
            bar.set_postfix(kept=gazers[0].kept)
            if listener is not None:
                listener(GazedChunk(chunk.pictures, masks[0], chunk.tiles, chunk.display, form.grid))
            release_free_memory()
    results = [_result(gazer, reader, pictures.spent, start) for gazer in gazers]
    for result in results:
        result.stats["size"] = list(pictures.size)
        if len(indices) > 1:
            result.interval = float(reader.seconds[indices[-1]] - reader.seconds[indices[0]]) / (len(indices) - 1)
    return results


def _shown_size(reader: FrameReader, indices: list[int]) -> tuple[int, int]:
    """Width and height of the frames."""
    for chunk in reader.read(indices[:1]):
        return chunk.frames.shape[2], chunk.frames.shape[1]
    raise InputError(f"{reader.name}: no frame could be decoded")


def _check_variants(variants: Sequence[tuple[AnySelector, VideoSettings]], clip_batch: int | None) -> None:
    if clip_batch is not None and clip_batch < 1:
        raise InputError(f"clip_batch must be at least 1, got {clip_batch}")
    if len({settings.sampling() for _, settings in variants}) > 1:
        raise InputError("variants that are gazed together need the same frames, chunks, tiles and thumbnails")


def _pictures(
    reader: FrameReader, indices: list[int], settings: VideoSettings, form: _Form, shown: bool
) -> PictureSource:
    """shown: whether somebody wants to see the frames in their own aspect."""
    return PictureSource(
        reader,
        indices,
        min(settings.chunk_frames, len(indices)),
        form.grid.scales[-1],
        form.max_tiles,
        settings.thumbnails,
        form.device,
        apart=form.thumbnail_cells is None,
        display_width=DISPLAY_WIDTH if shown else 0,
        enlarge=settings.enlarge,
    )


def _result(gazer: _Gazer, reader: FrameReader, spent: dict[str, float], start: float) -> GazedVideo:
    """What a gazer collected, with its settings and stats. spent: seconds of decoding and resizing; start: of all."""
    result = gazer.finish()
    if result is None:
        raise InputError(f"{reader.name}: no frame could be decoded")
    result.settings = gazer.settings.to_dict()
    if as_selector(gazer.selector).after_tower:
        ratio = gazer.settings.ratio
        result.keep_after = sum(ratio) / len(ratio) if isinstance(ratio, tuple) else ratio
    result.stats = {
        "source": reader.name,
        "frames": gazer.frames,
        "frames_lost": len(reader.lost),
        "tiles": list(result.tiles),
        "thumbnails": result.thumbnails + gazer.thumbnails_within,
        "patches": len(result),
        "patches_total": result.total_patches,
        "selector": selector_name(gazer.selector),
        "seconds": {**spent, **gazer.clock.seconds},
        "seconds_wall": time.perf_counter() - start,
    }
    if reader.decoder:
        result.stats["decoder"] = reader.decoder
    return result


def shared_batch(clips: int, most: int, workers: int) -> int:
    """How many of `clips` go together, at most `most` where that is one at least, so that each of the workers gets as
    many batches as the others."""
    rounds = -(-clips // (max(most, 1) * workers))
    return -(-clips // (rounds * workers))


def frames_together(device: torch.device, grid: PatchGrid) -> int:
    """How many frames of the grid's size are gazed at a time on this device (each core of a CPU)."""
    if device.type == "cpu":
        return CORE_FRAMES
    if device.type != "cuda":
        return ACCELERATOR_FRAMES
    height, width = grid.scales[-1]
    room = torch.cuda.get_device_properties(device).total_memory // MEMORY_SHARE
    return max(min(ACCELERATOR_FRAMES, room // (3 * 4 * height * width)), CORE_FRAMES)


class _Gazer:
    """Collects the kept patches of the chunks of one video."""

    def __init__(
        self,
        selector: AnySelector,
        settings: VideoSettings,
        form: _Form,
        workers: CoreWorkers,
        far: FrameProgress,
    ) -> None:
        self.selector, self.settings = ending_at(settings.gain, selector), settings
        self.form, self.workers, self.far = form, workers, far
        self.together = frames_together(form.device, form.grid)
        self.clock = Stopwatch(form.device)
        self.parts: list[GazedVideo] = []  # without their patches, which are held once
        self.patches = PatchStore()
        self.thumbnails: list[torch.Tensor] = []
        self.thumbnail_seconds: list[float] = []
        self.tiles = (1, 1)
        self.frames = self.kept = self.thumbnails_within = 0

    def add(self, chunk: PictureChunk) -> list[torch.Tensor]:
        """Gazes all tiles of a chunk. -> masks per scale (tiles, n, n_s)."""
        count = len(chunk.pictures)
        self.tiles = chunk.tiles
        self.thumbnails.append(chunk.thumbnails)
        self.thumbnail_seconds += chunk.thumbnail_seconds
        within = [] if self.form.thumbnail_cells is None else chunk.chosen
        self.thumbnails_within += len(within)
        rule = stop_rule(self.settings.loss, self.selector, self.settings)
        numbers = torch.arange(chunk.first, chunk.first + count)
        masks = []
        total = chunk.tiles[0] * chunk.tiles[1]
        ratio, seconds = self.settings.ratio_for(count), torch.tensor(chunk.seconds)
        batch = self.form.clip_batch or shared_batch(total, self.together // count, self.workers.count)

        def gaze(begin: int) -> tuple[GazedVideo, list[torch.Tensor]]:
            clips = cut_tiles(chunk.pictures, chunk.tiles, begin, min(begin + batch, total))
            return self._clips(self.selector, clips, ratio, rule, seconds, numbers, within)

        in_threads = as_selector(self.selector).thread_safe
        for part, mask in (self.workers.map if in_threads else map)(gaze, range(0, total, batch)):
            self._keep(part)
            masks.append(mask)
            self.far.add(count * len(mask[0]) / total)
            check_cancelled()
            if len(masks) % RELEASE_EVERY == 0:
                release_free_memory()
        self.frames += count
        return [torch.cat(scale) for scale in zip(*masks, strict=True)]

    def _clips(
        self,
        selector: AnySelector,
        clips: torch.Tensor,
        ratio: float | list[float],
        rule: float | None,
        seconds: torch.Tensor,
        numbers: torch.Tensor,
        within: Sequence[int] = (),
    ) -> tuple[GazedVideo, list[torch.Tensor]]:
        """clips (B, T, 3, h, w) uint8, seconds and numbers (T,) or (B * T,) -> the part, masks per scale (B, T, n_s).
        within: frames of the clips that keep a whole scale in place of a thumbnail.

        Runs in several threads at once.
        """
        frames = clips.float().div_(255)
        with self.clock.stage("gaze"), torch.no_grad():
            info = selector.select(frames, self.form.grid, ratio, rule)
            if within:
                scale = self.form.thumbnail_scale(self.tiles[0] * self.tiles[1])
                info = with_whole_scale(info, self.form.grid, within, scale)
        with self.clock.stage("gather"):
            repeat = clips.shape[0] * clips.shape[1] // len(seconds)
            part = GazedVideo.from_info(
                frames,
                info,
                self.form.grid,
                seconds.repeat(repeat).to(frames.device),
                numbers.repeat(repeat).to(frames.device),
                self.form.tubelet,
            )
            shape = part.patches.shape
            single = part.patches.view(shape[0] * self.form.tubelet, -1)
            part.patches = self.form.pixels.normalize_patches(single).view(shape).to(self.form.dtype)
        part.tiles = self.tiles
        assert info.gazing_mask is not None
        return part, info.gazing_mask

    def _keep(self, part: GazedVideo) -> None:
        self.patches.add(part.patches)
        part.patches = part.patches.new_empty(len(part), 0)  # a slice would keep them alive
        self.parts.append(part)
        self.kept += len(part)

    def finish(self) -> GazedVideo | None:
        """Thumbnails last, each a clip of one frame. None when there was no frame at all."""
        if not self.parts:
            return None
        thumbnails = torch.cat(self.thumbnails)
        rule = stop_rule(self.settings.thumbnail_loss, self.selector, self.settings)
        keep_all = self.settings.thumbnail_ratio == 1 and rule is None
        selector = AllSelector() if keep_all else self.selector
        batch = self.form.clip_batch or self.together
        for begin in range(0, len(thumbnails), batch):
            clips = thumbnails[begin : begin + batch][:, None]
            seconds = torch.tensor(self.thumbnail_seconds[begin : begin + len(clips)])
            numbers = self.frames + torch.arange(begin, begin + len(clips))
            self._keep(self._clips(selector, clips, self.settings.thumbnail_ratio, rule, seconds, numbers)[0])
        result = GazedVideo.concatenate(self.parts)
        result.patches = self.patches.take()
        result.thumbnails = len(thumbnails)
        return result
