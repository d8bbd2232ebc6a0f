"""Runs that go on: from a checkpoint of another run, after a kill with every new option, and never as another run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from autogaze_mllm import AutoGaze, InputError
from autogaze_mllm.cli import main
from autogaze_mllm.training.config import SearchConfig, TrainingConfig
from autogaze_mllm.training.data.clips import ClipConfig, ClipSource, find_videos
from autogaze_mllm.training.tasks.base import ReconstructionTask
from autogaze_mllm.training.tasks.mosaic_task import MosaicTask
from autogaze_mllm.training.tasks.videomae.model import VideoMAEConfig
from autogaze_mllm.training.tasks.videomae.task import VideoMAETask
from autogaze_mllm.training.trainer import GazeTrainer, TrainingData

from ..helpers.training_models import CONFIG, small_gaze, write_clips

GRPO = {
    "algorithm": "grpo",
    "group_size": 2,
    "ratio": "uniform:0.2:0.8",
    "frame_ratio": "dirichlet:10,3",
    "requirement": "uniform:0.05:0.2",
    "temperature": (3.0, 0.3),
    "val_ratio": "uniform:0.1:0.5",
    "val_frame_ratio": "self",
    "val_requirement": "fixed:0.1",
    "val_clips": -1,
    "val_every": 2,
}
CROPS = ClipConfig(2, (1, 2), 64, min_crop=0.3, crop_aspect=(0.75, 4 / 3), clip_start="random", mirror=True)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_clips(folder / "train", 6)
    write_clips(folder / "val", 2)
    return folder


def trainer(
    videos: Path,
    run: Path,
    *,
    seed: int = 0,
    clips: ClipConfig = CROPS,
    task: ReconstructionTask | None = None,
    decoded: Path | None = None,
    gaze: AutoGaze | None = None,
    more: dict[str, Any] | None = None,
    **changes: Any,
) -> GazeTrainer:
    gaze = gaze or small_gaze(seed)
    train = ClipSource(find_videos(str(videos)), clips, decoded=decoded)
    val = ClipSource(find_videos(str(videos), "val"), ClipConfig(2, (1, 1), 64), random=False)
    plain = {"steps": 4, "batch_size": 2, "micro_batch": 2, "save_every": 2, "keep": 5, "val_clips": 0}
    settings = TrainingConfig(**{**plain, "search": SearchConfig(max_patches=4), **changes})
    task = task or MosaicTask(gaze.grid, gaze.processor)
    return GazeTrainer(gaze, task, TrainingData(train, val), settings, run, cpu=True, progress=False, **(more or {}))


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps of GRPO with every option that is drawn from."""
    run = tmp_path_factory.mktemp("whole") / "run"
    trainer(videos, run, **GRPO).train()
    return run


def test_a_run_that_breaks_off_goes_on_with_the_same_numbers_under_every_strategy(
    videos: Path, whole: Path, tmp_path: Path
) -> None:
    broken = trainer(videos, tmp_path, **GRPO)

    def stop(*_: object) -> None:
        if (tmp_path / "checkpoints/step-00000002").exists():
            raise KeyboardInterrupt

    broken.objective.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = trainer(videos, tmp_path, seed=0, **GRPO)
    assert resumed.first_step == 2
    resumed.train()
    assert rows(tmp_path) == rows(whole)
    assert (tmp_path / "validation.json").read_text() == (whole / "validation.json").read_text()
    log = (tmp_path / "train.log").read_text()
    assert "ended by KeyboardInterrupt" in log and "steps 2 to 4" in log


@pytest.mark.parametrize("source", ["checkpoints/step-00000002", pytest.param(".", marks=pytest.mark.slow)])
def test_another_folder_goes_on_from_a_checkpoint_that_is_named(
    videos: Path, whole: Path, tmp_path: Path, source: str
) -> None:
    shutil.copytree(whole, tmp_path / "first")
    if source == ".":
        shutil.rmtree(tmp_path / "first/checkpoints/step-00000004")
    given = {"resume": tmp_path / "first" / source}
    branch = trainer(videos, tmp_path / "branch", more=given, **GRPO)
    assert branch.first_step == 2
    model = branch.train().state_dict()
    expected = load_file(whole / "gaze/model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.items())
    assert rows(tmp_path / "branch") == rows(whole)  # its curves begin at the beginning
    again = trainer(videos, tmp_path / "branch", more=given, **GRPO)
    assert again.first_step == 4  # its own checkpoints count, even when the other run is gone
    shutil.rmtree(tmp_path / "first")
    assert trainer(videos, tmp_path / "branch", more=given, **GRPO).first_step == 4
    assert trainer(videos, tmp_path / "branch", **GRPO).first_step == 4
    with pytest.raises(InputError, match="resumed_from"):
        trainer(videos, tmp_path / "branch", more={"resume": tmp_path / "other/checkpoints/step-00000002"}, **GRPO)


def test_what_cannot_be_gone_on_from_is_one_line(videos: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a run with checkpoints nor a checkpoint"):
        trainer(videos, tmp_path / "a", more={"resume": tmp_path}, **GRPO)
    older = whole / "checkpoints/step-00000002"
    with pytest.raises(InputError, match="has newer checkpoints than this one"):
        trainer(videos, whole, more={"resume": older}, **GRPO)
    with pytest.raises(InputError, match=r"give --init CHECKPOINT/gaze \(lr: 0.0005 -> 0.1\)"):
        trainer(videos, tmp_path / "b", more={"resume": older}, **GRPO, lr=0.1)
    alone = tmp_path / "alone/step-00000002"
    shutil.copytree(older, alone)  # without its run the settings of the training are there, at least
    with pytest.raises(InputError, match=r"group_size: 2 -> 3"):
        trainer(videos, tmp_path / "c", more={"resume": alone}, **{**GRPO, "group_size": 3})
    assert not (tmp_path / "b/settings.json").exists() and not (tmp_path / "b/metrics.jsonl").exists()


def other_tasks() -> list[VideoMAETask]:
    torch.manual_seed(0)
    return [VideoMAETask(VideoMAEConfig.from_dict({**CONFIG, "loss_weights": weight})) for weight in ("1", "2")]


def test_all_that_decides_a_run_is_in_its_folder(videos: Path, tmp_path: Path) -> None:
    """A second command that would train something else is refused and told of what differs."""
    plain: dict[str, Any] = {"steps": 1, "algorithm": "grpo", "group_size": 2}
    trainer(videos, tmp_path / "run", **plain, more={"identity": {"init": "new"}}).train()
    brighter = small_gaze()
    brighter.processor.image_mean = [0.1, 0.5, 0.5]
    others: dict[str, dict[str, Any]] = {
        "task.name: mosaic -> videomae": {"task": other_tasks()[0]},
        "init: new -> 1234": {"more": {"identity": {"init": "1234"}}},
        "gaze.gazing_ratio_config.fixed.gazing_ratio: 0.5 -> 0.1": {"ratio": 0.1},
        "gaze.has_task_loss_requirement_during_training: False -> True": {"requirement": "fixed:0.7"},
        "val_requirement: None -> fixed:0.7": {"val_requirement": "fixed:0.7"},
        "clips.crop_aspect: [0.75, 1.3333333333333333] -> [1, 1]": {
            "clips": ClipConfig(**{**vars(CROPS), "crop_aspect": (1, 1)})
        },
        "decoded: False -> True": {"decoded": tmp_path / "frames"},
        "processor.image_mean: [0.485, 0.456, 0.406] -> [0.1, 0.5, 0.5]": {"gaze": brighter},
    }
    for words, changes in others.items():
        with pytest.raises(InputError) as caught:
            trainer(videos, tmp_path / "run", **{**plain, "more": {"identity": {"init": "new"}}, **changes})
        assert words in str(caught.value) and "choose another folder" in str(caught.value)
    one, two = other_tasks()
    trainer(videos, tmp_path / "task", **plain, task=one).train()
    with pytest.raises(InputError, match=r"task.config.loss_weights: 1 -> 2"):
        trainer(videos, tmp_path / "task", **plain, task=two)


# -- on the command line -----------------------------------------------------------------------------------------------


def command(videos: str, run: Path, *more: str) -> list[str]:
    plain = ["--frames", "1", "--batch-size", "2", "--save-every", "1", "--max-patches", "4", "--steps", "1"]
    return ["train-gaze", videos, "--out", str(run), "--device", "cpu", "--json", *plain, *more]


def test_validation_alone_trains_nothing(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And has the numbers that training has before its first step."""
    given = ["--init", "bundled", "--val-clips", "-1", "--val-ratio", "0.05", "--val-requirement", "none"]
    assert main(command(str(videos), tmp_path / "only", *given, "--validate-only")) == 0
    alone = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "only/checkpoints").exists() and not (tmp_path / "only/metrics.jsonl").exists()
    assert alone["val_clips"] == 2 and alone["steps"] == 0
    assert (tmp_path / "only/pictures/step-00000000.png").is_file()
    assert main(command(str(videos), tmp_path / "run", *given)) == 0
    trained = json.loads(capsys.readouterr().out)
    values = {name: value for name, value in alone.items() if name.startswith("val_")}
    assert values.items() <= rows(tmp_path / "run")[0].items()
    assert main(command(str(videos), tmp_path / "run", *given, "--validate-only")) == 0
    again = json.loads(capsys.readouterr().out)  # of the newest checkpoint
    assert again["steps"] == 1 and again["val_loss"] == trained["val_loss"] != alone["val_loss"]


@pytest.mark.parametrize(
    ("roots", "arguments", "message"),
    [
        ("both,train", [], "train: has no val/; give it one, or --val-clips 0 to validate on nothing"),
        ("both,val", [], "val: has no train/"),
        ("train", ["--validate-only"], "train: has no val/; give it one"),
        ("both", ["--validate-only", "--val-clips", "0"], "--validate-only needs videos in val/, and --val-clips"),
        ("both", ["--val-clips", "-2"], "val_clips must be at least -1, got -2"),
        ("both", ["--frame-ratio", "dirichlet:10,3"], "dirichlet has 2 alphas, clips 1 frames"),
        ("both", ["--val-ratio", "often"], "--val-ratio 'often': unknown strategy 'often'"),
        ("both", ["--crop-aspect", "1:2"], "crop_aspect is of random crops: give min_crop, too"),
        ("both", ["--resume", "nowhere"], "nowhere: neither a run with checkpoints nor a checkpoint"),
    ],
)
def test_bad_input_is_one_line(
    videos: Path,
    tmp_path: Path,
    roots: str,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for root, splits in {"both": ("train", "val"), "train": ("train",), "val": ("val",)}.items():
        (tmp_path / root).mkdir()
        for split in splits:
            (tmp_path / root / split).symlink_to(videos / split)
    named = ",".join(str(tmp_path / root) for root in roots.split(","))
    assert main(command(named, tmp_path / "run", "--init", "bundled", *arguments)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1] and not (tmp_path / "run/metrics.jsonl").exists()


def test_several_roots_are_trained_on_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Each has its own train/ and val/, and its own file of labels."""
    labels = []
    for root in ("one", "two"):
        write_clips(tmp_path / root / "train", 2)
        write_clips(tmp_path / root / "val", 1)
        found = {
            f"elsewhere/{root}/train/{number:03}.mp4": {"gazing_pos": [[number]], "task_losses": [[0.5]]}
            for number in range(2)
        }
        (tmp_path / root / "gazing_labels.json").write_text(json.dumps(found))
        labels.append(str(tmp_path / root / "gazing_labels.json"))
    named = ",".join(str(tmp_path / root) for root in ("one", "two"))
    more = ["--init", "bundled", "--labels", ",".join(labels), "--val-clips", "-1", "--clip-start", "random"]
    assert main(command(named, tmp_path / "run", *more)) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["videos"], result["val_clips"]) == (4, 2)
    assert "--clip-start random: clips are others than those that the labels were made of" in caplog.text
