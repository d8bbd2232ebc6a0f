"""Measuring selections: the numbers of a clip, and the generated training videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from autogaze_mllm import GreedySelector, InputError, PatchGrid, PixelDiffSelector, RandomSelector
from autogaze_mllm.gaze.selectors.baselines import AllSelector
from autogaze_mllm.training.reconstruction.matching import match
from autogaze_mllm.training.reconstruction.scores import calibration, heat_map, mean_psnr, score_clip
from autogaze_mllm.training.reconstruction.selectors import own_unit
from autogaze_mllm.training.reconstruction.settings import PUBLISHED, Setting
from autogaze_mllm.training.tasks.mosaic_task import MosaicTask
from autogaze_mllm.video.reader import VideoReader

from ..helpers.programs import run_script
from ..helpers.training_models import busy_clip

GRID = PatchGrid.of("32+64", 16)
CPU = torch.device("cpu")


def clip(seed: int = 0, frames: int = 4) -> torch.Tensor:
    return torch.from_numpy(busy_clip(seed, frames)).permute(0, 3, 1, 2)


def test_settings_are_read() -> None:
    settings = [Setting.parse(name) for name in PUBLISHED.split(",")]
    assert [(s.ratio, s.loss) for s in settings] == [
        (0.10, None),
        (0.25, None),
        (0.50, None),
        (0.75, None),
        (1.00, None),
        (1.00, 0.70),
        (0.75, 0.70),
    ]
    assert [s.limited for s in settings] == [True] * 5 + [False, True]
    wrong_ones = ("", "ratio", "ratio_x", "ratio_1.5", "size_3", "ratio_0.5_task", "task_nan", "ratio_0.1_ratio_0.2")
    for wrong in wrong_ones:
        with pytest.raises(InputError, match=r"expected ratio_0\.25"):
            Setting.parse(wrong)


def test_scores_are_those_of_the_pictures() -> None:
    pixels, task = clip(), MosaicTask(GRID)
    score = score_clip(pixels, RandomSelector(), Setting.parse("ratio_0.30"), task, CPU)
    for number, frame in enumerate(score.frames):
        original = pixels[number].numpy() / 255.0
        rebuilt = score.rebuilt[number].numpy().astype(np.float64)
        assert frame.patches == 6
        assert frame.ratio == pytest.approx(0.3)
        assert frame.mae == pytest.approx(np.abs(rebuilt - original).mean(), rel=1e-4)
        assert frame.psnr == pytest.approx(peak_signal_noise_ratio(original, rebuilt, data_range=1), abs=0.01)
        similar = structural_similarity(original, rebuilt, channel_axis=0, data_range=1)
        assert frame.ssim == pytest.approx(similar, abs=1e-3)
        assert not frame.stopped
    whole = peak_signal_noise_ratio(pixels.numpy() / 255.0, score.rebuilt.numpy().astype(np.float64), data_range=1)
    assert mean_psnr([frame.mse for frame in score.frames], 0) == pytest.approx(whole, abs=0.01)
    everything = score_clip(pixels, AllSelector(), Setting.parse("ratio_1.00"), task, CPU)
    assert all(frame.exact and frame.psnr is None for frame in everything.frames)
    assert not any(frame.exact for frame in score.frames)
    assert mean_psnr([frame.mse for frame in everything.frames], 4) is None
    assert everything.mean("loss") == pytest.approx(0, abs=1e-5)
    assert everything.patches == 4 * GRID.size


def test_others_are_counted_at_the_same_error() -> None:
    """Greedy search is what it is matched with, and random choice needs several times as much."""
    pixels, task = clip(frames=6), MosaicTask(GRID)
    score = score_clip(pixels, GreedySelector(), Setting.parse("task_0.15"), task, CPU)
    matched = match(pixels, score, task, CPU)
    assert matched.patches == matched.greedy == score.patches
    assert matched.random >= 2 * matched.patches
    frames = pixels[None].float() / 255
    for shown in (PixelDiffSelector().select(frames, GRID, 1.0, 0.0), RandomSelector().select(frames, GRID, 1.0, None)):
        assert matched.pixel_diff <= int((~shown.if_padded_gazing).sum())
    measured = calibration([score])
    assert measured is not None
    assert 0.3 < measured <= 1.0  # greedy search stops below what was asked, never above


def test_loss_in_the_unit_of_pixel_diff() -> None:
    task = MosaicTask(GRID)
    assert own_unit(GreedySelector(), 0.7, task) == 0.7
    assert own_unit(PixelDiffSelector(), None, task) is None
    # Black to white is 2 / 0.229, 2 / 0.224 and 2 / 0.225 in the values that the gaze model sees.
    assert own_unit(PixelDiffSelector(), 0.7, task) == pytest.approx(0.7 / 8.85, rel=0.01)


def test_heat_map_counts_places() -> None:
    score = score_clip(clip(), AllSelector(), Setting.parse("ratio_1.00"), MosaicTask(GRID), CPU)
    assert heat_map([score], GRID) == pytest.approx(np.full((4, 4), 2.0))  # once at each of two scales


def test_generated_videos_do_not_depend_on_how_many(tmp_path: Path) -> None:
    """The second run continues the first; its files are those that a run from nothing writes, but for what numpy rounds
    differently from one place in memory to another."""
    plain = ["--val", "1", "--frames", "6", "--workers", "1"]
    for folder, counts in (("grown", ["1", "3"]), ("whole", ["3"])):
        for count in counts:
            assert run_script("make_training_videos", tmp_path / folder, "--train", count, *plain) == 0
    names = ["train/000000.mp4", "train/000001.mp4", "train/000002.mp4", "val/000000.mp4"]
    pictures = []
    for name in names:
        one, other = (next(VideoReader(tmp_path / folder / name).read()).frames for folder in ("grown", "whole"))
        assert len(one) == 6
        assert one.shape == other.shape and np.abs(one.astype(int) - other).mean() < 0.5
        pictures.append(one)
    assert len({picture.tobytes() for picture in pictures}) == 4
