"""Video files appear whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from autogaze_mllm.common.errors import InputError
from autogaze_mllm.video.reader import VideoReader
from autogaze_mllm.video.synthetic import moving_scene
from autogaze_mllm.video.writer import write_video

from ..helpers.files.video_files import numbered_frame, numbered_frames, shown


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mov", "clip.mkv", "clip.ts", "CLIP.MP4"])
def test_what_is_written_can_be_read(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / "new folder" / name, numbered_frames(20), 12.5)
    reader = VideoReader(str(tmp_path / "new folder" / name))
    assert shown(reader) == {number: number for number in range(20)}
    assert reader.fps == pytest.approx(12.5)
    assert reader.duration == pytest.approx(1.6, abs=0.01)


def test_codec_and_options(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", numbered_frames(20), 30, codec="mpeg4", options={"g": "5"})
    assert VideoReader(tmp_path / "clip.mp4").codec == "mpeg4"


def test_folder_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        write_video(tmp_path / "clip.mp4", numbered_frames(3), 30)


def test_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(InputError, match="taken: cannot write here"):
        write_video(tmp_path / "taken" / "clip.mp4", numbered_frames(3), 30)


@pytest.mark.parametrize("name", ["clip.txt", "clip", "clip.mp3"])
def test_name_of_something_else(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="expected the name of a video file"):
        write_video(tmp_path / name, numbered_frames(3), 30)
    assert list(tmp_path.iterdir()) == []


def test_no_frames(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no frame to write"):
        write_video(tmp_path / "clip.mp4", [], 30)
    assert list(tmp_path.iterdir()) == []


def breaks_off() -> Iterator[np.ndarray]:
    yield from numbered_frames(100)  # enough for the encoder to have written something
    raise KeyboardInterrupt


def test_nothing_half_written_is_left_behind(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "clip.mp4", breaks_off(), 30)
    assert list(tmp_path.iterdir()) == []


def test_an_older_file_survives_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, [numbered_frame(7)], 30)
    with pytest.raises(KeyboardInterrupt):
        write_video(path, breaks_off(), 30)
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]
    assert shown(VideoReader(path)) == {0: 7}
    write_video(path, [numbered_frame(8)], 30)
    assert shown(VideoReader(path)) == {0: 8}


@pytest.mark.parametrize("frame", [np.zeros((64, 96), np.uint8), np.zeros((64, 96, 3), np.float32)])
def test_frames_of_another_form_are_not_written(tmp_path: Path, frame: np.ndarray) -> None:
    with pytest.raises(ValueError, match="Expected numpy array"):
        write_video(tmp_path / "clip.mp4", [frame], 30)
    assert list(tmp_path.iterdir()) == []


def test_what_a_codec_cannot_take_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="even sides, got 33x32"):
        write_video(tmp_path / "clip.mp4", [np.zeros((32, 33, 3), np.uint8)], 30)
    with pytest.raises(InputError, match="frame rate must be above 0"):
        write_video(tmp_path / "clip.mp4", numbered_frames(2), 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["2024-05-01T12:30:00.mp4", "12:30.mkv", "frame%d.avi", "pipe:1.webm", "a?b#c.ts"])
def test_a_name_is_a_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for given in (name, f"new/{name}"):
        write_video(given, numbered_frames(6), 10)
        assert shown(VideoReader(given)) == {number: number for number in range(6)}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "new"])


@pytest.mark.slow
def test_the_same_frames_become_the_same_bytes_every_time(tmp_path: Path) -> None:
    """x264 with AVX-512 fails this about once in fifty files."""
    frames = list(moving_scene(96, 64, 12, seed=0))
    found = set()
    for _ in range(300):
        write_video(tmp_path / "clip.mp4", frames, fps=5)
        found.add((tmp_path / "clip.mp4").read_bytes())
    assert len(found) == 1
