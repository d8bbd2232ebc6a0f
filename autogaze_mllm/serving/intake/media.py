"""From the URLs of a request to its videos and pictures."""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from PIL import Image

from ...common.compute.cancelling import Cancellation
from ...common.errors import InputError
from ...common.pixels import PICTURE_ERRORS, open_picture
from ...common.storage.json_text import shown
from ...common.storage.paths import shown_name
from ...video.container import VideoFile
from ...video.sources import Video
from ..config import ServeConfig
from ..errors import bad_request
from .fetching import Fetcher, not_allowed
from .request import MediumAsked

DATA = re.compile(r"data:[^,;]{0,100}(?:;[^,;]{0,100}){0,4};base64,", re.ASCII | re.IGNORECASE)


class MediaPolicy:
    """What may be looked at, and where it may come from."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._fetcher = Fetcher.of(config)
        self._folders = [_folder(name) for name in config.allow_folder]

    def obtained(self, asked: MediumAsked, call: Cancellation) -> Video | Image.Image:
        """A video, or an opened picture. Raises ApiError for what is not allowed and what cannot be read."""
        source = self._source(asked, call)
        if asked.kind == "image":
            return self._picture(source, asked.where)
        try:
            return Video(source, **asked.part)
        except InputError as error:
            raise bad_request(f"{asked.where}: {error}") from error

    def check_video(self, video: Video, frames: int, fps: float | None, where: str) -> None:
        """Before a video is gazed. frames, fps: as in VideoSettings. Raises ApiError for one that is too much."""
        config = self._config
        with plain_errors(video.source, where):
            if _frame_pixels(video.source) > config.max_megapixels * 1_000_000:
                raise bad_request(f"{where}: frames may have {config.max_megapixels} million pixels here")
            reader, wanted = video.sampled(frames, fps)
        if reader.duration > config.max_duration:
            raise bad_request(f"{where}: a video may last {config.max_duration:g} seconds here")
        if len(wanted) > max(config.max_frames, frames):
            raise bad_request(
                f"{where}: {len(wanted)} frames would be looked at, and {config.max_frames} may be here; ask for fewer"
            )

    def _source(self, asked: MediumAsked, call: Cancellation) -> str | bytes:
        scheme = asked.url[:16].partition(":")[0].lower()
        if scheme == "data":
            return _data(asked.url, asked.where)
        if scheme == "file":
            return self._file(asked.url, asked.where)
        if scheme in ("http", "https"):
            return self._fetcher.fetch(asked.url, asked.where, call)
        raise bad_request(
            f"{asked.where}: expected a URL that begins with data:, file: or https:, got {shown(asked.url)}"
        )

    def _file(self, url: str, where: str) -> str:
        """The same refusal for what is not allowed and what is not there: nobody learns which files exist."""
        parts = urlsplit(url)
        if parts.netloc not in ("", "localhost") or not self._folders:
            raise not_allowed("file", where)
        try:
            path = Path(unquote(parts.path, errors="strict")).resolve(strict=True)
            regular = stat.S_ISREG(os.stat(path).st_mode)
        except (OSError, ValueError, RuntimeError):
            raise not_allowed("file", where) from None
        if not regular or not any(path.is_relative_to(folder) for folder in self._folders):
            raise not_allowed("file", where)
        return str(path)

    def _picture(self, source: str | bytes, where: str) -> Image.Image:
        with plain_errors(source, where):
            try:
                with Image.open(source if isinstance(source, str) else io.BytesIO(source)) as found:
                    size = found.width * found.height
            except PICTURE_ERRORS:
                size = 0  # what is wrong with it is said below
            if size > self._config.max_megapixels * 1_000_000:
                raise bad_request(f"{where}: a picture may have {self._config.max_megapixels} million pixels here")
            return open_picture(source)


def _frame_pixels(source: str | bytes) -> int:
    """0 for what only Pillow reads (some animations), which has a limit of its own."""
    try:
        container, stream = VideoFile(source).open()
    except InputError:
        return 0
    with container:
        return (stream.codec_context.width or 0) * (stream.codec_context.height or 0)


@contextmanager
def plain_errors(source: Any, where: str) -> Iterator[None]:
    """Inside, an InputError becomes one of the client, which names the part of its request and no path."""
    try:
        yield
    except InputError as error:
        raise bad_request(f"{where}: {without_paths(str(error), [source])}") from error


def without_paths(message: str, sources: Iterable[Any]) -> str:
    for source in sources:
        if isinstance(source, str):
            for name in (source, shown_name(source)):
                message = message.replace(name, "the file")
    return message


def _data(url: str, where: str) -> bytes:
    head = DATA.match(url)
    if head is None:
        raise bad_request(f"{where}: a data URL must be data:TYPE;base64,...")
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_request(f"{where}: its data URL is not base64") from error


def _folder(name: str) -> Path:
    try:
        return Path(name).resolve(strict=True)
    except OSError as error:
        raise InputError(f"--allow-folder {name}: no such folder") from error
