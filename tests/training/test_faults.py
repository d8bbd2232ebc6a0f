"""Runs of gaze training that meet damaged checkpoints, impossible numbers, a full disk and each other."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from autogaze_mllm import InputError
from autogaze_mllm.cli import main
from autogaze_mllm.common.errors import DivergenceError
from autogaze_mllm.common.storage.locks import run_lock
from autogaze_mllm.training.config import SearchConfig, TrainingConfig
from autogaze_mllm.training.data.clips import ClipConfig, ClipSource, find_videos
from autogaze_mllm.training.data.labels import read_labels
from autogaze_mllm.training.run_folder.checkpoints import checkpoint_folders
from autogaze_mllm.training.tasks.mosaic_task import MosaicTask
from autogaze_mllm.training.trainer import GazeTrainer, TrainingData

from ..helpers.training_models import small_gaze, write_clips


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_clips(folder / "train", 4)
    return folder


def trainer(videos: Path, run: Path, **changes: Any) -> GazeTrainer:
    gaze = small_gaze()
    plain = {"steps": 3, "batch_size": 2, "micro_batch": 2, "save_every": 1, "keep": 5, "val_clips": 0}
    search = SearchConfig(target=(0.05, 0.3), max_patches=4)
    data = TrainingData(ClipSource(find_videos(str(videos)), ClipConfig(1, (1, 1), 64)))
    settings = TrainingConfig(**{"search": search, **plain, **changes})  # type: ignore[arg-type]
    return GazeTrainer(gaze, MosaicTask(gaze.grid, gaze.processor), data, settings, run, cpu=True, progress=False)


@pytest.fixture(scope="module")
def whole(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps with a checkpoint of each."""
    run = tmp_path_factory.mktemp("whole") / "run"
    trainer(videos, run).train()
    return run


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


OPTIMIZER, STATE, GAZE = "optimizer.safetensors", "state.json", "gaze/model.safetensors"
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no state": (lambda f: (f / STATE).unlink(), "state.json"),
    "cut state": (lambda f: cut(f / STATE), "not readable as json"),
    "state of a list": (lambda f: (f / STATE).write_text("[3]"), "expected a json object"),
    "no step": (lambda f: (f / STATE).write_text("{}"), "'step' is missing"),
    "step as text": (lambda f: change(f / STATE, step="3"), "'step' must be a whole number"),
    "another step": (lambda f: change(f / STATE, step=1), "is of step 1"),
    "no optimizer": (lambda f: (f / OPTIMIZER).unlink(), OPTIMIZER),
    "cut optimizer": (lambda f: cut(f / OPTIMIZER), OPTIMIZER),
    "odd names": (lambda f: rewrite(f / OPTIMIZER, lambda t: t.update(a=torch.zeros(1))), "left over"),
    "half a state": (lambda f: rewrite(f / OPTIMIZER, lambda t: t.pop("0/exp_avg")), "missing: 0/exp_avg"),
    "no state in it": (lambda f: rewrite(f / OPTIMIZER, lambda t: t.clear()), "holds nothing"),
    "other shapes": (
        lambda f: rewrite(f / OPTIMIZER, lambda t: t.update({"0/exp_avg": torch.zeros(3)})),
        "another shape",
    ),
    "no weights": (lambda f: shutil.rmtree(f / "gaze"), "model.safetensors"),
    "cut weights": (lambda f: cut(f / GAZE), "damaged"),
    "a weight less": (lambda f: rewrite(f / GAZE, lambda t: t.pop(next(iter(t)))), "missing"),
    "not finite": (lambda f: rewrite(f / GAZE, lambda t: t[next(iter(t))].fill_(float("nan"))), "not finite"),
    "no hints": (lambda f: (f / "hints.safetensors").unlink(), "hints.safetensors"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_the_newest_whole_checkpoint_is_taken_and_the_others_are_told_of(
    videos: Path, whole: Path, tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    damage, told = DAMAGES[what]
    damage(tmp_path / "run/checkpoints/step-00000003")
    found = trainer(videos, tmp_path / "run")
    assert found.first_step == 2
    (line,) = [record.getMessage() for record in caplog.records if "passed over" in record.getMessage()]
    assert told in line and "going on from step-00000002" in line and "\n" not in line
    stored = load_file(whole / "checkpoints/step-00000002" / GAZE)
    assert all(torch.equal(value, stored[name]) for name, value in found.gaze.state_dict().items())
    if what in ("half a state", "cut weights"):  # and the end is that of the run which nothing happened to
        trained, expected = found.train().state_dict(), load_file(whole / GAZE)
        assert all(torch.equal(value, expected[name]) for name, value in trained.items())


def test_without_a_whole_checkpoint_nothing_is_begun_over_what_is_there(
    videos: Path, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    for folder in checkpoint_folders(tmp_path / "run"):
        cut(folder / OPTIMIZER)
    with pytest.raises(InputError, match=r"no checkpoint is whole: step-00000003 .*; step-00000001"):
        trainer(videos, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"optimizer": "sgd", "weight_decay": 1e30}, "the weights after step 1 are not finite, nothing was saved"),
        ({"optimizer": "sgd", "convolution_lr": 1e10}, "step 0: the learning rate .* too large"),
        ({"optimizer": "adamw", "weight_decay": 1e30}, "the weights after step 1 are not finite, nothing was saved"),
    ],
)
def test_weights_that_are_not_finite_are_not_saved(
    videos: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    """The loss of the last step is looked at before that step is made."""
    run = trainer(videos, tmp_path, steps=1, lr=1e30, schedule="constant", clip_norm=None, **changes)
    with pytest.raises(DivergenceError, match=told):
        run.train()
    assert not list(tmp_path.rglob("*.safetensors")) and "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_another_run_in_the_same_folder_is_refused_with_the_differences(
    videos: Path, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    others: dict[str, tuple[dict[str, Any], str]] = {
        "labels": ({"labels": ["a"]}, "labels: \\[\\] -> \\['a'\\]"),
        "init": ({"init": "b"}, "init: new -> b"),
    }
    change(tmp_path / "run/settings.json", labels=[], init="new")
    for given, told in others.values():
        with pytest.raises(InputError, match=told):
            _with(videos, tmp_path / "run", identity={"labels": [], "init": "new", **given})
    with pytest.raises(InputError, match=r"gaze\.gazing_ratio_config\.fixed\.gazing_ratio: 0\.5 -> 0\.25"):
        _with(videos, tmp_path / "run", ratio=0.25)
    with pytest.raises(InputError, match="video_files: "):
        write_clips(tmp_path / "other/train", 4, frames=8)
        trainer(tmp_path / "other", tmp_path / "run")
    assert _with(videos, tmp_path / "run", identity={"labels": [], "init": "new"}).first_step == 3


def _with(videos: Path, run: Path, ratio: float = 0.5, **more: Any) -> GazeTrainer:
    import dataclasses

    gaze = small_gaze()
    gaze.config = dataclasses.replace(gaze.config, budget=dataclasses.replace(gaze.config.budget, ratio=ratio))
    plain = trainer(videos, run.parent / "unused")
    task = MosaicTask(gaze.grid, gaze.processor)
    return GazeTrainer(gaze, task, plain.data, plain.settings, run, cpu=True, progress=False, **more)


def test_a_second_process_is_refused_while_the_first_trains(videos: Path, tmp_path: Path) -> None:
    run = trainer(videos, tmp_path)
    with run_lock(tmp_path):  # this process, which may
        if not (child := os.fork()):
            try:
                run.train()
            except InputError as error:
                os._exit(7 if f"another process ({os.getppid()} on " in str(error) else 8)
            os._exit(9)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert not (tmp_path / "metrics.jsonl").exists()


NUMBERS = {
    "--lr=nan": "lr must be a finite number",
    "--lr=inf": "lr must be a finite number",
    "--weight-decay=nan": "weight_decay must be a finite number",
    "--min-lr=-inf": "min_lr must be a finite number",
    "--target=0.1:inf": "target must be a finite number",
    "--temperature=nan": "temperature must be a finite number",
    "--epochs=inf": "--epochs must be a number above 0",
    "--epochs=nan": "--epochs must be a number above 0",
    "--epochs=1e300": "steps must be a finite number, and not that large",
    "--strides=nan": "expected numbers",
    "--strides=1:inf": "expected numbers",
    "--seed=-1": "seed must lie in [0, 2**32 - 1]",
    "--seed=99999999999": "seed must lie in [0, 2**32 - 1]",
    "--ratio=fixed:nan": "expected numbers",
    "--requirement=uniform:0.1:inf": "expected numbers",
    "--unreadable=nan": "--unreadable is a share",
    "--steps=999999999999999999999999": "not that large",
    "--hint-weight=inf": "hint_weight must be a finite number",
}


@pytest.mark.parametrize("option", NUMBERS)
def test_numbers_that_are_none_are_refused_at_the_option(
    videos: Path, tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train-gaze", str(videos), "--out", str(tmp_path / "run"), "--device", "cpu", option]) == 2
    line = capsys.readouterr().err.strip()
    assert NUMBERS[option] in line and "\n" not in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("label", "told"),
    [
        ([], "a label needs"),
        ({"gazing_pos": [[1]], "task_losses": [["a"]]}, "'task_losses' must be a list"),
        ({"gazing_pos": [[1.5]], "task_losses": [[0.1]]}, "'gazing_pos' must be a list"),
        ({"gazing_pos": [[-3]], "task_losses": [[0.1]]}, "below 0"),
        ({"gazing_pos": "abc", "task_losses": "abc"}, "'gazing_pos' must be a list"),
        ({"gazing_pos": [[1]], "task_losses": [[float("nan")]]}, "'task_losses' must be a list"),
    ],
)
def test_labels_of_wrong_types_are_named(tmp_path: Path, label: Any, told: str) -> None:
    (tmp_path / "labels.json").write_text(json.dumps({"a/b/c.mp4": label}))
    with pytest.raises(InputError, match=told) as error:
        read_labels(str(tmp_path / "labels.json"))
    assert "labels.json: a/b/c.mp4" in str(error.value)


def test_a_process_that_trained_in_another_precision_is_one_line(videos: Path, tmp_path: Path) -> None:
    """As a notebook has it that fine-tuned a model in bf16 before."""
    AcceleratorState._reset_state(True)
    Accelerator(mixed_precision="bf16", cpu=True)
    try:
        with pytest.raises(InputError, match="trained in another precision"):
            trainer(videos, tmp_path / "run")
    finally:
        AcceleratorState._reset_state(True)
