"""The gaze model that comes with the package: it loads without a network and is worth what the README says."""

from __future__ import annotations

import pytest
import torch

from autogaze_mllm.gaze.autogaze.model import AutoGaze
from autogaze_mllm.gaze.selector_registry import load_selector
from autogaze_mllm.gaze.selectors.base import stop_rule
from autogaze_mllm.gaze.selectors.pixel_diff import PixelDiffSelector
from autogaze_mllm.gaze.settings import preset
from autogaze_mllm.training.reconstruction.clips import read_clips
from autogaze_mllm.training.reconstruction.matching import Matched, match
from autogaze_mllm.training.reconstruction.scores import calibration, score_clip
from autogaze_mllm.training.reconstruction.settings import Setting
from autogaze_mllm.training.tasks.mosaic_task import MosaicTask

from ...helpers.programs import run_script

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def gaze() -> AutoGaze:
    return AutoGaze.from_pretrained()


@pytest.fixture(scope="module")
def clips(tmp_path_factory, gaze) -> list[torch.Tensor]:
    """Videos of the recipe's kind, from a seed and stills that nothing was trained on."""
    folder = tmp_path_factory.mktemp("videos")
    options = ["--train", "0", "--val", "5", "--frames", "32", "--seed", "42"]
    assert run_script("make_training_videos", folder, *options) == 0
    return [next(read_clips(path, gaze.grid, 16)) for path in sorted((folder / "val").glob("*.mp4"))]


def compared(gaze: AutoGaze, clips: list[torch.Tensor], setting: str) -> Matched:
    """Sums over the clips."""
    task = MosaicTask(gaze.grid, gaze.processor)
    rows = [match(clip, score_clip(clip, gaze, Setting.parse(setting), task, CPU), task, CPU) for clip in clips]
    return Matched(*(sum(getattr(row, name) for row in rows) for name in Matched.__dataclass_fields__))


def test_it_has_the_published_shape_and_needs_no_name(gaze) -> None:
    assert sum(parameter.numel() for parameter in gaze.parameters()) == 3_258_240
    assert gaze.config.reconstruction_task == "mosaic"
    named = load_selector("bundled")
    assert all(torch.equal(a, b) for a, b in zip(named.state_dict().values(), gaze.state_dict().values(), strict=True))


@pytest.mark.slow
def test_it_keeps_far_less_than_random_at_the_same_error(gaze, clips) -> None:
    for setting in ("ratio_0.05", "task_0.20"):
        found = compared(gaze, clips, setting)
        assert found.patches * 2.8 <= found.random, setting


@pytest.mark.slow
def test_it_stops_near_the_loss_that_was_asked_for(gaze, clips) -> None:
    task = MosaicTask(gaze.grid, gaze.processor)
    scores = [score_clip(clip, gaze, Setting.parse(f"task_{loss}"), task, CPU) for clip in clips for loss in (0.2, 0.4)]
    measured = calibration(scores)
    assert measured is not None and 0.7 < measured < 1.4


def test_its_stop_rule_is_its_own(gaze) -> None:
    """The presets carry the published model's loss, which is in another unit."""
    assert stop_rule(None, gaze, preset("nvila-hd")) == gaze.default_loss == 0.2
    published = AutoGaze()
    assert stop_rule(None, published, preset("nvila-hd")) == 0.6
    assert stop_rule(0.3, gaze, preset("nvila-hd")) == 0.3
    assert stop_rule(None, PixelDiffSelector(), preset("nvila-hd")) == PixelDiffSelector().default_loss
