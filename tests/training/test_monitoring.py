"""What a run shows of itself: its log, the trackers, the pictures of validation and the curves."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from autogaze_mllm.common.drawing.palette import COLOURS
from autogaze_mllm.common.errors import DivergenceError
from autogaze_mllm.gaze.selection import Selection
from autogaze_mllm.training.config import SearchConfig, TrainingConfig
from autogaze_mllm.training.data.clips import ClipConfig, ClipSource, find_videos
from autogaze_mllm.training.monitoring.curves import PANELS, curves, plot_curves
from autogaze_mllm.training.monitoring.pictures import CELL, ShownClip, kept_patches, moving_picture, sheet
from autogaze_mllm.training.tasks.mosaic_task import MosaicTask
from autogaze_mllm.training.trainer import GazeTrainer, TrainingData

from ..helpers.files.published_folders import small_gaze as published_gaze
from ..helpers.paths import ROOT
from ..helpers.training_models import small_gaze, write_clips


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_clips(folder / "train", 2)
    write_clips(folder / "val", 2)
    return folder


def trainer(videos: Path, run: Path, **changes: Any) -> GazeTrainer:
    gaze, clip = small_gaze(), ClipConfig(2, (1, 1), 64)
    train = ClipSource(find_videos(str(videos)), clip, unreadable=0.5)
    data = TrainingData(train, ClipSource(find_videos(str(videos), "val"), clip, random=False))
    plain = {"steps": 2, "batch_size": 2, "micro_batch": 2, "save_every": 1, "val_every": 1, "val_clips": 2}
    settings = TrainingConfig(**{**plain, "search": SearchConfig(target=(0.05, 0.3), max_patches=4), **changes})
    return GazeTrainer(gaze, MosaicTask(gaze.grid, gaze.processor), data, settings, run, cpu=True, progress=False)


@pytest.fixture(scope="module")
def finished(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps that tensorboard looked at, if it is there."""
    run = tmp_path_factory.mktemp("finished") / "run"
    there = importlib.util.find_spec("tensorboard") is not None
    trainer(videos, run, tracker="tensorboard" if there else "none").train()
    return run


def clip(frames: int = 3) -> ShownClip:
    """White frames; frame t keeps the coarse patch t and, in frame 0 alone, a fine one."""
    grid = small_gaze().grid
    index, frame = torch.tensor([[0, 5, 1, 2]]), torch.tensor([0, 0, 1, 2])
    selection = Selection(index, torch.ones(1, 4, dtype=torch.bool), frame, [2, 1, 1])
    white = torch.ones(frames, 3, 64, 64)
    return ShownClip("a.mp4", white, selection, white, [0.5, 0.25, 0.75], grid)


def test_the_log_has_versions_numbers_checkpoints_and_the_end(finished: Path) -> None:
    lines = (finished / "train.log").read_text().splitlines()
    assert "autogaze-mllm" in lines[0] and torch.__version__ in lines[0]
    text = "\n".join(lines)
    for words in ("steps 0 to 2, 2 videos, 1 processes, batch 2 = 1 rounds of 2 clips", "checkpoint of step 2"):
        assert words in text
    assert sum("validation at step" in line for line in lines) == 3
    row = json.loads((finished / "metrics.jsonl").read_text().splitlines()[0])
    assert f"loss {row['loss']:.4g}" in next(line for line in lines if "step 0 of 2" in line)
    assert lines[-1].endswith("INFO done")


def test_the_log_says_how_a_run_ended_and_is_that_run_s_alone(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(DivergenceError):
        trainer(videos, tmp_path, optimizer="sgd", lr=1e30, steps=5, schedule="constant").train()
    (line,) = [line for line in (tmp_path / "train.log").read_text().splitlines() if "ERROR" in line]
    assert "ended by DivergenceError" in line and "a lower --lr may help" in line
    files = [one for one in logging.getLogger("autogaze_mllm.run").handlers if isinstance(one, logging.FileHandler)]
    assert not any(str(tmp_path) in one.baseFilename for one in files)
    trainer(videos, tmp_path / "next", val_clips=0, steps=1).train()
    assert "ended by" not in (tmp_path / "next/train.log").read_text()


def test_warnings_are_in_the_log_and_on_the_screen(
    videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trainer(videos, tmp_path, val_clips=0)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    run.data.train.paths[0] = broken
    run.train()
    assert "another video takes its place" in (tmp_path / "train.log").read_text()
    assert any("another video takes its place" in record.getMessage() for record in caplog.records)
    assert "checkpoint" not in capsys.readouterr().err  # numbers are for the log alone


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_each_row_of_a_sheet_shows_the_patches_of_its_scale() -> None:
    shown = clip()
    assert shown.title == "a.mp4: 4 of 60 patches kept (6.7 %), loss 0.500"
    coarse, fine = (np.asarray(kept_patches(shown, 0, scale)) for scale in (0, 1))
    assert (coarse[2:30, 2:30] == 255).all() and (coarse[34:, :] < 128).all()
    assert (fine[2:14, 18:30] == 255).all() and (fine[34:, :] < 128).all() and (fine[2:14, 2:14] < 128).all()
    assert tuple(fine[0, 16]) == COLOURS[1]
    page = sheet(shown)
    assert page.height == 2 * 26 + 5 * (CELL + 4)  # frame, all scales, two scales, rebuilt
    pixels = np.asarray(page)
    titles = [pixels[2 * 26 + row * (CELL + 4) + 10, 10] for row in range(5)]
    assert [tuple(colour) for colour in titles[2:4]] == [COLOURS[0], COLOURS[1]]


def test_a_film_has_a_picture_for_each_frame() -> None:
    moving = Image.open(io.BytesIO(moving_picture(clip())))
    assert getattr(moving, "n_frames", 1) == 3 and moving.width > 3 * 64


def test_curves_say_what_their_axes_are() -> None:
    rows = [
        {"step": step, "loss": 1.0, "lr": 0.1, "task_loss": 2.0, "val_loss": 3.0, "made_up": 4.0, "val_clips": 2}
        | {"val_patches": 5.0, "val_greedy_patches": 4.0}
        for step in range(3)
    ]
    figure = curves(rows)
    assert figure is not None
    axes = {axis.get_title(): axis for axis in figure.axes}
    assert list(axes) == ["Loss that is minimised", "Reconstruction", "Patches of a clip", "Learning rate", "made_up"]
    assert all(axis.get_xlabel() == "optimizer step" and axis.get_ylabel() for axis in axes.values())
    legend = axes["Reconstruction"].get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == ["training", "validation"]
    colours = {line.get_color() for axis in axes.values() for line in axis.lines if line.get_label() == "validation"}
    assert len(colours) == 1 and axes["Learning rate"].lines[0].get_color() not in colours
    assert curves(rows[:1]) is None
    assert len({name for _, _, lines in PANELS for name in lines}) == sum(len(lines) for _, _, lines in PANELS)


def test_the_last_validation_is_in_the_curves(finished: Path, tmp_path: Path) -> None:
    last = {"step": 2, **json.loads((finished / "validation.json").read_text())}
    plot_curves(finished / "metrics.jsonl", tmp_path / "with.png", last)
    plot_curves(finished / "metrics.jsonl", tmp_path / "without.png")
    drawn = [np.asarray(Image.open(path)) for path in (finished / "curves.png", *sorted(tmp_path.glob("*.png")))]
    assert np.array_equal(drawn[0], drawn[1])
    assert drawn[0].shape != drawn[2].shape or not np.array_equal(drawn[0], drawn[2])


# -- trackers ----------------------------------------------------------------------------------------------------------


def test_tensorboard_gets_pictures_and_a_film(finished: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator

    events = EventAccumulator(str(finished / "tensorboard"), size_guidance={IMAGES: 0}).Reload()
    assert sorted(events.Tags()["images"]) == ["validation/clip-0", "validation/clip-1", "validation/film"]
    assert [image.step for image in events.Images("validation/clip-0")] == [0, 1, 2]
    picture = Image.open(io.BytesIO(events.Images("validation/clip-0")[2].encoded_image_string))
    stored = Image.open(finished / "pictures/step-00000002.png")
    assert np.array_equal(np.asarray(picture), np.asarray(stored.crop((0, 0, *picture.size))))
    moving = Image.open(io.BytesIO(events.Images("validation/film")[0].encoded_image_string))
    assert moving.format == "GIF" and getattr(moving, "n_frames", 1) == 2
    assert [point.step for point in events.Scalars("val_loss")] == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_other_trackers_get_them_too(videos: Path, tmp_path: Path, name: str) -> None:
    """In a process of its own: where they keep things is read when they are imported."""
    pytest.importorskip(name)
    place = tmp_path / ("run/wandb" if name == "wandb" else "trackio")
    published_gaze().save_pretrained(tmp_path / "gaze")
    command = [sys.executable, "-m", "autogaze_mllm.cli", "train-gaze", str(videos), "--out", str(tmp_path / "run")]
    command += ["--init", str(tmp_path / "gaze"), "--frames", "2", "--steps", "2", "--batch-size", "1", "--json"]
    command += ["--max-patches", "4", "--val-every", "1", "--device", "cpu", "--tracker", name]
    given = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1", **given}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["steps"] == 2  # their words are on the other stream
    names = [path.name for path in place.rglob("*") if path.is_file()]  # equal pictures are one file of wandb's
    assert 2 <= sum(one.endswith(".gif") for one in names) <= 3
    assert 4 <= sum(one.endswith(".png") for one in names) <= 6
