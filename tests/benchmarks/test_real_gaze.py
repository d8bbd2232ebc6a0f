"""Clips as cameras leave them, and the judge of selectors on them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from autogaze_mllm import InputError
from autogaze_mllm.training.data.camera import CODEC, CONDITIONS, NOISE, CameraClip
from autogaze_mllm.video.synthetic import moving_scene
from autogaze_mllm.video.writer import write_video
from benchmarks.real_gaze import check_models

from ..helpers.programs import run_script
from ..helpers.training_models import small_gaze


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(2):
        write_video(folder / f"{seed:03}.mp4", moving_scene(320, 240, 6, seed=seed), fps=10)
    return folder


def off(pair: tuple[torch.Tensor, torch.Tensor]) -> float:
    return float((pair[0].float() - pair[1].float()).abs().mean())


def test_conditions_get_worse_in_their_order(videos: Path) -> None:
    clip = CameraClip(videos / "000.mp4", 4, 224)
    pairs = {name: clip.under(name) for name in CONDITIONS}
    assert all(part.shape == (4, 3, 224, 224) and part.dtype == torch.uint8 for pair in pairs.values() for part in pair)
    assert off(pairs["clean"]) == 0
    for kinds in (NOISE, CODEC):
        worse = [off(pairs[name]) for name in kinds]
        assert 0 < worse[0] < worse[1] < worse[2]
        assert all(torch.equal(pairs[name][0], pairs["clean"][0]) for name in kinds)
    assert off(pairs["low-light"]) > 0.5
    assert float(pairs["low-light"][0].float().mean()) == pytest.approx(
        0.25 * float(pairs["clean"][0].float().mean()), rel=0.05
    )
    assert off((pairs["shake"][0], pairs["clean"][0])) > 1  # what is to be shown moves
    assert off(pairs["shake"]) < off(pairs["noise-low"])


def test_a_condition_is_the_same_every_time(videos: Path) -> None:
    one, other = (CameraClip(videos / "001.mp4", 3, 64) for _ in range(2))
    other.under("noise-low")
    for name in ("noise-high", "shake", "low-light"):
        assert all(torch.equal(a, b) for a, b in zip(one.under(name), other.under(name), strict=True))


def test_an_unknown_condition_is_named(videos: Path) -> None:
    with pytest.raises(InputError, match="rain"):
        CameraClip(videos / "000.mp4", 2, 64).under("rain")


def judge(*arguments: str) -> int:
    return run_script("real_gaze", *arguments, room="benchmarks")


@pytest.mark.slow
def test_the_judge_counts_and_goes_on(videos: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    common = (
        str(videos),
        "--settings",
        "task_0.40,ratio_0.05",
        "--conditions",
        "clean,noise-low",
        "--frames",
        "2",
        "--out",
        out,
    )
    assert judge(*common, "--gaze", "oracle") == 0
    assert judge(*common, "--gaze", "oracle,pixel-diff") == 0
    with (tmp_path / "out" / "clips.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2 * 2  # videos, conditions, selectors, settings
    assert [row["selector"] for row in rows[:8]] == ["oracle"] * 8  # from before
    lines = json.loads((tmp_path / "out" / "summary.json").read_text())["rows"]
    for line in lines:
        assert line["over_greedy_low"] <= line["over_greedy"] <= line["over_greedy_high"]
        if line["selector"] == "oracle":
            assert line["over_greedy"] == pytest.approx(1, abs=0.02)
            if line["setting"] == "task_0.40" and line["condition"] == "clean":
                assert line["reached_over_asked"] < 1
        if line["setting"] == "ratio_0.05":
            assert line["patches"] <= 2 * int(0.05 * 265)
            assert line["over_random_budget"] < 0.6
    assert (tmp_path / "out" / "patches.png").stat().st_size > 10_000


def test_the_judge_says_what_is_wrong_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge(str(tmp_path), "--out", str(tmp_path / "out")) == 2
    assert capsys.readouterr().err == f"real_gaze: error: {tmp_path}: no videos there\n"


def test_a_label_stands_for_one_model(tmp_path: Path) -> None:
    """What was measured of a model is not taken for another one of its name; others may be added."""
    path = tmp_path / "models.json"
    check_models(path, {"gaze": small_gaze(0), "oracle": "oracle"})
    check_models(path, {"gaze": small_gaze(0), "other": small_gaze(1)})
    assert json.loads(path.read_text()).keys() == {"gaze", "oracle", "other"}
    with pytest.raises(InputError, match=r"gaze\.weights"):
        check_models(path, {"gaze": small_gaze(1)})
