"""The chart of kept patches: what it draws is what was kept."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

import autogaze_mllm as am
from autogaze_mllm.app.chart import FrameCounts, chart_svg, frame_counts

SVG = "{http://www.w3.org/2000/svg}"
GRID = am.PatchGrid.of("32+64", 16)


@pytest.fixture(scope="module")
def gazed(clip):
    settings = am.VideoSettings(frames=10, chunk_frames=4, max_tiles=4, ratio=0.4, thumbnails=3)
    return am.gaze_video(clip, "random", settings, grid=GRID)


def test_counts_are_those_of_every_frame_and_scale_without_the_thumbnails(gazed):
    """Against a loop over all patches."""
    assert gazed.tiles != (1, 1) and gazed.thumbnails == 3
    expected = [[0, 0] for _ in range(10)]
    patch = 0
    for picture, count in zip(gazed.pictures.tolist(), gazed.frame_counts.tolist(), strict=True):
        for position in gazed.positions[patch : patch + count].tolist():
            if picture < 10:
                expected[picture][position >= GRID.offsets[1]] += 1
        patch += count
    found = frame_counts(gazed)
    assert found.kept == expected and list(found.names) == ["32", "64"]
    assert found.seconds == sorted(set(found.seconds)) and len(found.seconds) == 10


def test_frames_without_a_patch_and_videos_without_thumbnails(gazed):
    whole = replace(gazed.between(0, 0.6), thumbnails=0)
    assert sum(map(sum, frame_counts(whole).kept)) == len(whole)


def test_bars_are_as_high_as_what_was_kept():
    counts = FrameCounts([[1, 2], [0, 0], [4, 8]], [0.0, 0.5, 1.0], ["32", "<64>"])
    root = ElementTree.fromstring(chart_svg(counts, "Kept & drawn"))
    frames = [group for group in root.iter(f"{SVG}g") if group.get("class") == "frame"]
    assert [group.get("data-frame") for group in frames] == ["0", "1", "2"]
    heights = [[float(bar.get("height", 0)) for bar in group.findall(f"{SVG}rect")[1:]] for group in frames]
    assert heights[1] == [] and heights[2][0] == pytest.approx(4 * heights[0][0], rel=0.01)
    assert heights[2][1] == pytest.approx(2 * heights[2][0], rel=0.01)
    assert frames[2].find(f"{SVG}title").text == "frame 2, 1.00 s: 12 patches (4 at 32 px, 8 at <64> px)"
    assert root.find(f"{SVG}title").text == "Kept & drawn"


@pytest.mark.parametrize(
    ("most", "highest"), [(0, "1"), (1, "1"), (7, "8"), (12, "15"), (265, "300"), (11925, "15000")]
)
def test_the_axis_ends_at_a_round_number_that_holds_every_bar(most, highest):
    root = ElementTree.fromstring(chart_svg(FrameCounts([[most]], [0.0], ["224"])))
    numbers = [text.text for text in root.iter(f"{SVG}text") if text.get("text-anchor") == "end"]
    assert numbers[-1] == highest
