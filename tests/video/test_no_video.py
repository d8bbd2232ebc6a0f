"""What is no video, and parts and times that cannot be, are refused in a line."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import autogaze_mllm as am

from ..helpers.files.video_files import encode, numbered_frames

SETTINGS = am.VideoSettings(frames=6)
PICTURE = np.zeros((8, 8, 3), np.uint8)
NO_VIDEO: list[tuple[Any, str]] = [
    (5, "int is no video; a video is a path, bytes"),
    (None, "NoneType is no video"),
    (object(), "object is no video"),
    ({"path": "clip.mp4"}, "dict is no video"),
    ([], "a list of nothing is no video"),
    ([1, "a"], "a list of int, str is no video"),
    ((frame for frame in [PICTURE]), "generator is no video"),
    (PICTURE, "a single picture is no video"),
    (Image.fromarray(PICTURE), "a single picture is no video"),
    (np.ndarray, "type is no video"),
    (PICTURE[None].astype(np.int64), "is of type int64, expected uint8, or float"),
    (torch.zeros(2, 3, 8, 8, dtype=torch.bool), "is of type bool"),
    (PICTURE[None] + 200.0, r"values from 200 to 200; floats must lie in \[0, 1\]"),
    (np.full((1, 8, 8, 3), np.nan), "floats must lie in"),
    (torch.full((1, 3, 8, 8), -1.0), "values from -1 to -1"),
    (np.zeros((2, 8, 8, 4), np.uint8), r"shape \(2, 8, 8, 4\), expected \(T, H, W, 3\) or \(T, 3, H, W\)"),
    (np.zeros((0, 8, 8, 3), np.uint8), "without a single frame"),
    (np.zeros((2, 0, 8, 3), np.uint8), "have the shape"),
    (np.zeros(7), "have the shape"),
    (torch.zeros(1, 3, 8, 8, device="meta"), "frame 0 of type Tensor gives no pixels"),
    (torch.zeros(1, 3, 8, 8).to_sparse(), "gives no pixels"),
    ([PICTURE, PICTURE[..., :2]], "frame 1 has the shape"),
    (b"", "there are none"),
    (b"no video", "video of 8 bytes: not a readable video"),
    (io.StringIO("text"), "was opened as text; open it with mode 'rb'"),
    ("https://example.com/clip.mp4", "is an address, not a file: download the video first"),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 numbered frames, 8 a second."""
    return encode(tmp_path_factory.mktemp("no video") / "clip.mp4", numbered_frames(24), fps=8)


@pytest.mark.parametrize(("source", "reason"), NO_VIDEO, ids=[reason[:30] for _, reason in NO_VIDEO])
def test_what_is_no_video_is_refused_in_a_line(source: Any, reason: str) -> None:
    with pytest.raises(am.InputError, match=reason) as caught:
        am.gaze_video(source, "pixel-diff", SETTINGS)
    assert "\n" not in str(caught.value)


def test_a_closed_file_and_a_pipe_are_refused(path: Path) -> None:
    import os

    closed = path.open("rb")
    closed.close()
    with pytest.raises(am.InputError, match="cannot be read from any place"):
        am.gaze_video(closed)
    ends = os.pipe()
    os.close(ends[1])
    with os.fdopen(ends[0], "rb") as pipe, pytest.raises(am.InputError, match="give its bytes"):
        am.gaze_video(pipe)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"start": -1}, "start must be at least 0, got -1"),
        ({"start": 2, "end": 1}, "end must be after start, got 2 and 1"),
        ({"end": 0}, "end must be after start"),
        ({"fps": 0}, "fps must be above 0"),
        ({"fps": float("nan")}, "fps must be a number, got nan"),
        ({"end": float("inf")}, "end must be a number, got inf"),
        ({"start": "1"}, "start must be a number, got '1'"),
        ({"start": True}, "start must be a number"),
        ({"start": 3.1}, "no frame from 3.1 seconds on; the video shows frames from 0 to 3 seconds"),
        ({"start": 5, "end": 6}, "no frame between 5 and 6 seconds"),
        ({"times": [0, 1]}, "times are for frames in memory"),
    ],
)
def test_a_part_that_cannot_be(said: dict[str, Any], reason: str, path: Path) -> None:
    with pytest.raises(am.InputError, match=reason):
        am.Video(path, **said).sampled(4)


@pytest.mark.parametrize(
    ("times", "reason"),
    [
        ([0, 1], "24 frames need as many times, got 2"),
        (np.zeros(24), "ascend"),
        (np.arange(24)[::-1], "ascend"),
        ([float("nan")] * 24, "finite"),
        ("soon", "seconds of each frame, got str"),
    ],
)
def test_times_that_cannot_be(times: Any, reason: str) -> None:
    frames = np.stack(list(numbered_frames(24)))
    with pytest.raises(am.InputError, match=reason):
        am.Video(frames, times=times).sampled(4)
