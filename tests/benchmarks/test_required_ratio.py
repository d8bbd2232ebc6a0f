"""The ratio that a loss needs: its search, what it measures, how it goes on, and who reads it."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autogaze_mllm import InputError
from autogaze_mllm.training.reconstruction.models import load_models
from autogaze_mllm.training.reconstruction.scores import score_clip
from autogaze_mllm.training.reconstruction.settings import Setting
from autogaze_mllm.video.synthetic import moving_scene
from autogaze_mllm.video.writer import write_video
from benchmarks import latency, required_ratio
from benchmarks.operating_points import measured_points
from benchmarks.required_ratio import Footage, Trial, cut, search, trial

CPU = torch.device("cpu")


def run(monkeypatch: pytest.MonkeyPatch, out: Path, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["required_ratio.py", "--device", "cpu", "--out", str(out), *arguments])
    return required_ratio.main()


@pytest.mark.parametrize("first", [0.01, 0.2, 3.0])
def test_the_search_finds_the_ratio_of_a_known_curve(first: float) -> None:
    """loss = 0.1 * strength, ratio = 0.02 / loss."""

    def measure(strength: float) -> Trial:
        return Trial(strength, 0.02 / (0.1 * strength), 0.1 * strength)

    found, trials = search(measure, 0.05, first)
    assert found.ratio == pytest.approx(0.4, rel=0.03) and len(trials) <= required_ratio.TRIALS


def test_the_search_says_where_a_loss_is_beyond_reach() -> None:
    """The floor of one patch a frame is better than what is asked for; a selector never gets as good."""
    floor, _ = search(lambda strength: Trial(strength, 1 / 265, 0.01), 0.2, 0.2)
    assert (floor.ratio, floor.loss) == (1 / 265, 0.01)
    poor, _ = search(lambda strength: Trial(strength, 1.0, 0.9), 0.2, 0.2)
    assert (poor.ratio, poor.loss) == (1.0, 0.9)


def test_a_trial_measures_what_the_evaluation_measures() -> None:
    """By masks and a whole picture there, patch by patch here."""
    (one,) = load_models(["pixel-diff"], "mosaic", CPU).contenders
    frames = np.stack(list(moving_scene(224, 224, 3)))
    clip = torch.from_numpy(frames).permute(0, 3, 1, 2)
    score = score_clip(clip, one.selector, Setting.parse("task_0.30"), one.task, CPU)
    found = trial(clip[None], one, 0.3, CPU)
    assert found.ratio == pytest.approx(score.mean("ratio")) and found.loss == pytest.approx(
        score.mean("loss"), rel=1e-4
    )


def test_tiles_are_parts_of_the_frames(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, moving_scene(640, 448, 12), fps=12)
    file = Footage("clip.mp4", path)
    frame = next(file.frames(6, 672, 1.0))
    assert frame.shape == (448, 672, 3), "two rows of three tiles"
    whole, two = cut(file, 6, 672, 1.0, 9), cut(file, 6, 672, 1.0, 2)
    assert whole.shape == (6, 6, 3, 224, 224) and two.shape == (2, 6, 3, 224, 224)
    assert np.array_equal(whole[4, 0].permute(1, 2, 0).numpy(), frame[224:, 224:448])
    assert all(any(torch.equal(part, other) for other in whole) for part in two)
    assert cut(file, 30, 448, 0.5, 1).shape[1] == 6, "no more frames than the file has"
    assert cut(Footage("generated 0", None), 10, 224, 0.5, 1).shape[1] == 5


@pytest.mark.parametrize(
    ("width", "height", "sides"),
    [(640, 448, {224: (1, 1), 448: (1, 2)}), (240, 680, {224: (1, 1), 448: (2, 1), 672: (3, 1)})],
)
def test_a_file_is_shown_in_the_whole_tiles_that_it_has(
    tmp_path: Path, width: int, height: int, sides: dict[int, tuple[int, int]]
) -> None:
    """Its longer edge has the pixels that are asked for, its shape is kept as far as whole tiles go; never enlarged."""
    write_video(tmp_path / "clip.mp4", moving_scene(width, height, 2), fps=12)
    file, scene = Footage("clip.mp4", tmp_path / "clip.mp4"), Footage("generated 0", None)
    assert {side: file.tiling(side) for side in (224, 448, 672, 896) if file.has_pixels_for(side)} == sides
    assert scene.tiling(3584) == (16, 16) and scene.has_pixels_for(3584)


def test_a_run_goes_on_and_latency_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "required.json"
    options = ("--gaze", "pixel-diff,greedy", "--seconds", "0.1", "--tiles", "1", "--loss", "0.2,0.3")
    assert run(monkeypatch, out, *options, "--points", "30x224") == 0
    first = json.loads(out.read_text())
    assert [(row["selector"], row["loss"]) for row in first["rows"]] == [
        (name, loss) for name in ("pixel-diff", "greedy") for loss in (0.2, 0.3)
    ]
    for row in first["rows"]:
        assert 1 / 265 <= row["ratio"] <= 1 and math.isfinite(row["reached"]) and row["frames"] == 3
    stored = [{**row, "seconds": 123.0} for row in first["rows"]]
    out.write_text(json.dumps({**first, "rows": stored}))
    assert run(monkeypatch, out, *options, "--points", "10x224,30x224") == 0
    rows = json.loads(out.read_text())["rows"]
    assert rows[:4] == stored and [row["fps"] for row in rows[4:]] == [10] * 4, "only what is missing is measured"
    with out.with_suffix(".csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 8 and lines[0]["real"] == ""
    assert Image.open(out.with_suffix(".png")).size[0] > 1000
    points = measured_points(out, "greedy")
    ratios = {(r["fps"], r["side"]): r["ratio"] for r in rows if r["selector"] == "greedy" and r["loss"] == 0.2}
    assert {(fps, side): ratio for fps, side, ratio in points} == ratios
    with pytest.raises(InputError, match=r"no ratios of 'bundled'; it holds those of pixel-diff, greedy"):
        measured_points(out, "bundled")
    assert run(monkeypatch, out, *options, "--tiles", "3") == 2
    assert "begun with other settings" in capsys.readouterr().err
    assert run(monkeypatch, out, *options, "--gaze", "random", "--loss", "0.3", "--points", "30x224") == 0
    added = json.loads(out.read_text())
    assert added["rows"][:8] == rows and added["rows"][8]["selector"] == "random", "selectors may be added"
    assert added["settings"]["models"].keys() == {"pixel-diff", "greedy", "random"}
    timed = tmp_path / "latency.json"
    arguments = ["--size", "tiny", "--device", "cpu", "--repeats", "1", "--limit", "0.0001", "--batch", "16"]
    arguments += ["--required", str(out), "--selector", "greedy", "--points", "1", "--out", str(timed)]
    monkeypatch.setattr(sys, "argv", ["latency.py", *arguments])
    latency.main()
    (row,) = json.loads(timed.read_text())["rows"]
    assert (row["fps"], row["side"], row["ratio"]) == points[0]


def test_a_name_stands_for_one_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was measured of a file is not taken for another one of its name."""
    options = ("--gaze", "greedy", "--generated", "0", "--points", "1x224", "--seconds", "0.1")
    for seed, code in ((0, 0), (1, 2)):
        write_video(tmp_path / "clip.mp4", moving_scene(224, 224, 2, seed=seed), fps=10)
        assert run(monkeypatch, tmp_path / "out.json", str(tmp_path / "clip.mp4"), *options) == code
    assert "videos.clip.mp4" in capsys.readouterr().err


def test_bad_input_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, said in (
        (("--points", "30x200"), "sides are multiples of 224"),
        (("--points", "7x224"), "frame rates divide 30"),
        (("--points", "fast"), "expected FPSxSIDE"),
        (("--loss", "little"), "expected numbers"),
        (("--loss", "0"), "must be above 0"),
        (("--generated", "0"), "nothing to measure"),
    ):
        assert run(monkeypatch, tmp_path / "out.json", *options) == 2
        assert said in capsys.readouterr().err
