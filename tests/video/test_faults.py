"""Odd names, streams and times: what a player shows is right."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

import autogaze_mllm as am
from autogaze_mllm.cli import main
from autogaze_mllm.common.errors import InputError
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
from ..helpers.forked import command
from ..helpers.paths import shared_video

RED = (200, 60, 30)


# -- names -------------------------------------------------------------------------------------------------------------

NAMES = [
    "2024-05-01T12:30:00.mp4",
    "12:30.mp4",
    "http:/clip.mp4",
    "file:clip.mp4",
    "pipe:0",
    "concat:a.mp4|b.mp4",
    "frame%d.mp4",
    "frame%03d.mp4",
    "a?b#c&d=e.mp4",
    "-clip.mp4",
    "@clip.mp4",
    "ü 日本.mp4",
    "*.mp4",
    "a\nb.mp4",
    os.fsdecode(b"m\xfcller.mp4"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_a_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(exist_ok=True)
    write_video("plain.mp4", numbered_frames(3), 10)
    Path("plain.mp4").rename(name)
    for source in (name, Path(name), f"./{name}", str(tmp_path / name)):
        assert shown(VideoReader(source)) == {0: 0, 1: 1, 2: 2}


@pytest.mark.parametrize("name", ["2024-05-01T12:30:00.mp4", "f%d.mp4", "a\nb.mp4", os.fsdecode(b"m\xfcller.mp4")])
def test_the_command_line_takes_every_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, whose output is strict about what it can say."""
    monkeypatch.chdir(tmp_path)
    write_video("plain.mp4", numbered_frames(3), 10)
    Path("plain.mp4").rename(name)
    code, out, said = command(["gaze", name, "--gaze", "pixel-diff", "--out", "o.mp4"])
    assert code == 0, said
    assert "(3 frames)" in out and Path("o.mp4").is_file()


def test_a_pattern_is_a_name(tmp_path: Path) -> None:
    for name, number in (("f%d.png", 7), ("f1.png", 1), ("f2.png", 2), ("g*.png", 8), ("g1.png", 1)):
        Image.fromarray(numbered_frame(number)).save(tmp_path / name)
    assert shown(VideoReader(tmp_path / "f%d.png")) == {0: 7}
    assert shown(VideoReader(tmp_path / "g*.png")) == {0: 8}


@pytest.mark.parametrize(
    "address",
    ["https://example.com/clip.mp4", "HTTP://example.com/a", "rtsp://camera/1", "s3://bucket/a.mp4", "ftp://x/y.mkv",
     "file:///nowhere/a.mp4", "data:video/mp4;base64," + "A" * 5000],
)  # fmt: skip
def test_an_address_is_refused_in_a_line(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gaze", address, "--gaze", "pixel-diff"]) == 2
    error = capsys.readouterr().err
    assert "is an address, not a file: download the video first" in error
    assert error.count("\n") == 1 and len(error) < 500


PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\nclip.mp4\n#EXT-X-ENDLIST\n",
    "list.ffconcat": "ffconcat version 1.0\nfile clip.mp4\n",
    "movie.mp4": "ffconcat version 1.0\nfile clip.mp4\n",
    "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_playlist_opens_no_other_file(name: str, tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", numbered_frames(3), 10)
    (tmp_path / name).write_text(PLAYLISTS[name])
    for source in (tmp_path / name, (tmp_path / name).read_bytes()):
        with pytest.raises(InputError, match="not a readable video"):
            VideoReader(source)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name here")
@pytest.mark.parametrize("verb", [["gaze"], ["ask", "what?"]], ids=["gaze", "ask"])
def test_a_pipe_does_not_hang(verb: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    codes: list[int] = []
    words = [verb[0], str(tmp_path / "pipe.mp4"), *verb[1:], "--gaze", "pixel-diff"]
    thread = threading.Thread(target=lambda: codes.append(main(words)), daemon=True)
    thread.start()
    thread.join(20)
    assert codes == [2]
    assert "is a pipe or a device" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_a_device_is_refused(device: str) -> None:
    with pytest.raises(InputError, match="is a pipe or a device"):
        am.Video(device).open()
    with pytest.raises(InputError, match="is a pipe or a device"):
        am.Video(device).content()


# -- times -------------------------------------------------------------------------------------------------------------

DROPPED = [*range(10), *range(20, 60)]


def dropped(path: Path, codec: str, slots: list[int], pix_fmt: str = "yuv420p", **options: str) -> Path:
    """A recording at 25 frames a second that has frames in these slots only; each shows its slot."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream(encoder(codec), rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 64, pix_fmt
        stream.codec_context.time_base = Fraction(1, 25)
        for slot in slots:
            frame = av.VideoFrame.from_ndarray(numbered_frame(slot), format="rgb24")
            frame.pts, frame.time_base = slot, Fraction(1, 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("mpeg4", {}),
        ("mpeg4", {"bf": "2"}),
        ("libx264", {"bf": "0"}),
        ("libx264", {}),
        ("mjpeg", {}),
        ("ffv1", {}),
        ("msmpeg4v2", {}),
    ],
)
def test_avi_with_dropped_frames(
    codec: str, options: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    reader = VideoReader(dropped(tmp_path / "clip.avi", codec, DROPPED, pix_fmt, **options))
    assert not caplog.text
    assert reader.seconds == pytest.approx(np.array(DROPPED) / 25)
    assert reader.duration == pytest.approx(2.4)
    assert shown(reader) == dict(enumerate(DROPPED))
    assert shown(reader, [9, 10, 11]) == {9: 9, 10: 20, 11: 21}
    assert looked_at(tmp_path / "clip.avi", start=0.4, end=1) == [20, 21, 22, 23, 24]


def encoded(path: Path, count: int, between: int) -> tuple[list[bytes], av.container.InputContainer]:
    """MPEG-4 pictures in the order in which they are decoded, with so many B-frames between the others."""
    encode(path, numbered_frames(count), codec="mpeg4", options={"bf": str(between), "g": "12"})
    container = av.open(str(path))
    return [bytes(packet) for packet in container.demux(video=0) if packet.size], container


VOP = b"\0\0\1\xb6"  # what a picture begins with; two bits for its kind follow
AS_BEFORE = VOP + bytes([0b01010000, 0b01011111])  # P, no second passed, time 0, not coded


def rewrapped(path: Path, container: av.container.InputContainer, packets: list[bytes]) -> Path:
    """An AVI file of these packets, one for each slot."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(container.streams.video[0])
        stream.time_base = Fraction(1, 25)
        for slot, data in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.time_base, packet.pts, packet.dts, packet.duration = (
                stream,
                Fraction(1, 25),
                slot,
                slot,
                1,
            )
            packet.is_keyframe = data[data.find(VOP) + 4] >> 6 == 0
            output.mux(packet)
    return path


def test_pictures_that_are_not_coded_show_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Xvid's way of dropping a frame."""
    packets, container = encoded(tmp_path / "source.mp4", 30, 0)
    path = rewrapped(tmp_path / "clip.avi", container, [*packets[:5], *[AS_BEFORE] * 3, *packets[5:]])
    reader = VideoReader(path)
    expected = dict(enumerate([0, 1, 2, 3, 4, 4, 4, 4, *range(5, 30)]))
    assert shown(reader) == expected and shown(reader, [6, 20]) == {6: 4, 20: 17}
    assert reader.lost == [] and not caplog.text
    assert reader.seconds == pytest.approx(np.arange(33) / 25)


def test_pictures_that_are_packed_two_and_two(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Xvid's and DivX's way of putting B-frames into AVI: with the picture that they need, then nothing."""
    packets, container = encoded(tmp_path / "source.mp4", 31, 1)
    packed: list[bytes] = []
    for data in packets:
        if data[data.find(VOP) + 4] >> 6 == 2:  # a B-frame
            packed[-1:] = [packed[-1] + data, AS_BEFORE]
        else:
            packed.append(data)
    first = packed[0].find(VOP)
    packed[0] = packed[0][:first] + b"\0\0\1\xb2DivX503b1393p" + packed[0][first:]
    reader = VideoReader(rewrapped(tmp_path / "clip.avi", container, packed))
    assert shown(reader) == {number: number for number in range(31)}
    assert reader.seconds == pytest.approx(np.arange(31) / 25)
    assert reader.lost == [] and not caplog.text


def looked_at(path: Path, **part: float) -> list[int]:
    reader, numbers = am.Video(path, **part).sampled(1000)
    return [read_number(frame) for chunk in reader.read(numbers) for frame in chunk.frames]


def test_avi_that_is_cut_off_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = dropped(tmp_path / "clip.avi", "mjpeg", list(range(60)), "yuvj420p")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.7)])
    VideoReader(path)
    assert "cut off" in caplog.text


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "avi"])
def test_uneven_times_are_not_taken_for_a_cut(suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    slots = [0, 1, 2, 30, 31, 90, 95, 200]
    reader = VideoReader(dropped(tmp_path / f"clip.{suffix}", "mpeg4", slots))
    assert reader.seconds == pytest.approx(np.array(slots) / 25, abs=1e-3)
    assert not caplog.text


# -- streams -----------------------------------------------------------------------------------------------------------


def several(path: Path, *streams: dict[str, Any]) -> Path:
    """A file with several streams; each has a number to show, a size, a codec, frames, and what it is meant for."""
    with av.open(str(path), "w") as output:
        made = []
        for one in streams:
            codec = one.get("codec", "libx264")
            stream = output.add_stream(codec, rate=25)
            stream.width, stream.height = one["size"]
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.disposition = one.get("disposition", 0)
            made.append(stream)
        for stream, one in zip(made, streams, strict=True):
            frame = av.VideoFrame.from_ndarray(numbered_frame(one["shows"], *one["size"]), format="rgb24")
            for _ in range(one.get("frames", 5)):
                output.mux(stream.encode(frame))
            output.mux(stream.encode())
    return path


DEFAULT, COVER = av.stream.Disposition.default, av.stream.Disposition.attached_pic


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_a_cover_picture_is_not_the_video(suffix: str, tmp_path: Path) -> None:
    if suffix == "mkv":
        pytest.skip("there, covers are attachments that PyAV does not write")
    cover = {"shows": 1, "size": (640, 480), "codec": "mjpeg", "frames": 1, "disposition": COVER}
    path = several(tmp_path / f"clip.{suffix}", cover, {"shows": 2, "size": (96, 64)})
    assert set(shown(VideoReader(path)).values()) == {2}


def test_a_single_picture_beside_a_video_is_not_the_video(tmp_path: Path) -> None:
    picture = {"shows": 1, "size": (640, 480), "codec": "mjpeg", "frames": 1, "disposition": DEFAULT}
    path = several(tmp_path / "clip.mp4", picture, {"shows": 2, "size": (96, 64)})
    assert set(shown(VideoReader(path)).values()) == {2}


def test_the_default_stream_is_shown_or_else_the_largest(tmp_path: Path) -> None:
    small, large = {"shows": 1, "size": (96, 64)}, {"shows": 2, "size": (192, 128)}
    path = several(tmp_path / "a.mkv", small, large)
    assert set(shown(VideoReader(path)).values()) == {2}
    path = several(tmp_path / "b.mkv", {**small, "disposition": DEFAULT}, large)
    assert set(shown(VideoReader(path)).values()) == {1}
    path = several(tmp_path / "c.ts", small, large)
    assert set(shown(VideoReader(path)).values()) == {2}


def test_the_stream_of_a_real_file() -> None:
    """Two streams, of 320x180 and 480x270."""
    assert first_frame(shared_video("nasa_13013.mp4")).shape == (270, 480, 3)


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "avi"])
@pytest.mark.parametrize("title", ["Müller", "naïve", "½"])
def test_titles_that_are_not_utf8(suffix: str, title: str, tmp_path: Path) -> None:
    path = tmp_path / f"clip.{suffix}"
    with av.open(str(path), "w", metadata_encoding="latin-1") as output:
        output.metadata["title"] = title
        stream = output.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        if suffix == "mkv":
            stream.metadata["title"] = title
        for frame in numbered_frames(3):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())
    assert title.encode("latin-1") in path.read_bytes()
    assert shown(VideoReader(path)) == {0: 0, 1: 1, 2: 2}


# -- animated pictures -------------------------------------------------------------------------------------------------


def animation(path: Path, count: int = 5, **more: Any) -> Path:
    first, *rest = [Image.fromarray(numbered_frame(number)) for number in range(count)]
    first.save(path, save_all=True, append_images=rest, duration=[100 * (n + 1) for n in range(count)], **more)
    return path


@pytest.mark.parametrize("name", ["a.webp", "a.gif", "a.png", "a.avif"])
def test_animated_pictures(name: str, tmp_path: Path) -> None:
    try:
        path = animation(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
    except (KeyError, OSError, ValueError):
        pytest.skip("this build of Pillow does not write it")
    for source in (path, path.read_bytes()):
        reader = am.Video(source).open()
        assert shown(reader) == {number: number for number in range(5)}
        assert reader.seconds == pytest.approx([0, 0.1, 0.3, 0.6, 1.0], abs=0.011)
        assert shown(reader, [1, 3]) == {1: 1, 3: 3}
    assert am.gaze_video(path, "pixel-diff", am.VideoSettings(frames=4)).stats["frames"] == 4


@pytest.mark.parametrize(("name", "codec"), [("a.mov", "qtrle"), ("a.png", ""), ("a.gif", ""), ("a.mkv", "ffv1")])
def test_what_is_transparent_is_white(name: str, codec: str, tmp_path: Path) -> None:
    pixels = np.zeros((48, 64, 4), np.uint8)
    pixels[:, :32] = (255, 0, 0, 255)
    path = tmp_path / name
    if codec:
        with av.open(str(path), "w") as output:
            stream = output.add_stream(encoder(codec), rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "argb" if codec == "qtrle" else "bgra"
            for _ in range(2):
                output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgba")))
            output.mux(stream.encode())
    else:
        Image.fromarray(pixels).save(
            path, save_all=True, append_images=[Image.fromarray(pixels[:, ::-1])], duration=100
        )
    frame = first_frame(path)
    assert frame[10, 10].tolist() == [255, 0, 0] and frame[10, 50].tolist() == [255, 255, 255]


def test_an_animation_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = animation(tmp_path / "a.webp")
    for share in (0.1, 0.5, 0.9):
        (tmp_path / "cut.webp").write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        with pytest.raises(InputError, match=r"cut\.webp"):
            am.gaze_video(tmp_path / "cut.webp", "pixel-diff")


@pytest.fixture(autouse=True)
def warnings_are_seen(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.WARNING):
        yield
