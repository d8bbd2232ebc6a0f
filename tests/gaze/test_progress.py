"""How far a video is gazed."""

from __future__ import annotations

from pathlib import Path

from autogaze_mllm.gaze.grid import PatchGrid
from autogaze_mllm.gaze.pipeline import gaze_variants
from autogaze_mllm.gaze.selectors.baselines import AllSelector, RandomSelector
from autogaze_mllm.gaze.settings import VideoSettings
from autogaze_mllm.video.synthetic import moving_scene
from autogaze_mllm.video.writer import write_video


def test_how_far_it_is_counts_tiles_and_variants(tmp_path: Path, capsys) -> None:
    """Six tiles of eight frames are one chunk, gazed twice: it is told of long before all of that is done."""
    path = tmp_path / "wide.mp4"
    write_video(path, moving_scene(192, 128, 8), fps=8)
    told: list[tuple[int, int]] = []
    settings = VideoSettings(frames=8, max_tiles=6)
    variants = [(RandomSelector(), settings), (AllSelector(), settings)]
    grid = PatchGrid.of("32+64", 16)
    made = gaze_variants(path, variants, grid=grid, clip_batch=1, progress=True, advance=lambda *far: told.append(far))
    assert [len(one.clip_frames) for one in made] == [6, 6]
    assert told == [(frames, 8) for frames in range(1, 9)]
    assert "8/8" in capsys.readouterr().err
