"""Files that are cut off, damaged or no video at all."""

from __future__ import annotations

import logging
from pathlib import Path

import av
import numpy as np
import pytest

from autogaze_mllm.common.errors import InputError
from autogaze_mllm.video.reader import VideoReader
from autogaze_mllm.video.writer import write_video

from ..helpers.files.video_files import encode, encoder, numbered_frame, numbered_frames, shown, wipe_packet
from ..helpers.paths import shared_video

GROUPS_OF_10 = {"g": "10", "keyint_min": "10", "bf": "2", "sc_threshold": "0"}


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def assert_refused(path: Path, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        VideoReader(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_mp4_cut_off_before_its_index(tmp_path: Path, share: float) -> None:
    write_video(tmp_path / "clip.mp4", numbered_frames(100), 25, options=GROUPS_OF_10)
    assert_refused(cut(tmp_path / "clip.mp4", share), "not a readable video|holds no frames")


@pytest.mark.parametrize("suffix", ["mkv", "ts"])
def test_cut_off_file_is_read_as_far_as_it_goes(tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    write_video(tmp_path / f"clip.{suffix}", numbered_frames(100), 25, options=GROUPS_OF_10)
    VideoReader(tmp_path / f"clip.{suffix}")
    assert not caplog.text
    reader = VideoReader(cut(tmp_path / f"clip.{suffix}", 0.7))
    assert ("cut off" in caplog.text) == (suffix == "mkv")  # MPEG-TS does not say how long it should be
    given = shown(reader)
    assert 50 < len(given) < 90
    assert len(given) + len(reader.lost) == len(reader)
    # A B-frame may be missing among the last ones: its packet would have come later in the file.
    assert given == {number: round(reader.seconds[number] * 25) for number in given}
    assert shown(reader, [max(given)]) == {max(given): max(given.values())}


def test_cut_off_mp4_with_its_index_in_front(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = encode(
        tmp_path / "clip.mp4", numbered_frames(100), options=GROUPS_OF_10, container={"movflags": "faststart"}
    )
    with caplog.at_level(logging.WARNING):
        reader = VideoReader(cut(path, 0.7))
        given = shown(reader)
    assert 30 < len(given) < 90
    assert given == {number: round(reader.seconds[number] * 25) for number in given}
    assert "clip.mp4" in caplog.text
    # The index tells how many frames there were: 100, not only those that are left.
    assert "100" in caplog.text


@pytest.mark.parametrize("codec", ["mjpeg", "ffv1", "libx264"])
def test_damaged_frame_costs_itself_only(tmp_path: Path, caplog: pytest.LogCaptureFixture, codec: str) -> None:
    """Every frame on its own (no groups of pictures)."""
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = encode(tmp_path / "clip.mkv", numbered_frames(60), codec=codec, pix_fmt=pix_fmt, options={"g": "1"})
    reader = VideoReader(wipe_packet(path, 34))
    with caplog.at_level(logging.WARNING):
        assert shown(reader) == {number: number for number in range(60) if number != 34}
    assert reader.lost == [34]
    assert "1 of 60 frames could not be decoded" in caplog.text
    assert shown(reader, [33, 35]) == {33: 33, 35: 35}
    assert reader.lost == []
    with pytest.raises(InputError, match="none of 1 frames could be decoded"):
        shown(reader, [34])


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        ("mp4", "libx264"),
        ("mkv", "libx264"),
        ("mp4", "mpeg4"),
        ("webm", "libvpx-vp9"),
    ],
)
def test_damage_stays_in_its_group(tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, codec: str) -> None:
    path = encode(
        tmp_path / f"clip.{suffix}",
        numbered_frames(60),
        codec=encoder(codec),
        options=GROUPS_OF_10 if codec == "libx264" else {"g": "10"},
    )
    reader = VideoReader(wipe_packet(path, 34))
    with caplog.at_level(logging.WARNING):
        given = shown(reader)
    assert len(reader.lost) >= 1
    assert set(reader.lost) <= set(range(30, 40))
    assert set(given) | set(reader.lost) == set(range(60))
    outside = [number for number in range(60) if not 30 <= number < 40]
    assert [given[number] for number in outside] == outside
    assert f"{len(reader.lost)} of 60 frames could not be decoded" in caplog.text


def test_lost_frames_are_those_of_the_latest_reading(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mov", numbered_frames(30), codec="mjpeg", pix_fmt="yuvj420p")
    reader = VideoReader(wipe_packet(wipe_packet(path, 10), 20))
    assert shown(reader, [9, 10, 11, 20]) == {9: 9, 11: 11}
    assert reader.lost == [10, 20]
    assert shown(reader, [20, 21]) == {21: 21}
    assert reader.lost == [20]


def test_damage_at_the_end(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mov", numbered_frames(30), codec="mjpeg", pix_fmt="yuvj420p")
    reader = VideoReader(wipe_packet(wipe_packet(path, 28), 29))
    assert shown(reader) == {number: number for number in range(28)}
    assert reader.lost == [28, 29]


def test_real_damaged_video(caplog: pytest.LogCaptureFixture) -> None:
    reader = VideoReader(shared_video("corrupted.mp4"))
    with caplog.at_level(logging.WARNING):
        given = sum(len(part.frames) for part in reader.read())
    assert (len(reader), given, len(reader.lost)) == (50, 49, 1)
    assert "1 of 50 frames could not be decoded" in caplog.text


def _audio(container: av.container.OutputContainer, stream: av.AudioStream) -> None:
    for number in range(20):
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), dtype=np.float32), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = 44100, number * 1024
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


@pytest.mark.parametrize("cover", [False, True])
def test_audio_file(tmp_path: Path, cover: bool) -> None:
    """A cover picture does not make a video of it."""
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=44100)
        sound.layout = "stereo"
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 96, 64, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
        _audio(container, sound)
        if cover:
            container.mux(picture.encode(av.VideoFrame.from_ndarray(numbered_frame(3), format="rgb24")))
            container.mux(picture.encode())
    assert_refused(path, "has no video stream")


def test_sound_beside_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=44100)
        sound.layout = "stereo"
        video = container.add_stream("libx264", rate=25, options=GROUPS_OF_10)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        _audio(container, sound)
        for frame in numbered_frames(50):
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode())
    reader = VideoReader(path)
    assert len(reader) == 50
    assert shown(reader, [0, 24, 49]) == {0: 0, 24: 24, 49: 49}


def test_not_a_video(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("This is no video.\n" * 50)
    (tmp_path / "empty.mp4").touch()
    assert_refused(tmp_path / "text.mp4", "not a readable video")
    assert_refused(tmp_path / "empty.mp4", "not a readable video")
    assert_refused(tmp_path, "is a folder")
    assert_refused(tmp_path / "nothing.mp4", "no such file")


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "mov"])
def test_video_without_frames(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        container.start_encoding()
    assert_refused(path, "no video stream|not a readable video|holds no frames")


def test_file_that_goes_away_while_it_is_used(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", numbered_frames(5), 25)
    reader = VideoReader(tmp_path / "clip.mp4")
    (tmp_path / "clip.mp4").unlink()
    with pytest.raises(InputError, match=r"clip\.mp4"):
        next(reader.read())
