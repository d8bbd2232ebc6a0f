"""The feature losses of VideoMAE rewards, on small models written in the hub's layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import Dinov2WithRegistersModel, SiglipModel

from autogaze_mllm.common.errors import InputError
from autogaze_mllm.training.config import TrainingConfig
from autogaze_mllm.training.data.clips import ClipConfig, ClipSource
from autogaze_mllm.training.tasks.registry import load_task
from autogaze_mllm.training.tasks.videomae.features import PixelStatistics, WeightedLosses
from autogaze_mllm.training.tasks.videomae.model import VideoMAEConfig
from autogaze_mllm.training.tasks.videomae.task import VideoMAETask
from autogaze_mllm.training.trainer import GazeTrainer, TrainingData

from ..helpers.files.videomae_files import SMALL, write_networks
from ..helpers.training_models import small_gaze, write_clips

MINE = PixelStatistics(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), scale=1 / 127.5, offset=True)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    return write_networks(tmp_path_factory.mktemp("features"))


def plain_features(name: str, source: str, raw: torch.Tensor) -> torch.Tensor:
    """raw: (n, 3, H, W) in 0..255, normalised as the folder's own processor would."""
    stored = json.loads((Path(source) / "preprocessor_config.json").read_text())
    mean, std = (torch.tensor(stored[key])[:, None, None] for key in ("image_mean", "image_std"))
    pixels = (raw / 255 - mean) / std
    if name == "dinov2_reg":
        model = Dinov2WithRegistersModel.from_pretrained(source).eval()
        states = model(pixels, output_hidden_states=True).hidden_states
        return torch.cat([state[:, 4:] for state in states[-4:]], dim=-1)  # the class token and 3 registers dropped
    model = SiglipModel.from_pretrained(source).vision_model.eval()
    return torch.cat(model(pixels, output_hidden_states=True).hidden_states[-4:], dim=-1)


@pytest.mark.parametrize("name", ["dinov2_reg", "siglip2"])
def test_features_are_the_models_own(name, models) -> None:
    raw, other = torch.rand(2, 2, 3, 64, 64).mul(255).unbind(0)
    ours = [pixels / 127.5 - 1 for pixels in (raw, other)]  # what the task works on: offset, mean and std of 1/2
    ours = [(pixels - 0.5) / 0.5 for pixels in ours]
    measured = WeightedLosses(name, "1", MINE, models)(*ours)
    with torch.no_grad():
        features = [plain_features(name, models[name], pixels) for pixels in (raw, other)]
    wanted = (features[0] - features[1]).square().mean(dim=(1, 2))
    torch.testing.assert_close(measured, wanted, rtol=1e-4, atol=1e-6)


def test_losses_are_added_by_weight_and_reach_the_picture(models) -> None:
    rebuilt, target = torch.randn(2, 2, 3, 64, 64).unbind(0)
    rebuilt.requires_grad_()
    parts = [WeightedLosses(name, "1", MINE, models)(rebuilt, target) for name in ("l1", "dinov2_reg", "siglip2")]
    losses = WeightedLosses("l1+dinov2_reg+siglip2", "1+0.3+2", MINE, models)
    total = losses(rebuilt, target)
    torch.testing.assert_close(total, parts[0] + 0.3 * parts[1] + 2 * parts[2])
    total.sum().backward()
    assert rebuilt.grad is not None and bool(rebuilt.grad.abs().sum() > 0)
    assert not any(parameter.requires_grad for parameter in losses.parameters())
    assert float(losses(target, target).abs().max()) == 0


def test_grpo_learns_from_feature_rewards(models, tmp_path: Path) -> None:
    """The task as `--task FOLDER --task-losses l1+dinov2_reg+siglip2` loads it; only the gaze model changes."""
    torch.manual_seed(0)
    config = VideoMAEConfig(
        **SMALL, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=32, image_size=64, scales="32+64",
    )  # fmt: skip
    VideoMAETask(config).save_pretrained(tmp_path / "task")
    gaze = small_gaze()
    changes = {"loss_type": "l1+dinov2_reg+siglip2", "loss_weights": "1+1+1"}
    task = load_task(str(tmp_path / "task"), gaze.grid, feature_models=models, changes=changes)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    data = TrainingData(ClipSource(write_clips(tmp_path / "videos", 2), ClipConfig(2, side=64)))
    settings = TrainingConfig(algorithm="grpo", steps=2, batch_size=2, group_size=2, schedule="constant", val_clips=0)
    start = {name: value.clone() for name, value in gaze.state_dict().items()}
    trained = GazeTrainer(gaze, task, data, settings, tmp_path / "run", cpu=True, progress=False).train()
    assert any(not torch.equal(value, start[name]) for name, value in trained.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be loaded for the loss dinov2_reg"):
        WeightedLosses("dinov2_reg", "1", MINE, {"dinov2_reg": str(tmp_path)})
