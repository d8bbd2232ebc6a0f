"""A VideoMAE that is trained, alone or beside the gaze model, and what its losses mean for the gaze model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from autogaze_mllm import AutoGaze, InputError
from autogaze_mllm.cli import main
from autogaze_mllm.gaze.autogaze.config import AutoGazeConfig, BudgetConfig
from autogaze_mllm.training.config import TrainingConfig
from autogaze_mllm.training.data.clips import ClipConfig, ClipSource, find_videos
from autogaze_mllm.training.data.labels import key_of, read_labels
from autogaze_mllm.training.reconstruction.models import load_models
from autogaze_mllm.training.reconstruction.scores import score_clip
from autogaze_mllm.training.reconstruction.settings import Setting
from autogaze_mllm.training.run_folder.checkpoints import checkpoint_folders
from autogaze_mllm.training.tasks.videomae.model import VideoMAEConfig
from autogaze_mllm.training.tasks.videomae.task import VideoMAETask
from autogaze_mllm.training.trainer import GazeTrainer, TrainingData

from ..helpers.files.videomae_files import write_published, write_vit_mae
from ..helpers.paths import ROOT
from ..helpers.training_models import CONFIG, small_gaze, write_clips

PLAIN = ["--frames", "2", "--batch-size", "2", "--device", "cpu", "--val-clips", "0", "--save-every", "1", "--json"]
WIDE = {"image_size": 64, "patch_size": 16, "scales": "32+64+112+224", "max_num_frames": 4}  # on the published grid


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with 4 clips, val/ with 1."""
    folder = tmp_path_factory.mktemp("videos")
    write_clips(folder / "train", 4)
    write_clips(folder / "val", 1)
    return folder


@pytest.fixture(scope="module")
def videomae(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of our own layout, on the published grid."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("videomae")
    VideoMAETask(VideoMAEConfig.from_dict(CONFIG | WIDE)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def labels(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("labels") / "labels.json"
    assert main(["label", str(videos), "--out", str(out), "--frames", "2", "--max-ratio", "0.02", "--json"]) == 0
    return str(out)


def train(videos: Path, run: Path, *more: str) -> int:
    return main(["train-gaze", str(videos), "--out", str(run), *PLAIN, *more])


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    return VideoMAETask.from_pretrained(folder).state_dict()


def differ(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in one.items() if not torch.equal(value, other[name])}


def small_data(videos: Path) -> TrainingData:
    return TrainingData(ClipSource(find_videos(str(videos)), ClipConfig(3, side=64)))


def small_settings(**changes: object) -> TrainingConfig:
    plain = {"steps": 2, "batch_size": 4, "lr": 1e-3, "val_clips": 0, "schedule": "constant"}
    return TrainingConfig(**plain | changes)  # type: ignore[arg-type]


def test_alone_it_learns_from_random_patches(videos: Path, tmp_path: Path) -> None:
    """Each clip is rebuilt once, and the gaze model is neither asked nor stored."""
    torch.manual_seed(0)
    gaze, task = small_gaze(), VideoMAETask(VideoMAEConfig.from_dict(CONFIG))
    seen = []

    def asked(*_: object) -> None:
        raise AssertionError("the gaze model was asked")

    gaze.gazing_model.vision_model.register_forward_pre_hook(asked)
    task.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[:2]))
    chosen = small_settings(steps=12, lr=3e-3, train_gaze=False, train_task=True, selections="random", group_size=6)
    GazeTrainer(gaze, task, small_data(videos), chosen, tmp_path, cpu=True, progress=False).train()
    assert set(seen) == {(4, 3)}
    curve = [row["loss"] for row in rows(tmp_path)]
    assert sum(curve[-5:]) < 0.95 * sum(curve[:5])
    assert all(row["gazing_ratio"] == 0.5 for row in rows(tmp_path))  # that of the budgets
    assert not (tmp_path / "gaze").exists() and not list(tmp_path.glob("checkpoints/*/gaze"))
    assert not differ(weights(tmp_path / "task"), task.state_dict())


def test_random_patches_follow_the_budgets(videos: Path, tmp_path: Path) -> None:
    """Drawn per clip and step; a share per frame is drawn, too, and `self` has nobody to ask."""
    torch.manual_seed(0)
    task = VideoMAETask(VideoMAEConfig.from_dict(CONFIG), sample_rate=0.4)
    counts, rebuilt = [], []
    task.register_forward_pre_hook(lambda _, given: counts.append(given[1]["num_gazing_each_frame"].tolist()))
    task.register_forward_hook(lambda _module, _given, result: rebuilt.append(len(result.frames)))
    chosen = small_settings(steps=3, train_gaze=False, train_task=True, selections="random")
    for frames, run in (("dirichlet", "one"), ("uniform", "two")):
        gaze = small_gaze()
        budget = BudgetConfig(ratio_training="uniform", ratio_range=(0.2, 0.9), frame_training=frames)  # type: ignore[arg-type]
        gaze.config = type(gaze.config)(**{**vars(gaze.config), "budget": budget})
        GazeTrainer(gaze, task, small_data(videos), chosen, tmp_path / run, cpu=True, progress=False).train()
    assert all(len(set(one)) > 1 for one in counts[:3]) and all(len(set(one)) == 1 for one in counts[3:])
    assert len({one[0] for one in counts[3:]}) == 3
    assert set(rebuilt) == {1}  # the share of the three frames
    budget = BudgetConfig(frame_training="self")
    gaze.config = type(gaze.config)(**{**vars(gaze.config), "budget": budget})
    with pytest.raises(InputError, match="'self' is what a gaze model wants"):
        GazeTrainer(gaze, task, small_data(videos), chosen, tmp_path / "no", cpu=True, progress=False)


def test_a_frozen_task_rebuilds_its_share_of_frames_in_training(videos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    task, rebuilt = VideoMAETask(VideoMAEConfig.from_dict(CONFIG), sample_rate=0.4), []
    task.register_forward_hook(lambda _module, _given, result: rebuilt.append(len(result.frames)))
    chosen = small_settings(algorithm="grpo", group_size=2)
    GazeTrainer(small_gaze(), task, small_data(videos), chosen, tmp_path, cpu=True, progress=False).train()
    assert rebuilt == [1, 1]
    assert not task.training


def test_a_new_one_from_a_plain_vit_mae_goes_on_with_the_same_numbers(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped after the first of three steps; both are made by the command line, on another grid than the usual."""
    plain = write_vit_mae(tmp_path / "plain", pickled=True)
    options = ["--only-task", "--task", str(plain), "--steps", "3", "--rebuild", "0.5", "--ratio", "uniform:0.1:0.4"]
    assert train(videos, tmp_path / "whole", *options, "--val-clips", "1") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["model"] == str(tmp_path / "whole" / "task") and result["val_loss"] > 0
    assert train(videos, tmp_path / "parts", *options, "--until", "1") == 0
    assert train(videos, tmp_path / "parts", *options) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["resumed_at"] == 1
    first, second = ([row["loss"] for row in rows(tmp_path / run)] for run in ("whole", "parts"))
    assert first == second
    trained = weights(tmp_path / "whole" / "task")
    assert not differ(trained, weights(tmp_path / "parts" / "task"))
    start = VideoMAETask.from_pretrained(plain).state_dict()
    moved = differ(trained, start)
    assert "model.vit.embeddings.scale_embed" in moved and "model.decoder.decoder_pred.weight" in moved
    assert not any("pos" in name for name in moved)


def test_a_published_one_goes_on_learning_and_is_stored_whole(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its networks keep still, and lie in the run's folder at the end, not in each checkpoint; its grid is its own."""
    published = write_published(tmp_path / "published")
    before = weights(published)
    assert train(videos, tmp_path / "run", "--only-task", "--task", str(published), "--steps", "1") == 0
    for folder in published.parent.iterdir():
        folder.rename(tmp_path / f"moved-{folder.name}")
    after = weights(tmp_path / "run" / "task")
    moved = differ(after, before)
    assert moved and all(name.startswith("model.") for name in moved)
    assert {path.name for path in (tmp_path / "run" / "task").iterdir() if path.is_dir()} == {"dinov2_reg", "siglip2"}
    (checkpoint,) = checkpoint_folders(tmp_path / "run")
    assert not any(path.is_dir() for path in (checkpoint / "task").iterdir())
    labels = tmp_path / "labels.json"
    options = ["label", str(videos), "--task", str(tmp_path / "run" / "task"), "--frames", "1", "--max-ratio", "0.1"]
    assert main([*options, "--out", str(labels), "--json"]) == 0
    found = read_labels(str(labels))[key_of(find_videos(str(videos))[0])]
    assert len(found["gazing_pos"][0]) == 2  # a tenth of the 20 patches of 32+64


@pytest.mark.parametrize("options", [[], ["--freeze-gaze"]], ids=["beside the gaze model", "alone"])
def test_labels_are_what_it_rebuilds_from(
    options: list[str], videos: Path, videomae: str, labels: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--labels", labels, "--task", videomae, "--train-task", "--steps", "2", *options]
    assert train(videos, tmp_path, *given) == 0
    kept = sum(len(frame) for label in read_labels(labels).values() for frame in label["gazing_pos"])
    ratios = [row["gazing_ratio"] for row in rows(tmp_path)]
    assert sum(ratios) == pytest.approx(kept / (4 * 2 * 265) * 2, rel=1e-5)  # two batches are all four clips
    assert "model.decoder.decoder_pred.weight" in differ(weights(tmp_path / "task"), weights(videomae))
    assert (tmp_path / "gaze").exists() == (not options)
    assert ("policy_loss" in rows(tmp_path)[0]) == (not options)


def test_selections_of_a_given_gaze_model(
    videos: Path, videomae: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--init` with --only-task: it selects, by its stop rule, and stays as it is."""
    options = ["--only-task", "--task", videomae, "--init", "bundled", "--requirement", "fixed:2", "--steps", "1"]
    assert train(videos, tmp_path, *options) == 0
    assert 0 < rows(tmp_path)[0]["gazing_ratio"] < 0.1
    assert json.loads((tmp_path / "settings.json").read_text())["selections"] == "gaze"


def test_the_stop_rule_is_in_the_unit_of_the_task(
    videos: Path, videomae: str, labels: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """0.2 is the mosaic's; a VideoMAE has the published 0.7, in the model, in validation and where a model of the
    other unit goes on; what is asked for goes before."""

    def stored(run: str, *more: str) -> tuple[float, float]:
        options = ["--labels", labels, "--steps", "1", "--no-loss-prediction", *more]
        assert train(videos, tmp_path / run, *options) == 0
        model = AutoGaze.from_pretrained(tmp_path / run / "gaze").config
        return model.budget.requirement, json.loads((tmp_path / run / "settings.json").read_text())["val_loss"]

    assert stored("mosaic") == (0.2, 0.2)
    assert stored("videomae", "--task", videomae) == (0.7, 0.7)
    mosaics = ["--init", str(tmp_path / "mosaic" / "gaze")]
    assert stored("other unit", "--task", videomae, *mosaics, "--val-loss", "0.5") == (0.5, 0.5)
    assert AutoGazeConfig().budget.requirement == 0.7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            [],
            "ntp searches labels with the mosaic only, as 'videomae' rebuilds a frame for every patch",
        ),
        (["--train-task"], "ntp searches labels with the mosaic only"),
        (["--only-task", "--frame-ratio", "self"], "'self' is what a gaze model wants to keep"),
        (["--only-task", "--task", "mosaic"], "the task 'mosaic' has no parameters to train"),
        (["--algorithm", "grpo", "--rebuild", "0"], "share of frames to rebuild must lie in (0, 1], got 0"),
        (["--freeze-gaze"], "nothing is to be trained"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    options: list[str], message: str, videos: Path, videomae: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(videos, tmp_path / "run", "--task", videomae, "--steps", "1", *options) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_another_grid_than_that_of_the_gaze_model_is_refused(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    VideoMAETask(VideoMAEConfig.from_dict(CONFIG)).save_pretrained(tmp_path / "small")
    options = ["--algorithm", "grpo", "--steps", "1", "--task", str(tmp_path / "small"), "--init", "bundled"]
    assert train(videos, tmp_path / "run", *options) == 2
    assert "grid mismatch: the gaze model uses 32+64+112+224" in capsys.readouterr().err.strip().splitlines()[-1]


def test_selectors_without_a_grid_are_measured_on_that_of_the_task(videos: Path, tmp_path: Path) -> None:
    """As the evaluation script loads them; a gaze model of another grid is refused."""
    published, device = str(write_published(tmp_path / "published")), torch.device("cpu")
    found = load_models(["random", "greedy"], published, device)
    assert {str(one.task.grid) for one in found.contenders} == {"32+64 at patch 16 (4+16 = 20 positions)"}
    clip = ClipSource(find_videos(str(videos)), ClipConfig(2, side=64)).clip(0).pixels
    score = score_clip(
        clip, found.contenders[0].selector, Setting.parse("ratio_0.50"), found.contenders[0].task, device
    )
    assert [frame.patches for frame in score.frames] == [10, 10] and score.mean("loss") > 0
    with pytest.raises(InputError, match="grid mismatch"):
        load_models(["random", "bundled"], published, device)


@pytest.mark.slow
def test_killed_it_goes_on_and_two_processes_agree_with_one(videos: Path, videomae: str, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    options = ["--only-task", "--task", videomae, "--steps", "4"]

    def command(run: str) -> list[str]:
        return ["train-gaze", str(videos), "--out", str(tmp_path / run), *PLAIN, *options]

    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_machines",
        "1",
        "--num_processes",
        "2",
    ]
    launch += ["--dynamo_backend", "no", "--mixed_precision", "no", "-m", "autogaze_mllm.cli"]
    single = [sys.executable, "-m", "autogaze_mllm.cli"]
    subprocess.run([*single, *command("whole")], env=environment, check=True, stdout=subprocess.DEVNULL)
    process = subprocess.Popen([*single, *command("killed")], env=environment, stdout=subprocess.DEVNULL)
    while not checkpoint_folders(tmp_path / "killed"):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run([*single, *command("killed")], env=environment, check=True, stdout=subprocess.PIPE)
    assert json.loads(done.stdout)["resumed_at"] >= 1
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert not differ(weights(tmp_path / "killed" / "task"), weights(tmp_path / "whole" / "task"))
    subprocess.run([*launch, *command("two")], env=environment, check=True, stdout=subprocess.DEVNULL)
    one, two = ([row["loss"] for row in rows(tmp_path / run)] for run in ("whole", "two"))
    assert one == pytest.approx(two, rel=1e-5)
