"""Training runs: they learn, go on after a kill, and do not depend on the number of processes."""

from __future__ import annotations

import importlib.util
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
from autogaze_mllm.gaze.autogaze.config import BudgetConfig
from autogaze_mllm.training.config import SearchConfig, TrainingConfig
from autogaze_mllm.training.data.clips import ClipConfig, ClipSource, find_videos
from autogaze_mllm.training.data.labels import key_of, read_labels
from autogaze_mllm.training.run_folder.checkpoints import checkpoint_folders
from autogaze_mllm.training.tasks.mosaic_task import MosaicTask
from autogaze_mllm.training.tasks.videomae.model import VideoMAEConfig
from autogaze_mllm.training.tasks.videomae.task import VideoMAETask
from autogaze_mllm.training.trainer import GazeTrainer, TrainingData

from ..helpers.forked import start
from ..helpers.paths import ROOT
from ..helpers.training_models import CONFIG, small_gaze, write_clips

SEARCH = SearchConfig(target=(0.05, 0.3), max_patches=10)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with 12 clips, val/ with 3."""
    folder = tmp_path_factory.mktemp("videos")
    write_clips(folder / "train", 12)
    write_clips(folder / "val", 3)
    return folder


def data(videos: Path, frames: int = 2, **settings: object) -> TrainingData:
    clip = ClipConfig(frames, (1, 2), 64, min_crop=0.5, mirror=True)
    train = ClipSource(find_videos(str(videos)), clip, **settings)  # type: ignore[arg-type]
    return TrainingData(
        train, ClipSource(find_videos(str(videos), "val"), ClipConfig(frames, (1, 1), 64), random=False)
    )


def settings(**changes: object) -> TrainingConfig:
    plain = {
        "steps": 6,
        "batch_size": 4,
        "micro_batch": 4,
        "lr": 3e-3,
        "save_every": 2,
        "val_every": 100,
        "val_clips": 0,
    }
    return TrainingConfig(**{"search": SEARCH, **plain, **changes})  # type: ignore[arg-type]


def trainer(gaze: AutoGaze, given: TrainingData, chosen: TrainingConfig, run: Path, **more: int) -> GazeTrainer:
    task = MosaicTask(gaze.grid, gaze.processor)
    return GazeTrainer(gaze, task, given, chosen, run, cpu=True, progress=False, **more)


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_next_token_prediction_learns(videos: Path, tmp_path: Path) -> None:
    """The policy loss comes down towards the entropy of the labels, and the loss prediction gets near."""
    chosen = settings(steps=60, batch_size=8, micro_batch=8, val_clips=2, val_ratio=0.5, val_loss=0.1, save_every=100)
    run = trainer(small_gaze(), data(videos), chosen, tmp_path)
    model = run.train()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]

    def mean(name: str, part: list[dict]) -> float:
        return sum(row[name] for row in part) / len(part)

    def excess(part: list[dict]) -> float:
        return mean("policy_loss", part) - mean("label_entropy", part)

    assert excess(rows[-10:]) < 0.6 * excess(rows[:5])
    assert mean("prediction_loss", rows[-10:]) < 0.5 * mean("prediction_loss", rows[:5])
    again = AutoGaze.from_pretrained(tmp_path / "gaze")
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert run.validation["val_loss"] < rows[0]["val_loss"]
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"step-00000000.png", "step-00000060.png"}


def test_resumed_run_has_the_losses_of_an_uninterrupted_one(videos: Path, tmp_path: Path) -> None:
    """Stopped by an error in the middle of step 4, of which nothing was kept; step 3 was not kept either."""
    whole = trainer(small_gaze(), data(videos), settings(), tmp_path / "whole").train()
    broken = trainer(small_gaze(), data(videos), settings(), tmp_path / "broken")
    seen = 0

    def stop(*_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == 4:
            raise KeyboardInterrupt

    broken.objective.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    assert [folder.name for folder in checkpoint_folders(tmp_path / "broken")] == ["step-00000002"]
    resumed = trainer(small_gaze(seed=5), data(videos), settings(), tmp_path / "broken")
    assert resumed.first_step == 2
    model = resumed.train()
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in whole.state_dict().items())
    assert len(checkpoint_folders(tmp_path / "broken")) == 2  # the newest two


def test_a_run_in_two_pieces_is_the_run_in_one(videos: Path, tmp_path: Path) -> None:
    whole = trainer(small_gaze(), data(videos), settings(), tmp_path / "whole").train()
    trainer(small_gaze(), data(videos), settings(), tmp_path / "pieces", until=2).train()
    assert losses(tmp_path / "pieces") == losses(tmp_path / "whole")[:2]
    model = trainer(small_gaze(seed=5), data(videos), settings(), tmp_path / "pieces").train()
    assert losses(tmp_path / "pieces") == losses(tmp_path / "whole")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in whole.state_dict().items())


def test_a_run_with_other_settings_is_refused(videos: Path, tmp_path: Path) -> None:
    trainer(small_gaze(), data(videos), settings(steps=2), tmp_path).train()
    with pytest.raises(InputError, match=r"other settings.*\(lr: 0.003 -> 0.0001\)"):
        trainer(small_gaze(), data(videos), settings(steps=2, lr=1e-4), tmp_path)
    trainer(small_gaze(), data(videos), settings(steps=2, keep=5), tmp_path)


def test_a_run_begun_before_there_was_a_setting_goes_on_with_its_default(videos: Path, tmp_path: Path) -> None:
    trainer(small_gaze(), data(videos), settings(steps=2), tmp_path).train()
    path = tmp_path / "settings.json"
    stored = json.loads(path.read_text())
    del stored["prediction_weight"], stored["search"]["sharpness"]
    path.write_text(json.dumps(stored))
    with pytest.raises(InputError, match=r"other settings.*\(prediction_weight: 1.0 -> 2.0\)"):
        trainer(small_gaze(), data(videos), settings(steps=2, prediction_weight=2.0), tmp_path)
    assert trainer(small_gaze(), data(videos), settings(steps=2), tmp_path).first_step > 0


def test_accumulated_gradients_see_every_clip_once(videos: Path, tmp_path: Path) -> None:
    """Two rounds of two clips read what one round of four reads, so the first loss is nearly the same: only the
    lengths that losses are divided by are those of half of the batch."""
    trainer(small_gaze(), data(videos), settings(steps=3), tmp_path / "one").train()
    trainer(small_gaze(), data(videos), settings(steps=3, micro_batch=2), tmp_path / "two").train()
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=0.02)
    with pytest.raises(InputError, match="not a multiple"):
        settings(batch_size=4, micro_batch=3).accumulation(1)


def test_grpo_raises_the_reward(videos: Path, tmp_path: Path) -> None:
    gaze = small_gaze()
    budget = BudgetConfig(ratio=0.2)
    gaze.config = type(gaze.config)(**{**vars(gaze.config), "budget": budget})
    chosen = settings(algorithm="grpo", steps=40, group_size=6, lr=5e-3, schedule="constant", save_every=100)
    trainer(gaze, data(videos), chosen, tmp_path).train()
    rewards = [json.loads(line)["reward"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert sum(rewards[-8:]) / 8 > sum(rewards[:8]) / 8 + 0.05


@pytest.mark.parametrize("strategy", ["uniform", "dirichlet", "self"])
def test_grpo_with_every_budget_strategy(videos: Path, tmp_path: Path, strategy: str) -> None:
    gaze = small_gaze()
    budget = BudgetConfig(
        ratio_training="exponential",
        exponential_range=(0.1, 0.6),
        frame_training=strategy,  # type: ignore[arg-type]
        use_requirement_training=True,
        requirement_training="uniform",
        requirement_range=(0.1, 0.5),
    )
    gaze.config = type(gaze.config)(**{**vars(gaze.config), "budget": budget})
    trainer(gaze, data(videos), settings(algorithm="grpo", steps=2, group_size=3), tmp_path).train()
    assert all(loss == loss for loss in losses(tmp_path))


def test_the_reconstruction_model_is_trained(videos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    gaze, task = small_gaze(), VideoMAETask(VideoMAEConfig.from_dict(CONFIG), sample_rate=0.5)
    before = {name: tensor.clone() for name, tensor in gaze.state_dict().items()}
    chosen = settings(algorithm="grpo", steps=30, group_size=2, train_gaze=False, train_task=True, schedule="constant")
    run = GazeTrainer(gaze, task, data(videos), chosen, tmp_path, cpu=True, progress=False)
    run.train()
    curve = losses(tmp_path)
    assert sum(curve[-5:]) < 0.8 * sum(curve[:5])
    assert all(torch.equal(gaze.state_dict()[name], value) for name, value in before.items())
    assert VideoMAETask.from_pretrained(tmp_path / "task").grid == gaze.grid
    resumed = GazeTrainer(small_gaze(), task, data(videos), chosen, tmp_path, cpu=True, progress=False)
    assert resumed.first_step == 30


@pytest.mark.parametrize("algorithm", ["ntp", "grpo"])
def test_mixed_precision_changes_little(videos: Path, tmp_path: Path, algorithm: str) -> None:
    for precision in ("no", "bf16"):
        chosen = settings(algorithm=algorithm, steps=2, group_size=3, precision=precision)
        trainer(small_gaze(), data(videos), chosen, tmp_path / precision).train()
    assert losses(tmp_path / "bf16")[0] == pytest.approx(losses(tmp_path / "no")[0], rel=0.02)


def test_unreadable_files_are_replaced_up_to_a_share(videos: Path, tmp_path: Path) -> None:
    paths = find_videos(str(videos))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    clip = ClipConfig(2, (1, 1), 64)
    source = ClipSource([*paths, broken], clip, unreadable=0.1)
    assert source.clip(len(paths)).path != broken
    assert list(source.failed) == [broken]
    with pytest.raises(InputError, match="1 of 13 videos cannot be read"):
        ClipSource([*paths, broken], clip, unreadable=0.05).clip(len(paths))


def test_decoded_frames_are_kept(videos: Path, tmp_path: Path) -> None:
    """Clips from the stored frames are those from the file; the file is not opened again."""
    path = tmp_path / "clip.mp4"
    path.write_bytes(find_videos(str(videos))[0].read_bytes())
    clip = ClipConfig(3, (1, 1), 64)
    fresh = ClipSource([path], clip).clip(0, epoch=3).pixels
    first = ClipSource([path], clip, decoded=tmp_path / "frames").clip(0, epoch=3).pixels
    assert torch.equal(first, fresh)
    (stored,) = (tmp_path / "frames").iterdir()
    written = stored.stat().st_mtime_ns
    assert torch.equal(ClipSource([path], clip, decoded=tmp_path / "frames").clip(0, epoch=3).pixels, fresh)
    assert stored.stat().st_mtime_ns == written


def command(videos: Path, run: Path, *more: str) -> list[str]:
    plain = ["--frames", "1", "--batch-size", "2", "--save-every", "1", "--val-clips", "0", "--max-patches", "4"]
    return ["train-gaze", str(videos), "--out", str(run), "--device", "cpu", "--json", *plain, *more]


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(videos: Path, tmp_path: Path) -> None:
    """And a killed run goes on from its newest whole checkpoint, with the same losses."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_machines",
        "1",
        "--dynamo_backend",
        "no",
    ]
    launch += ["--mixed_precision", "no", "-m", "--num_processes", "2", "autogaze_mllm.cli"]
    subprocess.run([*launch, *command(videos, tmp_path / "two", "--steps", "4")], env=environment, check=True)
    single = [sys.executable, "-m", "autogaze_mllm.cli", *command(videos, tmp_path / "one", "--steps", "4")]
    process = subprocess.Popen(single, env=environment)
    while not checkpoint_folders(tmp_path / "one"):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run(single, env=environment, check=True, stdout=subprocess.PIPE)
    assert json.loads(done.stdout)["resumed_at"] >= 1
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), rel=1e-5)


def test_labels_are_searched_written_and_trained_on(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gazing_labels.json"
    arguments = ["label", str(videos), "--out", str(out), "--frames", "2", "--loss", "0.3", "--max-ratio", "0.02"]
    assert main([*arguments, "--shard", "5", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["labels"] == 12
    assert [Path(file).name for file in report["files"]] == [
        f"gazing_labels-{number:05}-of-00003.json" for number in (1, 2, 3)
    ]
    labels = read_labels(str(tmp_path / "gazing_labels-*.json"))
    first = labels[key_of(find_videos(str(videos))[0])]
    assert [min(frame) // 265 for frame in first["gazing_pos"]] == [0, 1]
    assert all(len(frame) <= 5 for frame in first["gazing_pos"])
    run = tmp_path / "run"
    given = ["--labels", str(tmp_path / "gazing_labels-*.json"), "--frames", "2", "--steps", "1", "--batch-size", "2"]
    assert main(["train-gaze", str(videos), "--out", str(run), "--device", "cpu", "--val-clips", "0", *given]) == 0
    assert len(losses(run)) == 1
    again = ["train-gaze", str(videos), "--out", str(run), "--device", "cpu", "--val-clips", "0", *given]
    assert main([*again, "--until", "0"]) == 2
    assert "--until must be at least 1, got 0" in capsys.readouterr().err
    wrong = [*given[:3], "3", *given[4:]]
    assert main(["train-gaze", str(videos), "--out", str(tmp_path / "no"), "--device", "cpu", *wrong]) == 2
    assert "its label has 2 frames, the clips 3" in capsys.readouterr().err


def test_labelling_goes_on_where_it_stopped(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed after a few batches; what is there is not searched again, and other settings are refused."""
    arguments = ["label", str(videos), "--frames", "1", "--loss", "0.3", "--max-ratio", "0.02", "--batch", "1"]
    whole, broken = tmp_path / "whole.json", tmp_path / "broken.json"
    assert main([*arguments, "--out", str(whole), "--workers", "2"]) == 0
    pid = start([*arguments, "--out", str(broken)])
    parts = tmp_path / ".broken.json.parts"
    while len(list(parts.glob("part-*.json"))) < 2:
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    marked = sorted(parts.glob("part-*.json"))[0]
    stored = json.loads(marked.read_text())
    (path,) = stored["labels"]
    stored["labels"][path]["task_losses"][0][0] = 123.0  # stays, if it is not searched again
    marked.write_text(json.dumps(stored))
    assert main([*arguments, "--out", str(broken), "--stride", "2"]) == 2
    assert "(stride: 1 -> 2)" in capsys.readouterr().err
    assert main([*arguments, "--out", str(broken)]) == 0
    expected, found = json.loads(whole.read_text()), json.loads(broken.read_text())
    assert found[path]["task_losses"][0][0] == 123.0
    expected[path]["task_losses"][0][0] = 123.0
    assert found == expected
    assert not parts.exists()


def test_tensorboard_gets_the_numbers_of_the_metrics_file(videos: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer(small_gaze(), data(videos), settings(steps=3, tracker="tensorboard"), tmp_path).train()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert set(events.Tags()["scalars"]) == rows[0].keys() - {"step"}
    for name in events.Tags()["scalars"]:
        assert [(point.step, point.value) for point in events.Scalars(name)] == [
            (row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows
        ]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_tracker_that_is_not_installed_is_named(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(videos, tmp_path, "--steps", "1", "--tracker", "wandb")) == 2
    assert "--tracker wandb needs wandb: pip install 'autogaze_mllm[wandb]'" in capsys.readouterr().err


def test_a_loss_that_is_no_number_ends_a_run_in_one_line(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(videos, tmp_path, "--steps", "5", "--optimizer", "sgd", "--lr", "1e30")) == 3
    assert "the loss of step 1 is not a number; a lower --lr may help" in capsys.readouterr().err.splitlines()[-1]
    assert len(losses(tmp_path)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr", "-1"], "lr -1.0"),
        (["--target", "high"], "expected numbers"),
        (["--ratio", "never:1"], "unknown strategy 'never'"),
        (["--ratio", "exponential:1"], "expected numbers"),
        (["--algorithm", "grpo", "--group-size", "1"], "at least 2 rollouts"),
        (["--init", "nowhere"], "nowhere"),
        (["--task", "nowhere"], "nowhere"),
        (["--labels", "nowhere.json"], "no such label file"),
        (["--train-task"], "no parameters to train"),
    ],
)
def test_bad_input_is_one_line(
    videos: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # 23 s, between the five tries of the hub's client
    assert main(command(videos, tmp_path / "run", "--steps", "1", *arguments)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_newest_checkpoints_are_kept(videos: Path, tmp_path: Path) -> None:
    trainer(small_gaze(), data(videos), settings(steps=4, save_every=1, keep=2), tmp_path).train()
    assert [folder.name[-1] for folder in checkpoint_folders(tmp_path)] == ["3", "4"]


def test_a_clipped_step_is_no_longer_than_it_may_be(videos: Path, tmp_path: Path) -> None:
    """By sgd with a rate of 1 a step is the gradient itself, of which a part belongs to the training aids."""

    def step(limit: float | None, name: str) -> float:
        gaze = small_gaze()
        before = [weight.detach().clone() for weight in gaze.parameters()]
        chosen = settings(steps=1, optimizer="sgd", lr=1.0, schedule="constant", clip_norm=limit)
        after = trainer(gaze, data(videos), chosen, tmp_path / name).train().parameters()
        return sum(float((a.detach() - b).square().sum()) for a, b in zip(after, before, strict=True)) ** 0.5

    assert 0.0001 < step(0.01, "clipped") <= 0.0101
    assert step(None, "free") > 0.05
