"""benchmarks/gaze_speed.py, on few clips."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import autogaze_mllm as am
from autogaze_mllm.common.errors import InputError
from autogaze_mllm.gaze.selector_registry import load_selector
from autogaze_mllm.video.synthetic import moving_scene
from autogaze_mllm.video.writer import write_video
from benchmarks import gaze_speed


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for seed in range(2):
        write_video(folder / f"{seed}.mp4", moving_scene(320, 240, 20, seed=seed), fps=10)
    write_video(folder / "short.mp4", moving_scene(320, 240, 5), fps=10)
    return folder


def test_bf16_is_measured_against_fp32(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "speed.json"
    small = ["--batches", "2", "--ratios", "0.1", "--dtypes", "bf16", "--repeats", "1", "--device", "cpu"]
    given = ["--gaze", "bundled", "--videos", str(videos), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["gaze_speed.py", *small, *given])
    gaze_speed.main()
    (row,) = json.loads(out.read_text())["rows"]
    assert row["patches_per_clip"] == 16 * 26 and row["seconds_per_clip"] > 0
    assert 0.9 < row["ids_as_in_fp32"] < 1, "rounding changes a few"
    assert row["mosaic_error_over_fp32"] == pytest.approx(1, abs=0.03) and row["mosaic_error_over_fp32"] != 1
    assert 0 < row["denoise_clean_seconds_per_clip"] < row["seconds_per_clip"]
    assert f"mosaic error x {row['mosaic_error_over_fp32']:.4f}" in capsys.readouterr().out


@torch.no_grad()
def test_the_error_tells_selections_apart() -> None:
    model = am.AutoGaze.from_pretrained("bundled").eval()
    video = gaze_speed.read(model, 1, None)
    gazed = gaze_speed.mosaic_error(model, video, model.generate(video, 0.1))
    drawn = load_selector("random").select(torch.rand(1, 16, 3, 224, 224), model.grid, 0.1, None)
    assert gazed < 0.8 * gaze_speed.mosaic_error(model, video, drawn)


def test_clips_come_from_videos_or_are_made(videos: Path) -> None:
    model = am.AutoGaze()
    clips = gaze_speed.read(model, 3, str(videos))
    assert clips.shape == (3, 16, 3, 224, 224)
    assert torch.equal(clips[2], clips[0]) and not torch.equal(clips[1], clips[0]), "the short one is left out"
    made = gaze_speed.read(model, 2, None)
    assert made.shape == (2, 16, 3, 224, 224) and not torch.equal(made[0], made[1])
    (videos / "empty").mkdir()
    with pytest.raises(InputError, match="no videos of 16 frames"):
        gaze_speed.read(model, 1, str(videos / "empty"))
