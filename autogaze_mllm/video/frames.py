"""From a video to resized pictures, in a thread of its own, a chunk at a time.

A 4K frame is 25 MB: it is resized as soon as it is decoded and never kept. At most two chunks exist at a time: one
that is being filled or waits, and one that is being worked on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from ..common.compute.workers import Prefetch
from ..common.pixels import resize_frames
from .reader import FrameChunk, FrameReader
from .tiles import choose_thumbnails, choose_tiles


@dataclass
class PictureChunk:
    """pictures: (n, 3, rows * side, columns * side) uint8; thumbnails: (m, 3, side, side) uint8. seconds: their times.
    chosen: which of the pictures are of frames that were chosen as thumbnails, whether or not those are made.

    first: number of the first picture among the sampled frames that decoded. tiles: (columns, rows), one plan for the
    whole video. display: (n, 3, h, w) uint8, small versions in the frame's own aspect, where they were asked for.
    """

    pictures: torch.Tensor
    seconds: list[float]
    thumbnails: torch.Tensor
    thumbnail_seconds: list[float]
    chosen: list[int]
    first: int
    tiles: tuple[int, int]
    display: torch.Tensor


@dataclass
class PictureSource:
    """Iterable once. tile: (height, width) of one. max_tiles, enlarge, thumbnails: as in VideoSettings. apart:
    whether thumbnails are pictures of their own; otherwise it is only said which frames they are. display_width: of
    frames to show, 0 for none. size: height and width of the frames, once one was decoded. spent: seconds used for
    decoding and resizing so far."""

    reader: FrameReader
    indices: list[int]
    chunk_frames: int
    tile: tuple[int, int]
    max_tiles: int
    thumbnails: int
    device: torch.device
    apart: bool = True
    display_width: int = 0
    enlarge: bool = True
    size: tuple[int, int] = (0, 0)
    spent: dict[str, float] = field(default_factory=lambda: {"decode": 0.0, "resize": 0.0})

    def __iter__(self) -> Iterator[PictureChunk]:
        with contextlib.ExitStack() as stack:
            frames: Iterator[FrameChunk] = self._decoded()
            if self.device.type != "cpu":  # a processor decodes while an accelerator resizes
                frames = stack.enter_context(Prefetch(frames))
            yield from self._chunks(frames)

    def _decoded(self) -> Iterator[FrameChunk]:
        frames = self.reader.read(self.indices, chunk=1)
        while True:
            start = time.perf_counter()
            frame = next(frames, None)
            self.spent["decode"] += time.perf_counter() - start
            if frame is None:
                return
            yield frame

    def _chunks(self, frames: Iterator[FrameChunk]) -> Iterator[PictureChunk]:
        wanted = set(choose_thumbnails(self.indices, self.thumbnails))
        pictures = torch.empty(0)
        seconds: list[float] = []
        small: list[torch.Tensor] = []
        small_seconds: list[float] = []
        chosen: list[int] = []
        done = shown = 0
        tiles = (1, 1)
        display: list[torch.Tensor] = []

        def chunk() -> PictureChunk:
            blank = torch.zeros(0, 3, *self.tile, dtype=torch.uint8, device=self.device)
            return PictureChunk(
                pictures[: len(seconds)],
                list(seconds),
                torch.cat([blank, *small]),
                list(small_seconds),
                list(chosen),
                done - len(seconds),
                tiles,
                torch.cat(display) if display else blank,
            )

        for frame in frames:
            start = time.perf_counter()
            if not done:
                self.size = (frame.frames.shape[1], frame.frames.shape[2])
                tiles = self._plan(*frame.frames.shape[1:3])
                high = round(self.display_width * frame.frames.shape[1] / frame.frames.shape[2] / 2) * 2
                shown = min(max(high, 16), 3 * self.display_width)  # codecs refuse slivers and towers
            size = (tiles[1] * self.tile[0], tiles[0] * self.tile[1])
            if not seconds:  # one block for the chunk: joining pictures afterwards would hold them twice
                room = min(self.chunk_frames, len(self.indices))
                pictures = torch.empty(room, 3, *size, dtype=torch.uint8, device=self.device)
            pictures[len(seconds)] = resize_frames(frame.frames, *size, self.device)[0]
            if frame.indices[0] in wanted:
                chosen.append(len(seconds))
            seconds += frame.seconds
            if frame.indices[0] in wanted and self.apart:
                small.append(resize_frames(frame.frames, *self.tile, self.device))
                small_seconds += frame.seconds
            if self.display_width:
                display.append(resize_frames(frame.frames, shown, self.display_width, torch.device("cpu")))
            done += 1
            self.spent["resize"] += time.perf_counter() - start
            if len(seconds) == self.chunk_frames:
                yield chunk()
                for collected in (seconds, small, small_seconds, chosen, display):
                    collected.clear()
        if seconds:
            yield chunk()

    def _plan(self, height: int, width: int) -> tuple[int, int]:
        # The rule is for square tiles; for others the frame is measured in units of the tile.
        return choose_tiles(
            round(width * self.tile[0] / self.tile[1]), height, self.max_tiles, self.tile[0], self.enlarge
        )
