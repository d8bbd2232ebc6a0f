"""gaze_video on tiles, chunks and thumbnails, and what can be done with the result."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

import autogaze_mllm as am
from autogaze_mllm.common.compute.workers import Prefetch
from autogaze_mllm.common.errors import InputError
from autogaze_mllm.common.pixels import PixelFormat, resize_frames
from autogaze_mllm.gaze.pipeline import shared_batch
from autogaze_mllm.video.reader import VideoReader
from autogaze_mllm.video.writer import write_video

from ..helpers.tiny_models import tiny_gaze

GRID = am.PatchGrid.of("32+64", 16)
HD = am.VideoSettings(frames=20, chunk_frames=8, max_tiles=6, thumbnails=5, ratio=0.4, loss=0)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """36 frames of 240x120 with a different picture everywhere: 2:1, so 6 tiles are 2 x 1 ... or 4 x 2 with 8."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("wide") / "wide.mkv"
    base = rng.integers(0, 255, (15, 30, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    write_video(path, (np.roll(base, 3 * n, axis=1) for n in range(36)), fps=12)
    return path


def plain(path, settings, selector, grid=GRID):
    """The same, written down plainly: all frames at once, every clip on its own."""
    reader = VideoReader(path)
    indices = [int(n) for n in np.round(np.linspace(0, len(reader) - 1, settings.frames))]
    chunk = next(iter(reader.read(indices, chunk=len(indices))))
    columns, rows = (2, 1)
    side = grid.scales[-1][0]
    big = resize_frames(chunk.frames, rows * side, columns * side, torch.device("cpu"))
    small = resize_frames(chunk.frames, side, side, torch.device("cpu"))
    clips, pictures = [], []
    for start in range(0, len(indices), settings.chunk_frames):
        part = big[start : start + settings.chunk_frames]
        for row in range(rows):
            for column in range(columns):
                clips.append(part[:, :, row * side : (row + 1) * side, column * side : (column + 1) * side])
                pictures += range(start, start + len(part))
    parts = [(clip, settings.ratio_for(len(clip)), selector) for clip in clips]
    step = len(indices) // settings.thumbnails
    for number in range(settings.thumbnails):
        parts.append((small[number * step][None], 1.0, am.AllSelector()))
        pictures.append(len(indices) + number)
    made = []
    for clip, ratio, chooser in parts:
        frames = clip[None].float() / 255
        info = chooser.select(frames, grid, ratio, None)
        made.append(am.GazedVideo.from_info(PixelFormat().normalize(frames), info, grid))
    return made, pictures


@pytest.mark.parametrize("kind", ["pixel-diff", "autogaze"])
@pytest.mark.parametrize("clip_batch", [1, 3, None])
def test_pipeline_equals_the_plain_computation(wide, kind, clip_batch):
    selector = tiny_gaze() if kind == "autogaze" else am.PixelDiffSelector()
    gazed = am.gaze_video(wide, selector, HD, grid=GRID, clip_batch=clip_batch)
    expected, pictures = plain(wide, HD, selector)
    assert gazed.tiles == (2, 1) and gazed.thumbnails == 5
    assert gazed.clip_frames.tolist() == [8, 8, 8, 8, 4, 4] + [1] * 5  # the last chunk has four frames
    assert torch.equal(gazed.positions, torch.cat([part.positions for part in expected]))
    assert torch.equal(gazed.frame_counts, torch.cat([part.frame_counts for part in expected]))
    assert torch.allclose(gazed.patches, torch.cat([part.patches for part in expected]), atol=1e-6)
    assert gazed.pictures.tolist() == pictures
    assert gazed.stats["frames"] == 20 and gazed.stats["patches"] == len(gazed)


def test_tokens_go_picture_by_picture_thumbnails_last(wide):
    gazed = am.gaze_video(wide, "pixel-diff", HD, grid=GRID)
    frame = torch.repeat_interleave(torch.arange(len(gazed.frame_counts)), gazed.frame_counts)
    ordered = gazed.pictures[frame[gazed.token_order()]]
    assert torch.equal(ordered, ordered.sort().values)
    assert gazed.picture_counts() == torch.bincount(ordered).tolist()
    assert gazed.picture_counts()[-5:] == [GRID.size] * 5
    # Within a picture: tiles in order, in each the order of choice.
    first = gazed.token_order()[: gazed.picture_counts()[0]]
    assert torch.equal(first, first.sort().values) and int(first[0]) == 0


def test_times_belong_to_their_frames(wide):
    gazed = am.gaze_video(wide, "pixel-diff", HD, grid=GRID)
    reader = VideoReader(wide)
    sampled = [int(n) for n in np.round(np.linspace(0, 35, 20))]
    times = torch.tensor([reader.seconds[n] for n in sampled], dtype=torch.float32)
    frames = gazed.pictures < 20
    assert torch.allclose(gazed.timestamps[frames], times[gazed.pictures[frames]], atol=1e-4)
    assert torch.allclose(gazed.timestamps[~frames], times[::4], atol=1e-4)


def test_slicing_by_time(wide):
    gazed = am.gaze_video(wide, "pixel-diff", HD, grid=GRID)
    part = gazed.between(0.5, 1.5)
    assert bool(((part.timestamps >= 0.5) & (part.timestamps < 1.5)).all())
    assert len(part) == int(gazed.frame_counts[(gazed.timestamps >= 0.5) & (gazed.timestamps < 1.5)].sum())
    assert part.thumbnails == int(((gazed.timestamps[-5:] >= 0.5) & (gazed.timestamps[-5:] < 1.5)).sum())
    again = am.GazedVideo.concatenate([gazed.between(-1, 0.5), part, gazed.between(1.5, 99)])
    assert len(again) == len(gazed)
    with pytest.raises(am.InputError, match=r"no frame between 50 and 60 seconds"):
        gazed.between(50, 60)


def test_saved_video_comes_back_the_same(wide, tmp_path):
    gazed = am.gaze_video(wide, "pixel-diff", HD, grid=GRID)
    gazed.save(tmp_path / "deep" / "video.safetensors")
    again = am.GazedVideo.load(tmp_path / "deep" / "video.safetensors")
    for name in ("patches", "positions", "frame_counts", "clip_frames", "timestamps", "pictures"):
        assert torch.equal(getattr(gazed, name), getattr(again, name))
    assert (again.grid, again.tiles, again.thumbnails) == (gazed.grid, gazed.tiles, gazed.thumbnails)
    assert am.VideoSettings.from_dict(again.settings) == HD and again.stats["frames"] == 20
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "deep" / "video.safetensors").read_bytes()[:1000])
    for bad in ("cut.safetensors", "none.safetensors"):
        with pytest.raises(am.InputError, match="not a saved gazed video"):
            am.GazedVideo.load(tmp_path / bad)


def test_frame_local_indices_are_caught():
    """Others have passed indices that start anew in every frame: they lie outside their frames."""
    local = {
        "gazing_pos": torch.tensor([[3, 5, 3, 5]]),
        "num_gazing_each_frame": torch.tensor([2, 2]),
        "if_padded_gazing": torch.zeros(1, 4, dtype=torch.bool),
    }
    with pytest.raises(am.InputError, match=r"position 3 of row 0 lies outside frame 1.*count on over the clip"):
        am.GazedVideo.from_info(torch.zeros(1, 2, 3, 64, 64), local, GRID)


@pytest.mark.parametrize("frames", [1, 7, 17])
def test_any_number_of_frames_works(clip, frames):
    gazed = am.gaze_video(clip, "pixel-diff", am.VideoSettings(frames=frames, max_tiles=4), grid=GRID)
    assert gazed.stats["frames"] == frames
    assert int(gazed.clip_frames.max()) == min(frames, 16)


def test_the_reader_thread_ends_when_work_stops_early(wide):
    before = threading.active_count()

    class Stop(Exception):
        pass

    def listener(_):
        raise Stop

    with pytest.raises(Stop):
        am.gaze_video(wide, "pixel-diff", HD, grid=GRID, listener=listener)
    assert threading.active_count() == before


def test_errors_of_the_reader_thread_arrive():
    def broken():
        yield 1
        raise am.InputError("the disk is gone")

    with pytest.raises(am.InputError, match="disk is gone"), Prefetch(broken()) as items:
        assert list(items) == [1]


@pytest.mark.parametrize(
    ("clips", "most", "workers", "batch"),
    [(36, 16, 1, 12), (36, 16, 2, 9), (9, 16, 2, 5), (1, 16, 4, 1), (8, 0, 2, 1), (144, 2, 2, 2)],
)
def test_every_core_gets_as_many_batches_as_the_others(clips, most, workers, batch):
    assert shared_batch(clips, most, workers) == batch
    batches = -(-clips // batch)
    assert batch <= max(most, 1) and (batches % workers == 0 or batch == 1)


@pytest.mark.parametrize("clip_batch", [0, -1])
def test_clips_that_are_gazed_together_are_one_at_least(wide, clip_batch):
    with pytest.raises(InputError, match=f"clip_batch must be at least 1, got {clip_batch}"):
        am.gaze_video(wide, "all", HD, clip_batch=clip_batch)


@pytest.mark.parametrize(("threads", "together"), [(1, 2), (2, 1)])
def test_tiles_are_gazed_together_as_far_as_there_are_cores(wide, monkeypatch, threads, together):
    sizes, select, before = [], am.PixelDiffSelector.select, torch.get_num_threads()

    def noting(self, frames, *arguments):
        sizes.append(len(frames))
        return select(self, frames, *arguments)

    monkeypatch.setattr(am.PixelDiffSelector, "select", noting)
    torch.set_num_threads(threads)
    try:
        am.gaze_video(wide, "pixel-diff", HD, grid=GRID)
    finally:
        torch.set_num_threads(before)
    assert sizes == [together] * (3 * 2 // together)  # three chunks of two tiles
