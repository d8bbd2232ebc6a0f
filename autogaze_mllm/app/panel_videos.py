"""Three videos of one that is gazed: its frames, what was kept of them, and the pictures rebuilt from that."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from ..gaze.pictures.overlay import Overlay, Panels
from ..gaze.pipeline import GazedChunk
from ..video.writer import video_writer

NAMES = ("frames", "kept", "rebuilt")
# Few frames between key frames, so that a browser is at any of them at once.
CODEC = {"preset": "veryfast", "crf": "19", "g": "4"}


class PanelVideos:
    """A listener for `gaze_video`, to be used in a `with` block: files take their names at its end."""

    def __init__(self, folder: Path, fps: float, tubelet: int) -> None:
        self.paths = {name: folder / f"{name}.mp4" for name in NAMES}
        self.fps, self.tubelet = fps, tubelet
        self._overlay: Overlay | None = None
        self.seconds = 0.0  # of drawing and writing, which is no part of gazing
        self._open = ExitStack()

    def __enter__(self) -> PanelVideos:
        self._writers = [
            self._open.enter_context(video_writer(path, self.fps, options=CODEC)) for path in self.paths.values()
        ]
        return self

    def __exit__(self, *error: object) -> None:
        self._open.__exit__(*error)  # type: ignore[arg-type]

    def __call__(self, chunk: GazedChunk) -> None:
        start = time.perf_counter()
        if self._overlay is None:
            self._overlay = Overlay(chunk.grid, show=self._show, tubelet=self.tubelet)
        self._overlay(chunk)
        self.seconds += time.perf_counter() - start

    @property
    def psnr(self) -> float:
        """Decibels of the rebuilt pictures."""
        assert self._overlay is not None
        return self._overlay.psnr

    def _show(self, panels: Panels) -> None:
        for write, picture in zip(self._writers, (panels.frame, panels.kept, panels.rebuilt), strict=True):
            write(np.ascontiguousarray(picture))
