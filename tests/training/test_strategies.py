"""Strategies of budgets: what the command line may say, what validation and rollouts make of it, what is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from autogaze_mllm import AutoGaze, InputError
from autogaze_mllm.gaze.autogaze.config import BudgetConfig
from autogaze_mllm.gaze.selection import read_selection
from autogaze_mllm.training.config import TrainingConfig
from autogaze_mllm.training.data.clips import ClipConfig, ClipSource, find_videos, resized_crop
from autogaze_mllm.training.tasks.base import ReconstructionTask
from autogaze_mllm.training.tasks.mosaic_task import MosaicTask
from autogaze_mllm.training.tasks.videomae.model import VideoMAEConfig
from autogaze_mllm.training.tasks.videomae.task import VideoMAETask
from autogaze_mllm.training.trainer import GazeTrainer, TrainingData
from autogaze_mllm.training.validation import select, validate

from ..helpers.training_models import CONFIG, small_gaze, write_clips

GRPO = {"algorithm": "grpo", "steps": 1, "group_size": 2, "batch_size": 2, "micro_batch": 2, "val_clips": 0}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with 4 clips, val/ with 6."""
    folder = tmp_path_factory.mktemp("videos")
    write_clips(folder / "train", 4)
    write_clips(folder / "val", 6)
    return folder


def held_out(videos: Path, frames: int = 3) -> ClipSource:
    return ClipSource(find_videos(str(videos), "val"), ClipConfig(frames, (1, 1), 64), random=False)


def trainer(videos: Path, run: Path, task: ReconstructionTask | None = None, **changes: Any) -> GazeTrainer:
    gaze = small_gaze()
    data = TrainingData(ClipSource(find_videos(str(videos)), ClipConfig(3, (1, 1), 64)), held_out(videos))
    chosen = TrainingConfig(**{**GRPO, **changes})
    task = task or MosaicTask(gaze.grid, gaze.processor)
    return GazeTrainer(gaze, task, data, chosen, run, cpu=True, progress=False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ratio": "never:1"}, r"--ratio 'never:1': unknown strategy 'never'; known: fixed:R, uniform:A:B"),
        ({"ratio": "exponential:1"}, "--ratio 'exponential:1': expected numbers as in exponential:LAMBDA:A:B"),
        ({"ratio": 0}, "a ratio must lie in"),
        ({"val_ratio": "uniform:0.5:1.5"}, "a ratio must lie in"),
        ({"val_ratio": "uniform:0.5:0.2"}, "0.5 to 0.2 is no range"),
        ({"val_ratio": True}, "val_ratio must be text"),
        ({"frame_ratio": "dirichlet"}, "expected numbers as in dirichlet:ALPHA"),
        ({"frame_ratio": "dirichlet:10,3,"}, "expected numbers as in dirichlet:ALPHA"),
        ({"val_frame_ratio": "dirichlet:1,0,3"}, "--val-frame-ratio 'dirichlet:1,0,3': alphas must be above 0"),
        ({"requirement": "fixed:nan"}, "expected numbers as in fixed:LOSS"),
        ({"val_requirement": "none:3"}, "expected numbers as in none"),
        ({"val_requirement": -1}, "must not be below 0"),
        ({"val_requirement": "none", "val_loss": 0.2}, "are both a stop rule in validation: give one"),
    ],
    ids=str,
)
def test_what_is_no_strategy_is_refused_in_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        TrainingConfig(**given)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_alpha_for_each_frame_fits_the_clips_or_is_refused(videos: Path, tmp_path: Path) -> None:
    for option, given in (("--frame-ratio", "frame_ratio"), ("--val-frame-ratio", "val_frame_ratio")):
        with pytest.raises(InputError, match=rf"{option}: dirichlet has 2 alphas, clips 3 frames"):
            trainer(videos, tmp_path / given, **{given: "dirichlet:10,3"})
    trainer(videos, tmp_path / "fits", frame_ratio="dirichlet:10,3,3").train()
    stored = json.loads((tmp_path / "fits/settings.json").read_text())
    assert stored["gaze"]["gazing_ratio_each_frame_config"]["dirichlet"] == {"alpha": "10,3,3"}


def kept(gaze: AutoGaze, budget: BudgetConfig, seed: int) -> list[int]:
    """Patches of each frame of a clip whose every patch is worth a look."""
    torch.manual_seed(seed)
    pixels = torch.randn(1, 3, 3, 64, 64)
    info, _, _ = select(gaze, pixels, budget)
    selection = read_selection(info, gaze.grid, "the test")
    return [int(part.sum()) for part in selection.keep.split(selection.counts, dim=1)]


def test_a_list_of_alphas_gives_the_frames_their_shares(videos: Path) -> None:
    """The first frame's alpha is larger, so it gets more on average, and together they get the ratio's share."""
    gaze = small_gaze().eval()
    budget = TrainingConfig(val_ratio=0.3, val_frame_ratio="dirichlet:12,3,3", val_requirement="none").val_budget(
        gaze.config.budget, 3
    )
    counts = torch.tensor([kept(gaze, budget, seed) for seed in range(30)], dtype=torch.float32)
    first, second, third = counts.mean(dim=0).tolist()
    assert first > 2.5 * max(second, third) and abs(second - third) < 2
    assert counts.sum(dim=1).mean() == pytest.approx(0.3 * 60, rel=0.15)  # every draw is rounded down


def test_self_keeps_what_the_stop_rule_did(videos: Path) -> None:
    """Where both passes have the same loss to stop at, it is the selection of the stop rule itself."""
    gaze = small_gaze().eval()
    plain = TrainingConfig(val_ratio=0.8, val_requirement="fixed:0.0001").val_budget(gaze.config.budget, 3)
    assert plain.use_requirement_inference and plain.frame_inference == "uniform"
    assert kept(gaze, replace(plain, frame_inference="self"), 0) == kept(gaze, plain, 0)
    loose = replace(plain, frame_inference="self", requirement=1e3)
    assert kept(gaze, loose, 0) == [1, 1, 1]  # a frame keeps one patch at least


def test_validation_goes_over_all_clips_under_the_chosen_strategies(videos: Path) -> None:
    gaze = small_gaze()
    task = MosaicTask(gaze.grid, gaze.processor)

    def found(**given: Any) -> dict[str, float]:
        return validate(gaze, task, held_out(videos), TrainingConfig(**given))[0]

    fixed = found(val_clips=-1, val_ratio=0.25, val_requirement="none")
    assert fixed["val_clips"] == 6 and fixed["val_gazing_ratio"] == 0.25
    assert found(val_clips=2)["val_clips"] == 2
    drawn = found(val_clips=-1, val_ratio="uniform:0.1:0.9", val_requirement="none")
    assert drawn == found(val_clips=-1, val_ratio="uniform:0.1:0.9", val_requirement="none")  # by the clips' numbers
    assert drawn["val_gazing_ratio"] != fixed["val_gazing_ratio"]
    other = found(val_clips=-1, val_ratio="uniform:0.1:0.9", val_requirement="none", seed=1)
    assert other["val_gazing_ratio"] != drawn["val_gazing_ratio"]
    assert gaze.training  # as it was before
    one = found(val_clips=-1, val_ratio=1, val_requirement="uniform:1000:1001")
    assert one["val_patches"] == 3  # all stop at once: a patch for each frame


def test_a_task_that_is_trained_validates_on_all_frames(videos: Path, tmp_path: Path) -> None:
    """In training it rebuilds some of them, drawn at random."""
    torch.manual_seed(0)
    task = VideoMAETask(VideoMAEConfig.from_dict(CONFIG), sample_rate=0.34)
    chosen = {"train_task": True, "train_gaze": False, "val_clips": 2, "val_every": 1}
    found = trainer(videos, tmp_path, task, **chosen)
    values, shown = validate(found.gaze, task, held_out(videos), found.settings)
    assert task.training and [len(clip.losses) for clip in shown] == [3, 3]
    assert values == validate(found.gaze, task, held_out(videos), found.settings)[0]


def test_the_trained_model_has_the_strategies_of_validation_and_training_has_its_own(
    videos: Path, tmp_path: Path
) -> None:
    given = {"ratio": 0.75, "frame_ratio": "self", "requirement": "uniform:0.5:1.0"}
    found = trainer(videos, tmp_path, **given, val_ratio=0.1, val_requirement="fixed:0.6")
    assert found.gaze.config.budget.ratio == 0.75
    found.train()
    for folder in (tmp_path / "gaze", tmp_path / "checkpoints/step-00000001/gaze"):
        budget = AutoGaze.from_pretrained(folder).config.budget
        assert (budget.ratio_inference, budget.ratio) == ("fixed", 0.1)
        assert (budget.use_requirement_inference, budget.requirement) == (True, 0.6)
        assert (budget.frame_training, budget.frame_inference) == ("self", "uniform")
        assert (budget.requirement_training, budget.requirement_range) == ("uniform", (0.5, 1.0))


def test_random_crops_keep_area_and_aspect_in_their_ranges() -> None:
    """torchvision's rule: in the ranges where that is possible, else the largest crop in the middle."""
    import numpy as np

    rng = np.random.default_rng(0)
    shapes = [resized_crop(90, 160, (0.2, 1.0), (0.75, 4 / 3), rng) for _ in range(300)]
    for top, left, high, wide in shapes:
        assert 0 <= top <= 90 - high and 0 <= left <= 160 - wide
        assert 0.7 < wide / high < 1.4 and 0.19 < high * wide / (90 * 160) <= 1
    assert len(set(shapes)) > 250 and min(high * wide for _, _, high, wide in shapes) < 0.3 * 90 * 160
    assert resized_crop(90, 900, (0.9, 1.0), (0.5, 2.0), rng) == (0, 360, 90, 180)
    assert resized_crop(900, 90, (0.9, 1.0), (0.5, 2.0), rng) == (360, 0, 180, 90)
    with pytest.raises(InputError, match="give min_crop, too"):
        ClipConfig(crop_aspect=(0.75, 1.3))
    with pytest.raises(InputError, match="crop_aspect must be a range above 0"):
        ClipConfig(crop_aspect=(2, 1), min_crop=0.5)


def test_where_clips_begin_does_not_hang_on_labels(videos: Path) -> None:
    paths = find_videos(str(videos))

    def begins(start: str, labelled: bool) -> bool:
        """Whether clips of all epochs are the same ones, from the first frame."""
        source = ClipSource(paths, ClipConfig(2, (1, 1), 64, clip_start=start), labelled=labelled)  # type: ignore[arg-type]
        return all(torch.equal(source.clip(0, epoch).pixels, source.read(paths[0])) for epoch in range(4))

    assert [begins(start, True) for start in ("auto", "first", "random")] == [True, True, False]
    assert [begins(start, False) for start in ("auto", "first", "random")] == [False, True, False]
