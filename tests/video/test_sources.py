"""A video may be anything that a user holds, and it is the same video in every form."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import autogaze_mllm as am
from autogaze_mllm.gaze.cache import VideoCache
from autogaze_mllm.mllm.tiny import tiny_model
from autogaze_mllm.video.reader import VideoReader
from autogaze_mllm.video.sources import Video, as_video, videos_in

from ..helpers.files.video_files import encode, numbered_frame, numbered_frames, read_number

SETTINGS = am.VideoSettings(frames=6)
FPS = 8
COUNT = 24


@dataclass
class FrameBatch:
    """As torchcodec gives what it decoded: (T, 3, H, W), and when each is shown."""

    data: torch.Tensor
    pts_seconds: torch.Tensor
    duration_seconds: torch.Tensor


@dataclass
class NDArray:
    """As decord gives what it decoded."""

    values: np.ndarray
    shape: tuple[int, ...]

    def asnumpy(self) -> np.ndarray:
        return self.values


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 numbered frames, 8 a second."""
    return encode(tmp_path_factory.mktemp("sources") / "clip.mp4", numbered_frames(COUNT), fps=FPS)


@pytest.fixture(scope="module")
def frames(path: Path) -> np.ndarray:
    return np.concatenate([chunk.frames for chunk in VideoReader(path).read()])


def batch(frames: np.ndarray) -> FrameBatch:
    times = torch.arange(len(frames)) / FPS
    return FrameBatch(torch.from_numpy(frames).permute(0, 3, 1, 2), times, torch.full_like(times, 1 / FPS))


FILES: dict[str, Callable[[Path], Any]] = {
    "text": str,
    "path": Path,
    "bytes": Path.read_bytes,
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "bytes in memory": lambda path: io.BytesIO(path.read_bytes()),
    "open file": lambda path: path.open("rb"),
    "without a buffer": lambda path: path.open("rb", buffering=0),
}
FRAMES: dict[str, Callable[[np.ndarray], Any]] = {
    "pictures": lambda frames: [Image.fromarray(frame) for frame in frames],
    "arrays": list,
    "tuple": lambda frames: tuple(torch.from_numpy(frame) for frame in frames),
    "array": lambda frames: frames,
    "channels first": lambda frames: np.ascontiguousarray(frames.transpose(0, 3, 1, 2)),
    "mirrored view": lambda frames: np.ascontiguousarray(frames[..., ::-1])[..., ::-1],
    "read only": lambda frames: np.frombuffer(frames.tobytes(), np.uint8).reshape(frames.shape),
    "tensor": torch.from_numpy,
    "tensor, channels first": lambda frames: torch.from_numpy(frames).permute(0, 3, 1, 2),
    "float": lambda frames: torch.from_numpy(frames).float() / 255,
    "double": lambda frames: frames / 255,
    "half": lambda frames: (torch.from_numpy(frames).float() / 255).half(),
    "learnt": lambda frames: (torch.from_numpy(frames).permute(0, 3, 1, 2) / 255).requires_grad_(),
    "decord": lambda frames: NDArray(frames, frames.shape),
}


@pytest.mark.parametrize("form", FILES)
def test_a_file_in_every_form(form: str, path: Path) -> None:
    expected = am.gaze_video(path, "pixel-diff", SETTINGS)
    source = FILES[form](path)
    for given in (source, am.Video(source)):
        gazed = am.gaze_video(given, "pixel-diff", SETTINGS)
        assert torch.equal(gazed.patches, expected.patches)
        assert torch.equal(gazed.timestamps, expected.timestamps)
    assert VideoCache.key(source) == VideoCache.key(path)
    assert len(am.gaze_video(source, "pixel-diff", SETTINGS).stats["source"]) < 300


@pytest.mark.parametrize("form", FRAMES)
def test_frames_in_every_form(form: str, path: Path, frames: np.ndarray) -> None:
    expected = am.gaze_video(path, "pixel-diff", SETTINGS)
    source = FRAMES[form](frames)
    gazed = am.gaze_video(am.Video(source, fps=FPS), "pixel-diff", SETTINGS)
    assert torch.equal(gazed.patches, expected.patches)
    assert torch.equal(gazed.timestamps, expected.timestamps)
    key = VideoCache.key(am.Video(source, fps=FPS))
    assert key == VideoCache.key(am.Video(frames, fps=FPS))
    assert key == VideoCache.key(am.Video(source, times=np.arange(COUNT) / FPS))
    assert key != VideoCache.key(am.Video(source, fps=FPS + 1))


def test_a_batch_of_torchcodec_brings_its_times(frames: np.ndarray) -> None:
    given = batch(frames)
    given.pts_seconds = given.pts_seconds + 60
    gazed = am.gaze_video(given, "pixel-diff", SETTINGS)
    assert gazed.timestamps.tolist() == pytest.approx([60 + n / FPS for n in np.round(np.linspace(0, COUNT - 1, 6))])
    part = am.gaze_video(am.Video(given, start=61, end=62), "pixel-diff", SETTINGS)
    assert part.timestamps.min() == 61 and part.timestamps.max() < 62
    assert torch.equal(
        am.gaze_video(batch(frames), "all", SETTINGS).patches, am.gaze_video(frames, "all", SETTINGS).patches
    )


def test_single_frames_of_torchcodec_bring_their_times(frames: np.ndarray) -> None:
    whole = batch(frames)
    parts = zip(whole.data, whole.pts_seconds, whole.duration_seconds, strict=True)
    single = [FrameBatch(*part) for part in parts]
    gazed = am.gaze_video(am.Video(single, start=1, fps=2), "pixel-diff", SETTINGS)
    assert gazed.timestamps.tolist() == [1, 1.5, 2, 2.5]
    assert VideoCache.key(single) == VideoCache.key(whole) == VideoCache.key(am.Video(frames, fps=FPS))
    with pytest.raises(am.InputError, match="a single picture is no video"):
        am.gaze_video(single[0])


def test_frames_without_times_are_said_to_have_none(frames: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        as_video(frames).sampled(4)
    assert "no times and is taken to have 25 a second" in caplog.text
    caplog.clear()
    as_video(Video(frames, fps=3)).sampled(4)
    as_video(frames[:1]).sampled(4)
    as_video(batch(frames)).sampled(4)
    assert not caplog.text


def test_one_open_file_serves_several_readers_and_its_owner(path: Path) -> None:
    with path.open("rb") as file:
        file.seek(100)
        first, second = VideoReader(file), VideoReader(file)
        numbers = [
            read_number(part.frames[0])
            for parts in zip(first.read(chunk=1), second.read(chunk=1), strict=True)
            for part in parts
        ]
        assert numbers == [number for number in range(COUNT) for _ in range(2)]
        assert file.tell() == 100


def test_one_open_file_serves_several_threads(path: Path) -> None:
    def numbers(_: int) -> list[int]:
        return [read_number(part.frames[0]) for part in VideoReader(file).read(chunk=1)]

    with path.open("rb") as file, ThreadPoolExecutor(4) as pool:
        assert list(pool.map(numbers, range(16))) == [list(range(COUNT))] * 16


# -- parts, and sampling by time ---------------------------------------------------------------------------------------


def looked_at(source: Any, frames: int = 100, fps: float | None = None, **part: Any) -> list[int]:
    """What the frames that are looked at show."""
    reader, numbers = Video(source, **part).sampled(frames, fps)
    return [read_number(frame) for chunk in reader.read(numbers) for frame in chunk.frames]


PARTS = [
    ({}, list(range(24))),
    ({"start": 1}, list(range(8, 24))),
    ({"end": 1}, list(range(8))),
    ({"start": 1, "end": 2}, list(range(8, 16))),
    ({"start": 2.9, "end": 100}, [23]),  # what is on the screen: the last frame lasts until 3.0
    ({"start": 1.01, "end": 1.02}, [8]),
    ({"start": 1.01, "end": 1.26}, [9, 10]),
    ({"start": 0, "end": 0.001}, [0]),
    ({"fps": 1}, [0, 8, 16]),
    ({"fps": 2}, [0, 4, 8, 12, 16, 20]),
    ({"fps": 8}, list(range(24))),
    ({"fps": 1e9}, list(range(24))),
    ({"fps": 3}, [0, 2, 5, 8, 10, 13, 16, 18, 21]),  # 0, 1/3, 2/3, ... seconds
    ({"fps": 1e-9}, [0]),
    ({"start": 1.1, "end": 2.2, "fps": 2}, [9, 13, 17]),
]


@pytest.mark.parametrize(("part", "expected"), PARTS)
def test_parts(part: dict[str, float], expected: list[int], path: Path, frames: np.ndarray) -> None:
    assert looked_at(path, **part) == expected
    times = np.arange(COUNT) / FPS
    assert looked_at(frames, times=times, **part) == expected
    more = dict(part)
    fps = more.pop("fps", None)
    assert looked_at(frames, fps=fps, times=times, **more) == expected  # as VideoSettings.fps
    assert looked_at(path, fps=fps, **more) == expected


def test_a_part_is_spread_evenly(path: Path) -> None:
    assert looked_at(path, 3, start=1, end=2) == [8, 12, 15]
    assert looked_at(path, 2, start=1) == [8, 23]


def test_times_that_are_rounded_to_milliseconds_lose_no_frame(tmp_path: Path) -> None:
    path = encode(tmp_path / "clip.mkv", numbered_frames(90), fps=30)
    assert looked_at(path, fps=30) == list(range(90))
    assert looked_at(path, fps=10) == list(range(0, 90, 3))
    assert looked_at(path, start=1, end=2) == list(range(30, 60))


def test_sampling_by_time_of_uneven_frames(tmp_path: Path) -> None:
    times = [0, 40, 50, 300, 333, 900, 1000, 1001, 1500, 4000]
    path = encode(tmp_path / "clip.mkv", numbered_frames(10), times=times)
    assert looked_at(path, fps=1) == [0, 6, 8, 9]  # at 0, 1, 2 and 3 (8 still shown), 4
    assert looked_at(path, fps=10) == [0, *range(2, 10)]


def test_settings_say_it_for_every_video(path: Path) -> None:
    gazed = am.gaze_video(path, "pixel-diff", SETTINGS.changed(fps=2))
    assert gazed.timestamps.tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    gazed = am.gaze_video(am.Video(path, fps=1), "pixel-diff", SETTINGS.changed(fps=2))
    assert gazed.timestamps.tolist() == [0, 1, 2]


def test_the_cache_knows_parts_apart(path: Path) -> None:
    videos = [am.Video(path, **part) for part, _ in PARTS]
    assert len({VideoCache.key(video) for video in videos}) == len(videos)
    assert VideoCache.key(am.Video(path, start=1, end=2)) == VideoCache.key(am.Video(path.read_bytes(), 1.0, 2.0))


def test_videos_are_equal_where_they_say_the_same(path: Path, frames: np.ndarray) -> None:
    assert am.Video(path, 1, 2) == am.Video(str(path), 1.0, 2.0) and len({am.Video(path), am.Video(path)}) == 1
    assert am.Video(path, 1) != am.Video(path) and am.Video(frames) != am.Video(frames.copy())


# -- a model takes all of them -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> am.GazedModel:
    base, processor = tiny_model("llava_onevision")
    return am.wrap(base, "pixel-diff", processor=processor, frames=6, cache=tmp_path_factory.mktemp("cache"))


def test_a_model_answers_alike(model: am.GazedModel, path: Path, frames: np.ndarray) -> None:
    def answer(video: Any, **more: Any) -> str:
        return model.ask(video, "what?", max_new_tokens=8, **more)

    expected = answer(path)
    assert not model.stats.get("from_cache")
    for source in (path.read_bytes(), io.BytesIO(path.read_bytes())):
        assert answer(source) == expected and model.stats["from_cache"] == 1
    timed = am.Video(frames, fps=FPS)
    assert answer(timed) == expected and not model.stats.get("from_cache")
    assert answer(am.Video([Image.fromarray(frame) for frame in frames], fps=FPS)) == expected
    assert model.stats["from_cache"] == 1
    assert answer(model.encode_video(timed)) == expected
    assert answer(model.gaze_video(timed)) == expected
    with model.disabled():
        assert answer(frames) == answer(path)


def test_a_model_tells_one_video_from_several(model: am.GazedModel, path: Path, frames: np.ndarray) -> None:
    pictures = [Image.fromarray(frame) for frame in frames[:4]]
    model.ask(pictures, "what?", max_new_tokens=1)
    assert model.stats["frames"] == 4
    model.ask([path, path], "what?", max_new_tokens=1)
    assert model.stats["frames"] == 12
    model.ask([am.Video(path, end=0.5), pictures, frames[:2]], "what?", max_new_tokens=1)
    assert model.stats["frames"] == 4 + 4 + 2
    inputs = model.prepare("<video>?", videos=pictures)  # one tag, one video
    assert len(inputs["media"][0]) == 1
    assert len(model.prepare("<video>?", videos=str(path))["media"][0]) == 1
    inputs = model.prepare(["<video>?", "<video> or <video>?"], videos=[pictures, [path, frames]])
    assert [len(items) for items in inputs["media"]] == [1, 2]
    assert videos_in(None) == [] and videos_in([]) == []


def test_a_part_reaches_the_answer(model: am.GazedModel, path: Path) -> None:
    model.ask(path, "what?", start=1, end=1.5, max_new_tokens=1)
    assert model.stats["frames"] == 4
    model.ask([path, am.Video(path)], "what?", fps=1, max_new_tokens=1)
    assert model.stats["frames"] == 6
    with pytest.raises(am.InputError, match="no frame from 9 seconds on"):
        model.ask(path, "what?", start=9)


def test_a_picture_needs_no_list(model: am.GazedModel, tmp_path: Path) -> None:
    Image.fromarray(numbered_frame(5)).save(tmp_path / "a.png")
    answers = {
        model.ask(None, "what?", images=images, max_new_tokens=8)
        for images in (
            tmp_path / "a.png",
            str(tmp_path / "a.png"),
            [str(tmp_path / "a.png")],
            Image.open(tmp_path / "a.png"),
            (tmp_path / "a.png").read_bytes(),
            (tmp_path / "a.png").open("rb"),
        )
    }
    assert len(answers) == 1
