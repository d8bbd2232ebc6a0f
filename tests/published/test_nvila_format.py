"""Gazed videos as the processor of the published NVILA-HD-Video model gives them, and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import autogaze_mllm as am
from autogaze_mllm.common.pixels import PixelFormat, resize_frames
from autogaze_mllm.gaze.pipeline import cut_tiles
from autogaze_mllm.published.nvila_format import from_gazing_info, to_gazing_info
from autogaze_mllm.video.reader import VideoReader
from autogaze_mllm.video.writer import write_video

from ..helpers.tiny_models import tiny_gaze

GRID = am.PatchGrid.of("32+64", 16)
HD = am.VideoSettings(frames=20, chunk_frames=8, max_tiles=6, thumbnails=5, ratio=0.4, loss=0)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """36 frames of 240x120 with a different picture everywhere: 2:1, so that 6 tiles are 2 x 1."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("wide") / "wide.mkv"
    base = rng.integers(0, 255, (15, 30, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    write_video(path, (np.roll(base, 3 * n, axis=1) for n in range(36)), fps=12)
    return path


@pytest.mark.parametrize("frames", [16, 20])
def test_interchange_form_and_back_is_exact(wide, frames):
    gazed = am.gaze_video(wide, tiny_gaze(), HD.changed(frames=frames), grid=GRID)
    info = to_gazing_info([gazed, gazed])
    assert sorted(info) == sorted(
        f"{name}_{kind}"
        for name in ("gazing_pos", "num_gazing_each_frame", "if_padded_gazing")
        for kind in ("tiles", "thumbnails")
    )
    chunks = -(-frames // 8)
    assert info["gazing_pos_tiles"][0].shape[0] == chunks * 2 and info["gazing_pos_tiles"][0].dtype == torch.int64
    assert info["gazing_pos_thumbnails"][1].shape == (5, GRID.size)
    pixels, small = processor_pixels(wide, frames)
    back = from_gazing_info(info, [pixels, pixels], [small, small], [2, 2], GRID)
    for video in back:
        for name in ("positions", "frame_counts", "clip_frames", "pictures"):
            assert torch.equal(getattr(video, name), getattr(gazed, name)), name
        assert torch.allclose(video.patches, gazed.patches, atol=1e-5)
        assert video.thumbnails == 5


def processor_pixels(path, frames):
    """What the published processor puts beside gazing_info: tiles (chunks * 2, 8, ...), thumbnails (5, 1, ...)."""
    reader = VideoReader(path)
    indices = [int(n) for n in np.round(np.linspace(0, len(reader) - 1, frames))]
    chunk = next(iter(reader.read(indices, chunk=frames)))
    big = resize_frames(chunk.frames, 64, 128, torch.device("cpu"))
    small = resize_frames(chunk.frames, 64, 64, torch.device("cpu"))
    if frames % 8:  # it knows whole chunks only
        big = torch.cat([big, big[-1:].expand(8 - frames % 8, -1, -1, -1)])
    clips = torch.cat([cut_tiles(big[n : n + 8], (2, 1), 0, 2) for n in range(0, len(big), 8)])

    def normal(x):
        return PixelFormat().normalize(x.float() / 255)

    return normal(clips), normal(small[:: frames // 5][:5])[:, None]
