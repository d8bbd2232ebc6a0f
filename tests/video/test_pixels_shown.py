"""Shape, direction and colours of a video's pixels: what a player shows is right."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

import autogaze_mllm as am
from autogaze_mllm.common.errors import InputError
from autogaze_mllm.video import reader as reader_module
from autogaze_mllm.video.reader import VideoReader
from autogaze_mllm.video.writer import write_video

from ..helpers.files.video_files import (
    encode,
    encoder,
    first_frame,
    numbered_frame,
    numbered_frames,
    read_number,
    shown,
)

RED = (200, 60, 30)

# -- pixels ------------------------------------------------------------------------------------------------------------


def stored(path: Path, frame: np.ndarray, aspect: Fraction | None = None, matrix: list[int] | None = None) -> Path:
    """A video of one picture, and how it is to be shown."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25, options={"crf": "5"})
        stream.height, stream.width, stream.pix_fmt = *frame.shape[:2], "yuv420p"
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if matrix:
            stream.set_display_matrix(matrix)
        for _ in range(4):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        output.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize(
    ("aspect", "shape"),
    [("3/2", (64, 144)), ("2/3", (96, 96)), ("16/15", (64, 102)), ("1/1", (64, 96)), ("100/1", (64, 96))],
)
def test_pixels_that_are_not_square(aspect: str, shape: tuple[int, int], suffix: str, tmp_path: Path) -> None:
    path = stored(tmp_path / f"clip.{suffix}", numbered_frame(77), Fraction(aspect))
    frame = first_frame(path)
    assert frame.shape == (*shape, 3)
    assert read_number(frame) == 77


def test_shown_aspect_decides_the_tiles(tmp_path: Path) -> None:
    square = stored(tmp_path / "square.mp4", numbered_frame(5, 448, 448))
    wide = stored(tmp_path / "wide.mp4", numbered_frame(5, 448, 448), Fraction(2))
    settings = am.VideoSettings(frames=2, max_tiles=4)
    assert am.gaze_video(square, "pixel-diff", settings).tiles == (2, 2)
    assert am.gaze_video(wide, "pixel-diff", settings).tiles == (2, 1)


UNIT = 1 << 16
MATRICES = {
    "as it is": ([UNIT, 0, 0, UNIT], lambda frame: frame),
    "half a turn": ([-UNIT, 0, 0, -UNIT], lambda frame: frame[::-1, ::-1]),
    "mirrored": ([-UNIT, 0, 0, UNIT], lambda frame: frame[:, ::-1]),
    "upside down": ([UNIT, 0, 0, -UNIT], lambda frame: frame[::-1]),
    "to the right": ([0, UNIT, -UNIT, 0], lambda frame: np.rot90(frame, -1)),
    "to the left": ([0, -UNIT, UNIT, 0], lambda frame: np.rot90(frame, 1)),
    "transposed": ([0, UNIT, UNIT, 0], lambda frame: frame.swapaxes(0, 1)),
    "other diagonal": ([0, -UNIT, -UNIT, 0], lambda frame: np.rot90(frame.swapaxes(0, 1), 2)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_turned_and_mirrored(name: str, tmp_path: Path) -> None:
    (a, b, c, d), expected = MATRICES[name]
    frame = numbered_frame(0b10011101)
    path = stored(tmp_path / "clip.mp4", frame, matrix=[a, b, 0, c, d, 0, 0, 0, 1 << 30])
    given = first_frame(path).astype(float)
    assert given.shape == expected(frame).shape
    assert np.abs(given - expected(frame)).mean() < 6


def test_turned_pixels_that_are_not_square(tmp_path: Path) -> None:
    turn = [0, UNIT, 0, -UNIT, 0, 0, 0, 0, 1 << 30]
    assert first_frame(stored(tmp_path / "a.mp4", numbered_frame(9), Fraction(3, 2), turn)).shape == (144, 64, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_picture_as_a_video_is_what_it_is_as_a_picture(orientation: int, suffix: str, tmp_path: Path) -> None:
    from autogaze_mllm.common.pixels import open_picture

    image = Image.fromarray(numbered_frame(0b10011101))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"a.{suffix}", exif=exif)
    expected = np.asarray(open_picture(tmp_path / f"a.{suffix}"))
    assert np.array_equal(first_frame(tmp_path / f"a.{suffix}"), expected)
    assert expected.shape == ((64, 96, 3) if orientation < 5 else (96, 64, 3))


def test_frames_that_would_burst_the_memory_are_refused(tmp_path: Path) -> None:
    Image.new("1", (20000, 10000)).save(tmp_path / "bomb.png")  # 25 kB
    with pytest.raises(InputError, match="frames of 20000x10000 pixels are more than memory is spent on"):
        am.gaze_video(tmp_path / "bomb.png", "pixel-diff")


def test_frames_that_turn_out_to_be_huge_are_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = encode(tmp_path / "first.ts", numbered_frames(10), options={"bf": "0"})
    times = list(range(1000, 1400, 40))
    larger = (numbered_frame(10 + number, 192, 128) for number in range(10))
    second = encode(tmp_path / "second.ts", larger, options={"bf": "0"}, times=times)
    (tmp_path / "both.ts").write_bytes(first.read_bytes() + second.read_bytes())
    monkeypatch.setattr(reader_module, "MOST_PIXELS", 100 * 100)
    reader = VideoReader(tmp_path / "both.ts")
    assert shown(reader) == {number: number for number in range(10)}
    assert reader.lost == list(range(10, 20))


# -- colours -----------------------------------------------------------------------------------------------------------


def coloured(path: Path, size: tuple[int, int], matrix: int, full: bool, said: bool, **more: Any) -> Path:
    """A red video whose colours are stored in this way. said: whether the file says so."""
    width, height = size
    pix_fmt, codec = more.get("pix_fmt", "yuv420p"), more.get("codec", "libx264")
    with av.open(str(path), "w") as output:
        stream = output.add_stream(encoder(codec), rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        if said:
            stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1
        frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), RED, np.uint8), format="rgb24")
        frame = frame.reformat(format=pix_fmt, dst_colorspace=matrix, dst_color_range=2 if full else 1)
        for _ in range(3):
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("matrix", [1, 5, 9], ids=["BT.709", "BT.601", "BT.2020"])
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuv420p10le"])
def test_the_colours_that_a_file_says(suffix: str, matrix: int, full: bool, pix_fmt: str, tmp_path: Path) -> None:
    path = coloured(tmp_path / f"clip.{suffix}", (96, 64), matrix, full, said=True, pix_fmt=pix_fmt)
    assert first_frame(path).mean(axis=(0, 1)) == pytest.approx(RED, abs=5)


@pytest.mark.parametrize(("size", "matrix"), [((1280, 720), 1), ((720, 576), 5), ((320, 240), 5), ((720, 1280), 1)])
def test_the_colours_of_files_that_say_nothing(size: tuple[int, int], matrix: int, tmp_path: Path) -> None:
    path = coloured(tmp_path / "clip.mp4", size, matrix, full=False, said=False)
    assert first_frame(path).mean(axis=(0, 1)) == pytest.approx(RED, abs=5)


@pytest.mark.parametrize("size", [(96, 64), (1280, 720)])
@pytest.mark.parametrize("name", ["clip.mp4", "clip.webm", "clip.avi", "clip.mkv", "clip.ts"])
def test_what_is_written_is_read_in_its_colours(size: tuple[int, int], name: str, tmp_path: Path) -> None:
    frames = [np.full((size[1], size[0], 3), RED, np.uint8)] * 6
    write_video(tmp_path / name, frames, 25)
    assert first_frame(tmp_path / name).mean(axis=(0, 1)) == pytest.approx(RED, abs=5)


@pytest.mark.parametrize(("curve", "white"), [(16, 0.58), (18, 0.75)], ids=["PQ", "HLG"])
def test_high_dynamic_range_is_brought_to_the_screen(curve: int, white: float, tmp_path: Path) -> None:
    """White paper is white, as on a screen, and not grey. white: its signal level by the standard (BT.2408)."""
    frame = av.VideoFrame(96, 64, "yuv420p10le")
    for plane, value in zip(frame.planes, (int(64 + white * 876), 512, 512), strict=True):
        plane.update(np.full(plane.buffer_size // 2, value, np.uint16).tobytes())
    with av.open(str(tmp_path / "clip.mp4"), "w") as output:
        stream = output.add_stream(encoder("libx264"), rate=25, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p10le"
        context = stream.codec_context
        context.colorspace, context.color_range, context.color_trc, context.color_primaries = 9, 1, curve, 9
        for _ in range(3):
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    assert first_frame(tmp_path / "clip.mp4").mean() > 240
