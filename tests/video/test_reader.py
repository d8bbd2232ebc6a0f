"""The reader gives exactly the frames asked for, whatever the container and codec."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from autogaze_mllm.common.errors import InputError
from autogaze_mllm.video.reader import VideoReader
from autogaze_mllm.video.writer import write_video

from ..helpers.files.video_files import encode, encoder, numbered_frame, numbered_frames, read_number, shown
from ..helpers.paths import shared_video

COUNT = 130


def x264(group: int, between: int = 3, **more: str) -> dict[str, str]:
    """Groups of pictures of this length with so many B-frames between the others."""
    return {"g": str(group), "bf": str(between), "b_adapt": "0", "sc_threshold": "0", "preset": "veryfast", **more}


H264 = {
    "long groups": x264(250),
    "groups of 30": x264(30),
    "groups of 12": x264(12, 2),
    "no B-frames": x264(12, 0),
    "open groups": x264(30, x264opts="open-gop=1"),
}
OTHERS = [
    ("webm", "libvpx-vp9", {"g": "30", "deadline": "realtime", "cpu-used": "8"}),
    ("webm", "libvpx-vp9", {"g": "30", "cpu-used": "8", "lag-in-frames": "16", "auto-alt-ref": "1"}),
    ("mp4", "mpeg4", {"g": "12", "bf": "2"}),
    ("avi", "mpeg4", {"g": "12", "bf": "2"}),
    ("avi", "mpeg4", {"g": "12", "bf": "1"}),
    ("avi", "mpeg4", {"g": "30", "bf": "0"}),
    ("avi", "msmpeg4v2", {"g": "30"}),
    ("ts", "mpeg4", {"g": "12", "bf": "2"}),
    ("ts", "mpeg2video", {"g": "12", "bf": "2"}),
    ("mp4", "libsvtav1", {"g": "30", "preset": "8", "crf": "10"}),
    ("mkv", "libsvtav1", {"g": "30", "preset": "8", "crf": "10"}),
    ("mp4", "libx265", {"x265-params": "keyint=30:bframes=3:log-level=none:pools=1"}),
    ("mkv", "ffv1", {}),
]


def assert_frame_accurate(path: Path, count: int = COUNT) -> None:
    reader = VideoReader(path)
    assert len(reader) == count
    assert shown(reader) == {number: number for number in range(count)}
    rng = np.random.default_rng(0)
    drawn = [sorted(rng.choice(count, size, replace=False).tolist()) for size in (1, 2, 3, 5, 20)]
    for wanted in [[0], [count - 1], [0, count - 1], [29, 30, 31], [11, 12, 59, 60], list(range(7, count, 12)), *drawn]:
        assert shown(reader, wanted) == {number: number for number in wanted}
    assert reader.lost == []


@pytest.mark.parametrize("options", H264.values(), ids=H264)
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_h264(tmp_path: Path, suffix: str, options: dict[str, str]) -> None:
    path = tmp_path / f"clip.{suffix}"
    write_video(path, numbered_frames(COUNT), 30, options=options)
    assert_frame_accurate(path)
    assert VideoReader(path).seconds == pytest.approx(np.arange(COUNT) / 30, abs=1e-3)


def test_h264_in_avi(tmp_path: Path) -> None:
    """This container says nothing of the order in which B-frames are shown."""
    write_video(tmp_path / "clip.avi", numbered_frames(COUNT), 30)
    assert_frame_accurate(tmp_path / "clip.avi")


@pytest.mark.parametrize(("suffix", "codec", "options"), OTHERS, ids=[f"{s}-{c}" for s, c, _ in OTHERS])
def test_other_codecs(tmp_path: Path, suffix: str, codec: str, options: dict[str, str]) -> None:
    path = tmp_path / f"clip.{suffix}"
    write_video(path, numbered_frames(COUNT), 30, codec=encoder(codec), options=options)
    assert_frame_accurate(path)


def test_stream_without_timestamps(tmp_path: Path) -> None:
    assert_frame_accurate(encode(tmp_path / "clip.h264", numbered_frames(COUNT), options=x264(30)))


def test_single_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", [numbered_frame(77)], 30)
    reader = VideoReader(tmp_path / "clip.mp4")
    assert (len(reader), reader.seconds.tolist(), shown(reader)) == (1, [0.0], {0: 77})
    assert reader.duration == pytest.approx(1 / 30)


def test_order_and_repetition_of_indices_do_not_matter(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", numbered_frames(40), 30)
    chunks = list(VideoReader(tmp_path / "clip.mp4").read([39, 3, 20, 3]))
    assert [(chunk.indices, chunk.seconds) for chunk in chunks] == [
        ([3, 20, 39], pytest.approx([3 / 30, 20 / 30, 39 / 30]))
    ]


@pytest.mark.parametrize(("chunk", "sizes"), [(1, [1] * 10), (4, [4, 4, 2]), (5, [5, 5]), (16, [10])])
def test_chunks(tmp_path: Path, chunk: int, sizes: list[int]) -> None:
    write_video(tmp_path / "clip.mp4", numbered_frames(10), 10)
    chunks = list(VideoReader(tmp_path / "clip.mp4").read(chunk=chunk))
    assert [len(part.frames) for part in chunks] == sizes
    assert [number for part in chunks for number in part.indices] == list(range(10))
    assert [second for part in chunks for second in part.seconds] == pytest.approx(np.arange(10) / 10)
    assert all(part.frames.dtype == np.uint8 and part.frames.shape[1:] == (64, 96, 3) for part in chunks)


def test_memory_is_that_of_a_chunk(tmp_path: Path) -> None:
    width, height = 640, 360
    write_video(tmp_path / "clip.mp4", numbered_frames(200, width, height), 30, options=x264(30))
    reader = VideoReader(tmp_path / "clip.mp4")
    tracemalloc.start()
    try:
        numbers = [number for part in reader.read() for number in part.indices]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert numbers == list(range(200))
    assert peak < 4 * 16 * width * height * 3  # the one given, the one in the making and its copy


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_what_lies_between_the_wanted_frames_is_not_decoded(tmp_path: Path, suffix: str) -> None:
    write_video(tmp_path / f"clip.{suffix}", numbered_frames(150), 30, options=x264(10, 2, preset="ultrafast"))
    decoded = []

    class Counting(VideoReader):
        def _decode_from(self, keyframe):  # type: ignore[no-untyped-def]
            for number, frame in super()._decode_from(keyframe):
                decoded.append(number)
                yield number, frame

    reader = Counting(tmp_path / f"clip.{suffix}")
    assert sum(len(part.frames) for part in reader.read([82, 149])) == 2
    assert len(decoded) < 50  # at most a few groups of ten


TIMES = [0, 40, 50, 300, 333, 900, 1000, 1001, 1500, 4000]


@pytest.mark.parametrize("start", [0, 1500])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_variable_frame_rate(tmp_path: Path, suffix: str, start: int) -> None:
    """Times come from the file and count from the first frame on, also where that one has a later time."""
    times = [start + time for time in TIMES]
    path = encode(tmp_path / f"clip.{suffix}", numbered_frames(10), options=x264(5, 2), times=times)
    reader = VideoReader(path)
    assert (reader.seconds * 1000).tolist() == pytest.approx(TIMES, abs=0.1)
    assert shown(reader, [2, 7, 9]) == {2: 2, 7: 7, 9: 9}
    assert reader.duration == pytest.approx(4 + 4 / 9, abs=1e-3)


@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt"),
    [
        ("mp4", "libx264", "yuv444p"),
        ("mkv", "libx264rgb", "rgb24"),
        ("mkv", "ffv1", "yuv420p"),
        ("webm", "libvpx-vp9", "yuv420p"),
    ],
)
def test_odd_sides(tmp_path: Path, suffix: str, codec: str, pix_fmt: str) -> None:
    path = encode(tmp_path / f"clip.{suffix}", numbered_frames(20, 97, 65), codec=encoder(codec), pix_fmt=pix_fmt)
    chunk = next(VideoReader(path).read())
    assert chunk.frames.shape == (16, 65, 97, 3)
    assert [read_number(frame) for frame in chunk.frames] == list(range(16))


@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "gray", "yuvj420p"])
def test_pixel_formats(tmp_path: Path, pix_fmt: str) -> None:
    path = encode(tmp_path / "clip.mp4", numbered_frames(20), pix_fmt=pix_fmt, options=x264(5))
    chunk = next(VideoReader(path).read([3, 17]))
    assert chunk.frames.dtype == np.uint8
    assert [read_number(frame) for frame in chunk.frames] == [3, 17]
    assert chunk.frames.min() < 8
    assert chunk.frames.max() > 247


def test_colours(tmp_path: Path) -> None:
    colours = [(230, 20, 20), (20, 230, 20), (20, 20, 230), (240, 240, 20)]
    frames = [np.full((64, 96, 3), colour, dtype=np.uint8) for colour in colours]
    write_video(tmp_path / "clip.mp4", frames, 30, options={"crf": "5"})
    given = next(VideoReader(tmp_path / "clip.mp4").read()).frames
    assert given.mean(axis=(1, 2)) == pytest.approx(np.array(colours), abs=6)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_applied(tmp_path: Path, suffix: str, degrees: int) -> None:
    """A camera held askew: the picture lies in the file, turned, and metadata say how to put it upright."""
    turns = degrees // 90
    # The metadata turn counter-clockwise; what is stored was turned the other way.
    stored = [np.rot90(numbered_frame(number), -turns) for number in range(12)]
    reader = VideoReader(encode(tmp_path / f"clip.{suffix}", stored, rotation=degrees))
    assert next(reader.read()).frames.shape == (12, 64, 96, 3)
    assert shown(reader) == {number: number for number in range(12)}


def test_resolution_change_in_mid_stream(tmp_path: Path) -> None:
    parts = [
        encode(tmp_path / "first.ts", numbered_frames(10), options={"bf": "0"}),
        encode(
            tmp_path / "second.ts",
            (numbered_frame(10 + n, 128, 96) for n in range(10)),
            options={"bf": "0"},
            times=list(range(1000, 1400, 40)),
        ),
    ]
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    chunks = list(VideoReader(path).read())
    assert [chunk.frames.shape for chunk in chunks] == [(10, 64, 96, 3), (10, 96, 128, 3)]
    assert [read_number(frame) for chunk in chunks for frame in chunk.frames] == list(range(20))


def test_frames_outside_the_file(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", numbered_frames(5), 30)
    reader = VideoReader(tmp_path / "clip.mp4")
    for wanted, named in (([0, 5], "frame 5 "), ([-1, 2], "frame -1 ")):
        with pytest.raises(InputError, match=f"{named}was asked for, the file has 5"):
            next(reader.read(wanted))
    with pytest.raises(InputError, match="no frame was asked for"):
        next(reader.read([]))


def frames_of(reader: VideoReader, indices: list[int]) -> dict[int, np.ndarray]:
    return {n: frame for part in reader.read(indices) for n, frame in zip(part.indices, part.frames, strict=True)}


@pytest.mark.parametrize(
    ("name", "count", "shape"),
    [
        ("nasa_13013.mp4", 390, (270, 480)),
        ("flipping_a_pancake.mkv", 310, (240, 426)),
        ("autogaze_example.mp4", 64, (448, 448)),
        ("rotated_90.mov", 3, (568, 320)),
    ],
)
def test_real_videos(name: str, count: int, shape: tuple[int, int]) -> None:
    reader = VideoReader(shared_video(name))
    ends = sorted({0, count // 2, count - 1})
    few = frames_of(reader, ends)
    assert (list(few), reader.lost) == (ends, [])
    numbers = []
    for part in reader.read(chunk=32):
        assert part.frames.shape[1:] == (*shape, 3)
        for number, frame in zip(part.indices, part.frames, strict=True):
            numbers.append(number)
            assert number not in few or np.array_equal(few[number], frame)
    assert (numbers, reader.lost) == (list(range(count)), [])
