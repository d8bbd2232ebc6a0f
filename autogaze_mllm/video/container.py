"""Opening a video file: from its name, its bytes, or an open file.

Notable design decisions:
- a name is the name of a local file and nothing else: no protocol, no pattern, no playlist. No other file and no other
  machine is ever touched on the word of a name, or of what is in a file;
- what has no end or cannot be sought in (a pipe, a device) is refused instead of waited for;
- of several streams that one is read which a player would show, which is never a cover picture.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import threading
from pathlib import Path
from typing import Any, BinaryIO

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from ..common.errors import InputError, first_line
from ..common.storage.hashing import content_hash
from ..common.storage.paths import check_path, shown_name

FileSource = str | Path | bytes | bytearray | memoryview | BinaryIO

# Formats whose files tell to open others, or to run something.
_LISTS = {
    "hls", "applehttp", "dash", "webm_dash_manifest", "concat", "concatf", "imf", "sdp", "rtp", "rtsp", "sap",
    "vobsub", "avisynth", "vapoursynth", "lavfi", "dvdvideo", "bluray", "image2pipe",
}  # fmt: skip
_PIECE = 1 << 20
_READING = threading.Lock()  # one for all open files: two of our readers may have been given the same one


class VideoFile:
    """A file that can be opened any number of times. name: what errors call it.

    Raises InputError for what is no file that could be read: a URL, a folder, a pipe, text.
    """

    def __init__(self, source: FileSource) -> None:
        self._path: str | None = None
        self._data: bytes | bytearray | memoryview = b""
        self._file: Any = None
        self._stream: int | None = None
        if isinstance(source, (str, os.PathLike)):
            self._path = os.fspath(source)
            self.name = shown_name(self._path)
            check_path(self._path, "video")
        elif isinstance(source, (bytes, bytearray, memoryview)):
            self._data, self.name = source, f"video of {len(source)} bytes"
            if not len(source):
                raise InputError("the bytes of a video were given, but there are none")
        else:
            self._file, self.name = source, f"open file {shown_name(str(getattr(source, 'name', '')))}".rstrip()
            _check_open_file(source, self.name)

    def open(self) -> tuple[InputContainer, VideoStream]:
        """The container, and the stream that a player would show."""
        target = self.stream() if self._path is None else f"file:{self._path}"
        options = {"protocol_whitelist": "file", "format_whitelist": _readable_formats(), "pattern_type": "none"}
        try:
            # Titles and the like may be in any encoding; nobody looks at them here.
            container = av.open(target, options=options, metadata_errors="replace")
        except (av.error.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            if isinstance(error, av.error.ArgumentError):
                reason += "; a playlist is not read: give the video itself"
            raise InputError(f"{self.name}: not a readable video ({reason})") from error
        try:
            stream = self._shown_stream(container)
        except BaseException:
            container.close()
            raise
        return container, stream

    def stream(self) -> Any:
        """The bytes, as an open file that belongs to the caller."""
        if self._path is None:
            return io.BytesIO(self._data) if self._file is None else _Window(self._file)
        try:
            return open(self._path, "rb")
        except OSError as error:
            raise InputError(f"{self.name}: {error.strerror or error}") from error

    def for_others(self) -> str | bytes | BinaryIO:
        """As other decoders take it: the address of a local file, the bytes, or an open file of the caller's own."""
        if self._path is not None:
            return f"file:{self._path}"
        return bytes(self._data) if self._file is None else _Window(self._file)  # type: ignore[return-value]

    def head(self, size: int) -> bytes:
        """The first bytes."""
        with self.stream() as file:
            try:
                return file.read(size)
            except OSError as error:
                raise InputError(f"{self.name}: {error.strerror or error}") from error

    def content(self) -> str:
        """Hash of the bytes: the same for a path, an open file and bytes."""
        if self._path is not None:
            return content_hash(self._path)
        digest = hashlib.blake2b()
        with self.stream() as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
        return digest.hexdigest()

    def _shown_stream(self, container: InputContainer) -> VideoStream:
        """The default one, or else the largest; of those that hold more than a single picture, if any does."""
        streams = container.streams.video
        if self._stream is not None and self._stream < len(streams):
            return streams[self._stream]
        pictures = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
        videos = [(number, one) for number, one in enumerate(streams) if not one.disposition & pictures]
        if not videos:
            found = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
            raise InputError(f"{self.name}: has no video stream (found: {found})")
        decodable = [(number, one) for number, one in videos if one.codec_context is not None]
        if not decodable:
            raise InputError(f"{self.name}: no decoder for its video stream")

        def rank(entry: tuple[int, VideoStream]) -> tuple[bool, bool, int]:
            context, one = entry[1].codec_context, entry[1]
            default = bool(one.disposition & av.stream.Disposition.default)
            return one.frames != 1, default, (context.width or 0) * (context.height or 0)

        self._stream, stream = max(decodable, key=rank)  # the first of those that are alike
        return stream


class _Window(io.RawIOBase):
    """Reads an open file from a place of its own, so that several readers, and the caller, may share it."""

    def __init__(self, file: Any) -> None:
        super().__init__()
        self._file, self._place = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        with _READING:
            before = self._file.tell()
            try:
                self._file.seek(self._place)
                data = self._file.read(size)
            finally:
                self._file.seek(before)
        self._place += len(data)
        return bytes(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with _READING:
            before = self._file.tell()
            end = self._file.seek(0, os.SEEK_END)
            self._file.seek(before)
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: end}[whence]
        self._place = max(start + offset, 0)
        return self._place

    def tell(self) -> int:
        return self._place


def is_open_file(source: Any) -> bool:
    return callable(getattr(source, "read", None)) and callable(getattr(source, "seek", None))


def _check_open_file(file: Any, name: str) -> None:
    try:
        if isinstance(file, io.TextIOBase) or not isinstance(file.read(0), (bytes, bytearray)):
            raise InputError(f"{name}: was opened as text; open it with mode 'rb'")
        file.seek(file.tell())
    except InputError:
        raise
    except (OSError, ValueError, AttributeError) as error:  # closed; a pipe; io.UnsupportedOperation is both
        problem = "cannot be read from any place; give its bytes, or write them to a file"
        raise InputError(f"{name}: {problem} ({first_line(error)})") from error


@functools.cache
def _readable_formats() -> str:
    return ",".join(sorted(av.formats_available - _LISTS))
