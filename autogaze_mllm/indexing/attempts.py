"""How often a video was begun and never ended: counted on the disk, so that it outlives whoever was at it.

A mark is made before a video is begun and taken away when it is done, has failed in words, or was stopped on purpose.
What is left over is from a process that was killed, most often for want of memory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..common.storage.files import output_folder, writing

MOST = 2  # a video that has ended so many workers is set aside


class Attempts:
    """folder: of the index. Videos are known by their names in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / ".attempts"

    def _mark(self, video: str) -> Path:
        name = os.fsencode(video)  # a file name may be no text
        return self.folder / hashlib.blake2b(name, digest_size=16).hexdigest()

    def count(self, video: str) -> int:
        try:
            return self._mark(video).stat().st_size
        except OSError:
            return 0

    @contextmanager
    def counted(self, video: str) -> Iterator[None]:
        """Inside, the video is being tried. Who stops that on purpose forgives it (`set`); once a video is done, or has
        failed in words, those of earlier tries go, too."""
        mark = self._mark(video)
        with writing(mark):
            output_folder(self.folder)
            handle = os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                os.write(handle, b"x")
                os.fsync(handle)
            finally:
                os.close(handle)
        yield
        self.set(video, 0)

    def set(self, video: str, count: int) -> None:
        mark = self._mark(video)
        with suppress(OSError):
            if count > 0:
                os.truncate(mark, count)
            else:
                mark.unlink(missing_ok=True)
