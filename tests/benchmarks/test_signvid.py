"""benchmarks/signvid.py: one command from nothing to a table."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import autogaze_mllm as am
from autogaze_mllm.common.errors import InputError
from autogaze_mllm.evaluation.reports.curve import CurvePoint, targets
from autogaze_mllm.gaze.grid import DEFAULT_GRID
from autogaze_mllm.gaze.selectors.baselines import RandomSelector
from autogaze_mllm.gaze.settings import VideoSettings
from autogaze_mllm.signvid import SignVidConfig, VideoShape
from autogaze_mllm.signvid.plan import plan_video, shape_4k
from autogaze_mllm.signvid.signs import BORDER, cell_of
from autogaze_mllm.video.sampling import sample_frames
from benchmarks import signvid


def bench(folder: Path, *more: str) -> int:
    """In this process, which starts one for every look. -> exit code."""
    command = ["signvid.py", "--quick", "--data", str(folder / "data"), "--out", str(folder / "out")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*command, "--workers", "1", "--gaze", "pixel-diff", *more])
        return signvid.main()


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Path:
    """Gaze and random, asked for in the wrong order."""
    folder = tmp_path_factory.mktemp("signvid-benchmark")
    assert bench(folder, "--looks", "random,gaze") == 0
    return folder


@pytest.mark.slow
def test_random_is_measured_after_gaze_and_at_its_tokens(measured):
    result = json.loads((measured / "out/report.json").read_text())
    looks = result["looks"]
    assert set(looks) == {"gaze", "random"}
    assert all(look["accuracy"]["n"] == 6 and min(look["first"], look["further"]) > 0 for look in looks.values())
    assert looks["gaze"]["kept"] <= looks["random"]["kept"] <= 1.03 * looks["gaze"]["kept"]
    assert result["targets"][0]["says"].startswith("random spends the visual tokens of gaze")
    assert result["targets"][0]["met"]
    assert looks["gaze"]["peak"] > 0.1
    assert result["facts"]["split"] == "test, seed 0"
    text = (measured / "out/report.md").read_text()
    assert "chance 25 %" in text and "n = 6" in text and "random" in text
    assert (measured / "out/curve.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_quick_measures_every_look_and_goes_on_where_it_was(measured):
    before = (measured / "out/gaze/cost.json").stat().st_mtime_ns
    assert bench(measured, "--shuffled") == 0
    looks = json.loads((measured / "out/report.json").read_text())["looks"]
    assert set(looks) == {"gaze", "pixel-diff", "all", "whole-448", "random"}
    assert looks["gaze"]["tokens"] < 0.3 * looks["all"]["tokens"] and looks["all"]["kept"] == 1
    assert looks["gaze"]["shuffled"]["n"] == 6 and looks["all"]["shuffled"] is None
    assert (measured / "out/gaze/cost.json").stat().st_mtime_ns == before


@pytest.fixture
def here(measured, monkeypatch):
    """-> a function that measures gaze once more, in this process, with other arguments or another model."""

    def measure(seed: int = 0, **changes) -> None:
        told = argparse.Namespace(
            gaze="pixel-diff", gain=None, ratio=None, looks=None, shuffled=False, videos=None, dev=False
        )
        vars(told).update(quick=True, large=False, small=False, model="bundled", device=None, dtype=None)
        vars(told).update(data=measured / "data", out=measured / "out", **changes)
        load = signvid.load_base

        def load_other(*arguments: Any, **options: Any) -> am.GazedModel:
            model = load(*arguments, **options)
            if seed:
                torch.manual_seed(seed)
                for parameter in model.base.parameters():
                    torch.nn.init.normal_(parameter, std=0.02)
            return model

        monkeypatch.setattr(signvid, "load_base", load_other)
        signvid.measure("gaze", signvid.chosen_setup(told), told, False)

    threads = torch.get_num_threads()
    yield measure
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"gaze": "random"}, "seen.gaze: pixel-diff -> random"),
        ({"ratio": 0.3}, "seen.video.ratio: 0.15 -> 0.3"),
        ({"seed": 5}, "model.weights: "),
    ],
)
def test_what_was_measured_with_something_else_is_refused(measured, here, other, named):
    before = (measured / "out/gaze/cost.json").read_text()
    with pytest.raises(InputError, match="other settings") as caught:
        here(**other)
    assert named in str(caught.value)
    assert (measured / "out/gaze/cost.json").read_text() == before


@pytest.mark.slow
def test_the_peak_of_an_interrupted_run_counts(measured, here, monkeypatch):
    cost, peak = measured / "out/gaze/cost.json", measured / "out/gaze/peak.json"
    stored = json.loads(cost.read_text())
    assert json.loads(peak.read_text())["peak"] == pytest.approx(stored["look"]["peak"], rel=0.2)
    monkeypatch.setattr(signvid, "machine", lambda device: stored["facts"]["machine"])
    cost.unlink()
    peak.write_text('{"peak": 77.5}')  # of the process that was interrupted
    try:
        here()
        assert json.loads(cost.read_text())["look"]["peak"] == 77.5
    finally:
        cost.write_text(json.dumps(stored))


@pytest.mark.slow
def test_the_peak_is_noted_after_every_video(measured, tmp_path):
    told = VideoSettings(frames=2, ratio=0.1)
    model = signvid.load_base("bundled", "cpu", torch.float32, told)
    answerer = signvid.RecordingAnswerer(model, None, tmp_path / "peak.json")
    variant = signvid.Variant(model.gaze, told, "all")
    list(answerer.watch(measured / "data/videos/00000.mp4", [variant]))
    assert json.loads((tmp_path / "peak.json").read_text())["peak"] > 0.1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("--looks", "gaze,glance"),
            "--looks: no 'glance'; known: gaze, pixel-diff, all, whole-448, random, pixel-diff-raw",
        ),
        (("--looks", "random,all"), "--looks: random takes as many patches as gaze keeps: add gaze"),
        (("--looks", "all", "--shuffled"), "--shuffled asks gaze: add gaze to --looks"),
        (("--workers", "0"), "SignVid: needs one worker at least, got 0"),
        (("--videos", "0"), "SignVid: needs videos and questions, got 0 and 3"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(tmp_path, monkeypatch, capsys, arguments, line):
    places = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["signvid.py", "--quick", *places, *arguments])
    assert signvid.main() == 2
    assert capsys.readouterr().err == f"signvid: error: {line}\n"


@pytest.mark.parametrize("kept", [0.0041, 0.0713, 0.15, 0.1489, 19 / 265, 1.0])
@pytest.mark.parametrize("frames", [6, 16, 32])
def test_random_keeps_at_least_as_much_as_gaze_and_hardly_more(kept, frames):
    settings = VideoSettings(frames=frames)
    settings = settings.changed(ratio=signvid.equal_ratio(kept, DEFAULT_GRID.size, settings))
    count = min(frames, settings.chunk_frames)
    side = DEFAULT_GRID.scales[-1][0]
    info = RandomSelector().select(torch.rand(1, count, 3, side, side), DEFAULT_GRID, settings.ratio_for(count), None)
    found = int((~info.if_padded_gazing).sum()) / count
    wanted = kept * DEFAULT_GRID.size
    assert wanted - 1e-6 <= found <= wanted + 1 / count + 1e-6


def test_large_frames_are_seen_as_they_are_described():
    setup = signvid.Setup(SignVidConfig(shape_4k(256, signs=6)), tiles=144, ratio=0.06)
    assert setup.seen("gaze") == (3584, 2016)
    assert setup.seen("whole-448") == (896, 448)
    assert signvid.Setup(SignVidConfig(), tiles=36, ratio=0.15).seen("whole-448") == (448, 448)
    # After the frame is shrunk, the glyphs' cells are 16 pixels wide and stand on the tower's patches.
    shape = dataclasses.replace(setup.recipe.shape, jitter=0)
    shrinks = setup.seen("gaze")[0] / shape.width
    assert cell_of(shape.size) * shrinks == pytest.approx(16, abs=0.2)
    places = [(shown.x + BORDER, shown.y + BORDER) for shown in plan_video(shape, "test", 0, 0).signs]
    off = (np.array(places) * shrinks + 8) % 16 - 8
    assert np.abs(off).max() < 0.6


def look(name: str, value: float, tokens: float, first: float) -> CurvePoint:
    accuracy = {"value": value, "low": value - 0.04, "high": value + 0.04, "n": 510}
    return CurvePoint(name, accuracy, {}, tokens, tokens / 10000, first, 0.1, 1.0)


def test_targets_say_what_is_met_and_what_is_missed():
    looks = {
        "gaze": look("gaze", 0.8, 1200, 2.0),
        "all": look("all", 0.82, 10000, 5.0),
        "random": look("random", 0.6, 1210, 2.0),
        "whole-448": look("whole-448", 0.65, 1000, 2.0),
    }
    met = {target["says"]: target["met"] for target in targets(looks)}
    assert met["gaze keeps at least 95 % of the accuracy of all"]
    assert met["gaze spends at most 15 % of the visual tokens of all"]
    assert met["gaze beats random at equal tokens by at least 10 points"]
    assert not met["gaze beats the whole frame at 448 pixels by at least 20 points"]  # 15 points
    assert not met["a question is at least 3 x faster gazed than with all"]  # 2.5 x
    for tokens in (1100, 1300):  # not a comparison at equal tokens
        met = {one["says"]: one["met"] for one in targets({**looks, "random": look("random", 0.6, tokens, 2.0)})}
        assert not met["gaze beats random at equal tokens by at least 10 points"]


def test_what_lies_below_chance_wins_nothing_for_gaze():
    """Who names no option is wrong more often than who guesses."""
    looks = {"gaze": look("gaze", 0.34, 1200, 2.0), "random": look("random", 0.05, 1200, 2.0)}
    (gain,) = [one for one in targets(looks) if "by at least 10 points" in one["says"]]
    assert gain["found"] == "9 points" and not gain["met"]
    for value, met in ((0.1, True), (0.28, True), (0.4, False)):
        told = dataclasses.replace(looks["gaze"], shuffled=look("", value, 0, 0).accuracy)
        assert targets({"gaze": told})[-1]["met"] is met
        assert "not above chance" in targets({"gaze": told})[-1]["says"]


def test_gaze_ends_a_frame_by_what_patches_bring():
    told = argparse.Namespace(gaze="bundled", gain=None, ratio=None, looks=None, shuffled=False, videos=None, dev=False)
    vars(told).update(quick=False, large=False, small=False)
    setup = signvid.chosen_setup(told)
    assert setup.settings("gaze").gain == signvid.GAIN and setup.settings("gaze").loss == 0
    assert setup.settings("pixel-diff").gain is None and setup.settings("pixel-diff").loss is None
    told.gaze = "random"  # which measures nothing
    assert signvid.chosen_setup(told).settings("gaze").gain is None


def test_shape_of_the_development_data_is_that_of_the_test_data():
    told = argparse.Namespace(gaze="bundled", gain=None, ratio=None, looks=None, shuffled=False, videos=None, dev=True)
    vars(told).update(quick=False, large=False, small=False)
    recipe = signvid.chosen_setup(told).recipe
    assert (recipe.split, recipe.shape) == ("train", VideoShape()) and recipe.seed != SignVidConfig().seed


def test_at_the_small_size_every_patch_is_a_quarter_of_the_tokens():
    told = argparse.Namespace(gaze="bundled", gain=None, ratio=None, looks=None, shuffled=False, videos=None, dev=False)
    setups = []
    for small in (False, True):
        vars(told).update(quick=False, large=False, small=small)
        setups.append(signvid.chosen_setup(told))
    (width, height), (small_width, small_height) = (setup.seen("all") for setup in setups)
    assert (small_width, small_height) == (672, 672) and width * height == 4 * small_width * small_height
    assert all(setup.seen("whole-448") == (448, 448) for setup in setups)


def test_no_sign_of_the_large_videos_is_missed_between_the_frames_that_are_looked_at():
    told = argparse.Namespace(gaze="bundled", gain=None, ratio=None, looks=None, shuffled=False, videos=None, dev=False)
    vars(told).update(quick=False, large=True, small=False)
    setup = signvid.chosen_setup(told)
    looked_at = sample_frames(setup.recipe.shape.frames, setup.settings("pixel-diff").frames)
    assert len(looked_at) == 64
    for _, plan, _ in setup.recipe.asked():
        assert all(any(sign.start <= frame < sign.end for frame in looked_at) for sign in plan.signs)
