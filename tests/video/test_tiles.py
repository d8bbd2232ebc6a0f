"""Tiles, thumbnails, presets and the arithmetic that follows from them."""

from __future__ import annotations

import math

import pytest

import autogaze_mllm as am
from autogaze_mllm.common.errors import InputError
from autogaze_mllm.gaze.pipeline import gaze_video
from autogaze_mllm.gaze.settings import PRESETS, VideoSettings, preset
from autogaze_mllm.video.tiles import choose_thumbnails, choose_tiles


@pytest.mark.parametrize(
    ("size", "most", "expected"),
    [
        ((3840, 2160), 48, (9, 5)),  # 16:9, the three cases that are known of the published processor
        ((3840, 2160), 16, (5, 3)),
        ((3840, 2160), 4, (2, 1)),
        ((2160, 3840), 48, (5, 9)),
        ((1000, 1000), 9, (3, 3)),
        ((400, 400), 9, (1, 1)),  # too few pixels for more: 400 * 400 is not above half of 2 x 2 tiles
        ((640, 640), 9, (2, 2)),
        ((10000, 100), 8, (8, 1)),
        ((100, 10000), 8, (1, 8)),
        ((1920, 1080), 1, (1, 1)),
    ],
)
def test_tile_grids(size, most, expected):
    assert choose_tiles(*size, most, 392) == expected


@pytest.mark.parametrize(
    ("size", "most", "expected"),
    [
        ((3840, 2160), 144, (16, 9)),
        ((1344, 1344), 144, (6, 6)),
        ((1343, 1343), 144, (5, 5)),
        ((426, 240), 144, (1, 1)),
        ((160, 96), 144, (1, 1)),
        ((1280, 720), 144, (5, 3)),
        ((10000, 100), 8, (1, 1)),
        ((448, 900), 144, (2, 4)),
    ],
)
def test_frames_are_not_enlarged_unless_they_may_be(size, most, expected):
    assert choose_tiles(*size, most, 224, enlarge=False) == expected


def test_what_is_not_enlarged_shows_in_the_gazed_video(clip):
    tiles = [gaze_video(clip, "all", VideoSettings(frames=2, max_tiles=15, enlarge=may)).tiles for may in (True, False)]
    assert tiles == [(5, 3), (1, 1)]
    with pytest.raises(InputError, match="enlarge must be true or false"):
        VideoSettings(enlarge=1)


def test_a_tile_grid_is_never_beaten():
    """Whatever the size: no allowed grid has a nearer aspect."""
    for width, height in [(333, 777), (1280, 720), (720, 1280), (4096, 1716), (17, 5000)]:
        columns, rows = choose_tiles(width, height, 12, 392)
        assert columns * rows <= 12
        distance = abs(width / height - columns / rows)
        assert all(abs(width / height - c / r) >= distance for c in range(1, 13) for r in range(1, 13) if c * r <= 12)


def test_thumbnails_are_spread_over_the_sampled_frames():
    sampled = list(range(0, 256, 2))
    assert choose_thumbnails(sampled, 64) == sampled[::2]
    assert choose_thumbnails(sampled, 50) == sampled[::2][:50]
    assert choose_thumbnails(sampled[:10], 64) == sampled[:10]
    assert choose_thumbnails(sampled, 0) == []


def test_model_card_preset_has_the_published_values():
    hd = preset("nvila-hd")
    assert (hd.frames, hd.thumbnails, hd.max_tiles, hd.predicted_loss) == (128, 64, 48, 0.6)
    assert hd.ratio == (0.2, *[0.06] * 15)
    assert preset("nvila-hd-1k").frames == 1024
    assert set(PRESETS) == {"nvila-hd", "nvila-hd-1k", "qwen-hd", "qwen-fast", "fast", "quality"}
    assert hd.changed(frames=32, thumbnails=8).frames == 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 0}, "frames must be at least 1"),
        ({"max_tiles": 0}, "max_tiles must be at least 1"),
        ({"thumbnails": -1}, "thumbnails must be at least 0"),
        ({"frames": "8"}, "frames must be a whole number, got '8'"),
        ({"frames": 8.5}, "frames must be a whole number"),
        ({"loss": "x"}, "loss must be a number"),
        ({"ratio": "half"}, "ratio must be a number"),
        ({"ratio": (0.5, 0.5)}, "ratio has 2 entries, a chunk has 16"),
        ({"ratio": (0.5, *[0.0] * 15)}, r"\(0, 1\]"),
        ({"thumbnail_ratio": 2.0}, r"\(0, 1\]"),
        ({"thumbnail_loss": -1.0}, "at least 0"),
        ({"speed": 3}, "unknown setting 'speed'"),
    ],
)
def test_impossible_combinations_are_refused_where_they_are_made(changes, message):
    with pytest.raises(am.InputError, match=message):
        am.VideoSettings().changed(**changes)
    with pytest.raises(am.InputError, match="unknown preset 'huge'; known: nvila-hd"):
        preset("huge")


def test_budgets_of_the_preset_are_the_published_ones():
    """floor(ratio * 265) per sub-tile: 53 in the first frame of a chunk, 15 in the others."""
    from autogaze_mllm.gaze.ratio import patches_per_frame

    ratio = preset("nvila-hd").ratio_for(16)
    assert patches_per_frame(ratio, 265, 1, 16)[0].tolist() == [53] + [15] * 15
    upper = 8 * (math.ceil(45 * 4 * 53 / 9) + 15 * math.ceil(45 * 4 * 15 / 9))
    assert upper + 64 * math.ceil(1038 / 9) == 51904


def test_numbers_that_would_eat_memory(clip):
    with pytest.raises(InputError, match="max_tiles must be at least 1, and at most 1024, got 100000000"):
        VideoSettings(max_tiles=10**8)
    settings = VideoSettings(frames=10**9, chunk_frames=10**9, thumbnails=10**9)
    gazed = gaze_video(clip, "pixel-diff", settings)
    assert (gazed.stats["frames"], gazed.stats["thumbnails"]) == (20, 20)
