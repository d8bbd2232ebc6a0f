"""Video files whose frames say which one they are: eight black or white blocks spell the frame's number."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

import autogaze_mllm as am
from autogaze_mllm.video.reader import VideoReader

ROWS, COLUMNS = 2, 4
UNREADABLE = -1


def encoder(name: str) -> str:
    """The name back; the test is skipped where this build of FFmpeg has no such encoder."""
    try:
        av.codec.Codec(name, "w")
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"no {name} encoder")
    return name


def numbered_frame(number: int, width: int = 96, height: int = 64) -> np.ndarray:
    """(height, width, 3) uint8. Numbers 0 to 255, the highest bit at the top left."""
    bits = np.array([number >> bit & 1 for bit in reversed(range(ROWS * COLUMNS))], dtype=np.uint8)
    rows = np.arange(height) * ROWS // height
    columns = np.arange(width) * COLUMNS // width
    return np.repeat(bits.reshape(ROWS, COLUMNS)[rows][:, columns, None] * 255, 3, axis=2)


def numbered_frames(count: int, width: int = 96, height: int = 64) -> Iterable[np.ndarray]:
    return (numbered_frame(number, width, height) for number in range(count))


def read_number(frame: np.ndarray) -> int:
    """The number a frame shows, UNREADABLE when a block is neither black nor white or not of one colour."""
    height, width = frame.shape[0] // ROWS, frame.shape[1] // COLUMNS
    number = 0
    for row in range(ROWS):
        for column in range(COLUMNS):
            block = frame[row * height : (row + 1) * height, column * width : (column + 1) * width]
            middle = block[height // 4 : -(height // 4), width // 4 : -(width // 4)].astype(float)
            if middle.std() > 40 or 64 < middle.mean() < 192:
                return UNREADABLE
            number = number * 2 + int(middle.mean() > 128)
    return number


def encode(
    path: Path,
    frames: Iterable[np.ndarray],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    fps: int = 25,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    times: list[int] | None = None,
    rotation: int = 0,
) -> Path:
    """For what `write_video` does not write. times: milliseconds of each frame; rotation: degrees, in the metadata."""
    with av.open(str(path), "w", options=container or {}) as output:
        stream = None
        for number, frame in enumerate(frames):
            if stream is None:
                stream = output.add_stream(codec, rate=fps, options=options or {})
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = pix_fmt
                if times:
                    stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
                if rotation:
                    stream.set_display_rotation(rotation)
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            if times:
                picture.pts, picture.time_base = times[number], Fraction(1, 1000)
            output.mux(stream.encode(picture))
        assert stream is not None
        output.mux(stream.encode())
    return path


def wipe_packet(path: Path, number: int) -> Path:
    """Overwrites the packet with this number, in the order of the file."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(container.streams.video[0]) if packet.size]
    start, stop = packets[number].pos, packets[number].pos + packets[number].size
    if path.suffix in (".mkv", ".webm"):
        start += 12  # the container's own words in front of the packet stay
    data = bytearray(path.read_bytes())
    data[start:stop] = bytes(255 - value for value in data[start:stop])
    path.write_bytes(data)
    return path


def shown(reader: VideoReader, indices: list[int] | None = None, chunk: int = 16) -> dict[int, int]:
    """Frame number in the file -> number that the frame shows, for every frame that `read` gives."""
    return {
        index: read_number(frame)
        for part in reader.read(indices, chunk)
        for index, frame in zip(part.indices, part.frames, strict=True)
    }


def first_frame(path: Path) -> np.ndarray:
    return next(am.Video(path).open().read()).frames[0]
