"""Losses, schedules, labels and the VideoMAE against results of the published code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from autogaze_mllm.common.errors import InputError
from autogaze_mllm.common.storage.files import write_json
from autogaze_mllm.training.algorithms import GazeLoss, grpo_loss, ntp_loss
from autogaze_mllm.training.data.clips import frame_indices
from autogaze_mllm.training.data.labels import collate_labels
from autogaze_mllm.training.schedules import learning_rate, temperature
from autogaze_mllm.training.tasks.videomae.model import VideoMAEConfig
from autogaze_mllm.training.tasks.videomae.task import VideoMAETask

from ..helpers.golden_data import Tensors, assert_close, load, names, part, video, weights
from ..helpers.training_models import CONFIG

ALGORITHMS = load("algorithms")[0]["cases"] if "algorithms" in names() else []
DATA = load("data")[0]
VIDEOMAE = [(name, case) for name in names("videomae_") for case in load(name)[0]["cases"] if case["impl"] == "sdpa"]


def label(value: object) -> str:
    return value["name"] if isinstance(value, dict) else str(value)


def loss_of(case: dict, kind: str, given: Tensors, log_probs: torch.Tensor, predicted: torch.Tensor) -> GazeLoss:
    wanted = case["optimize_task_loss_prediction"]
    padded, losses, mask = given["if_padded_gazing"].bool(), given["task_losses"], given["task_losses_mask"]
    if kind == "ntp":
        return ntp_loss(log_probs, predicted, padded, losses, mask, predict_loss=wanted)
    return grpo_loss(
        log_probs,
        predicted,
        padded,
        given["reward"],
        given["traj_len_each_reward"],
        losses,
        mask,
        group_size=case["group_size"],
        discount=case["discount_factor"],
        predict_loss=wanted,
    )


@pytest.mark.parametrize("kind", ["ntp", "grpo"])
@pytest.mark.parametrize("case", ALGORITHMS, ids=label)
def test_losses_and_their_gradients(case: dict, kind: str) -> None:
    given = part(load("algorithms")[1], f"{case['name']}/")
    log_probs = given["log_action_probs"].clone().requires_grad_()
    predicted = given["task_loss_prediction"].clone().requires_grad_()
    loss = loss_of(case, kind, given, log_probs, predicted)
    loss.total.mean().backward()
    assert log_probs.grad is not None
    assert predicted.grad is not None
    assert_close(loss.total, given[f"{kind}_loss"], what="loss")
    assert_close(loss.policy, given[f"{kind}_policy_loss"], what="policy")
    assert_close(loss.task_loss_prediction, given[f"{kind}_task_loss_prediction_loss"], what="prediction")
    assert_close(log_probs.grad, given[f"{kind}_grad_log_action_probs"], what="gradient")
    assert_close(predicted.grad, given[f"{kind}_grad_task_loss_prediction"], what="gradient of the prediction")


@pytest.mark.parametrize("case", DATA.get("lr", []), ids=lambda case: case["kind"])
def test_learning_rates(case: dict) -> None:
    rates = [
        learning_rate(case["kind"], step, case["total_iters"], case["lr"], case["min_lr"])
        for step in range(len(case["lr_at_step"]))
    ]
    assert rates == pytest.approx(case["lr_at_step"], abs=1e-12)


@pytest.mark.parametrize("case", DATA.get("temperature", []), ids=lambda case: f"{case['total_steps']}-{case['step']}")
def test_temperature(case: dict) -> None:
    value = temperature(case["step"], case["total_steps"], case["temp_start"], case["temp_end"])
    assert value == pytest.approx(case["value"], rel=1e-9)


@pytest.mark.parametrize(
    "case", DATA.get("frame_indices", []), ids=lambda c: f"{c['clip_len']}-{c['stride']}-{c['total']}"
)
def test_frames_of_a_clip(case: dict) -> None:
    assert frame_indices(case["total"], case["clip_len"], case["stride"]) == case["indices"]


@pytest.mark.parametrize("number", range(len(DATA.get("collate", []))))
def test_collated_labels(number: int) -> None:
    """Labels come as one list for each sample."""
    entry, expected = DATA["collate"][number], part(load("data")[1], f"collate{number}/")
    labels = [
        {"gazing_pos": positions, "task_losses": losses}
        for positions, losses in zip(entry["gazing_pos"], entry["task_losses"], strict=True)
    ]
    before = str(labels)
    batch = collate_labels(labels)
    assert str(labels) == before
    for name, value in batch.items():
        assert_close(value.float(), expected[name].float(), what=name)


@pytest.mark.parametrize(("name", "case"), VIDEOMAE, ids=label)
def test_videomae(name: str, case: dict) -> None:
    about, tensors = load(name)
    task = VideoMAETask(VideoMAEConfig.from_dict(about["config"])).eval()
    task.model.load_state_dict(weights(name))
    info = part(tensors, "inputs/")
    before = info["gazing_pos"].clone()
    result = task(video(name), info, case["frames"])
    expected = part(tensors, f"{case['name']}/")
    assert torch.equal(info["gazing_pos"], before)
    assert_close(result.reconstruction, expected["reconstruction"], what="reconstruction")
    assert_close(result.frame_losses, expected["loss_each_reconstruction_frame"], what="frame losses")
    assert_close(result.loss, expected["loss"], what="loss")
    assert_close(result.reward, expected["reward"], what="reward")
    assert_close(result.task_losses, expected["task_losses"], what="task losses")
    assert torch.equal(result.task_losses_mask, expected["task_losses_mask"])
    assert result.traj_len_each_reward.tolist() == expected["traj_len_each_reward"].tolist()
    assert result.kept.tolist() == expected["num_non_padded_gazing_at_each_reconstruction_frame"].tolist()
    assert result.gazing_ratio == pytest.approx(case["metric"]["avg_gazing_ratio_per_frame"])


@pytest.mark.parametrize("prefix", ["", "module."])
def test_videomae_folders(tmp_path: Path, prefix: str) -> None:
    """With a distributed run's prefix, and a plain ViT-MAE, which lacks the embeddings of scale and time."""
    torch.manual_seed(0)
    task = VideoMAETask(VideoMAEConfig.from_dict(CONFIG)).eval()
    task.save_pretrained(tmp_path / "own")
    frames = torch.rand(1, 2, 3, 64, 64)
    info = {
        "gazing_pos": torch.tensor([[0, 7, 25]]),
        "if_padded_gazing": torch.zeros(1, 3, dtype=torch.bool),
        "num_gazing_each_frame": torch.tensor([2, 1]),
    }
    expected = task(frames, info).reconstruction
    folder = tmp_path / "other"
    folder.mkdir()
    stored = {prefix + name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    save_file(stored, folder / "model.safetensors")
    write_json(folder / "config.json", CONFIG)
    assert torch.equal(VideoMAETask.from_pretrained(folder)(frames, info).reconstruction, expected)
    assert torch.equal(VideoMAETask.from_pretrained(tmp_path / "own")(frames, info).reconstruction, expected)
    plain = {name: tensor for name, tensor in stored.items() if "scale_embed" not in name and "time_embed" not in name}
    save_file(plain, folder / "model.safetensors")
    loaded = VideoMAETask.from_pretrained(folder)
    assert torch.equal(loaded.model.vit.embeddings.cls_token, task.model.vit.embeddings.cls_token)
    assert loaded(frames, info).reconstruction.isfinite().all()
    save_file({name: tensor for name, tensor in plain.items() if "cls_token" not in name}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"missing: vit\.embeddings\.cls_token"):
        VideoMAETask.from_pretrained(folder)


def test_videomae_sees_frames_in_time_order() -> None:
    """What comes later never changes an earlier frame, and padded entries change nothing."""
    torch.manual_seed(0)
    task = VideoMAETask(VideoMAEConfig.from_dict(CONFIG)).eval()
    frames = torch.rand(1, 2, 3, 64, 64)

    def rebuilt(second: list[int], padding: int = 0) -> torch.Tensor:
        ids = [3, 9, *[-1] * padding, *second]
        positions = torch.tensor([ids])
        padded = positions < 0
        counts = torch.tensor([2 + padding, len(second)])
        info = {"gazing_pos": positions, "if_padded_gazing": padded, "num_gazing_each_frame": counts}
        return task(frames, info).reconstruction

    one, other = rebuilt([20, 24]), rebuilt([30])
    assert torch.allclose(one[:, 0], other[:, 0], atol=1e-6)
    assert not torch.allclose(one[:, 1], other[:, 1], atol=1e-3)
    assert torch.allclose(rebuilt([20, 24], padding=2), one, atol=1e-6)
