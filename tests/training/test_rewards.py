"""Learning what a pick earns, beside its label."""

from __future__ import annotations

import pytest
import torch

from autogaze_mllm import AutoGaze, InputError
from autogaze_mllm.training.config import SearchConfig, TrainingConfig
from autogaze_mllm.training.objective import Batch, GazeObjective, relative_gains, soft_targets
from autogaze_mllm.training.search.greedy import search_mosaic
from autogaze_mllm.training.tasks.mosaic_task import MosaicTask

from ..helpers.training_models import busy_clip, small_gaze


def clips(count: int, frames: int) -> torch.Tensor:
    """(count, frames, 3, 64, 64) uint8."""
    return torch.stack([torch.from_numpy(busy_clip(seed, frames, 64)).permute(0, 3, 1, 2) for seed in range(count)])


def loss_of(gaze: AutoGaze, task: MosaicTask, frames: torch.Tensor) -> float:
    """What six patches of each frame leave of clips."""
    pixels = frames.float() / 255
    info = gaze.eval().generate(gaze.processor.prepare(pixels), 6.5 / gaze.grid.size, do_sample=False)
    gaze.train()
    return float(task(task.normalize(pixels), info).frame_losses.mean())


def test_a_reward_is_averaged_over_what_the_model_would_pick() -> None:
    """Against probabilities that are asked for one patch at a time."""
    gaze = small_gaze().eval()
    task = MosaicTask(gaze.grid, gaze.processor)
    video = task.normalize(clips(2, 2).float() / 255)
    found = search_mosaic(task, video, torch.zeros(2, 2), torch.tensor([[6, 6], [6, 3]]), with_gains=True)
    worth, real = relative_gains(found, 3e-4), found.ids >= 0
    assert worth.max() == 1 and (worth >= 0).all()
    picked = worth[real].gather(1, found.ids[real][:, None]).squeeze(1)
    assert torch.allclose(picked, worth[real].amax(dim=-1), atol=1e-3)  # a search takes the best

    def scored(**given: torch.Tensor) -> torch.Tensor:
        return gaze.score(video, found.info(gaze.grid), match_generation=True, **given)[0].detach()

    labels = soft_targets(found, SearchConfig())
    added = scored(targets=labels, rewards=worth) - scored(targets=labels)
    mean, total = torch.zeros_like(added), torch.zeros_like(added)
    for patch in range(gaze.grid.size):
        one = torch.zeros_like(labels)
        one[..., patch] = 1.0
        share = scored(targets=one).exp()
        mean, total = mean + share * worth[..., patch], total + share
    assert torch.allclose(total[real], torch.ones_like(total[real]), atol=1e-5)
    assert torch.allclose(added[real], mean[real], atol=1e-5)
    assert (added[~real] == 0).all() and (~real).any()


@pytest.mark.parametrize("share", [0.0, 0.9])
def test_labels_alone_and_with_rewards_teach_what_lowers_the_loss(share: float) -> None:
    gaze = small_gaze().train()
    task, frames = MosaicTask(gaze.grid, gaze.processor), clips(2, 2)
    search = SearchConfig(max_patches=6, disturbance=0.0)
    objective = GazeObjective(gaze, task, TrainingConfig(hint_weight=0.0, reward_share=share, search=search))
    optimizer, before = torch.optim.Adam(gaze.parameters(), lr=5e-3), loss_of(gaze, task, frames)
    for _ in range(40):
        optimizer.zero_grad()
        objective(Batch(frames, [0, 1])).loss.backward()
        optimizer.step()
    assert loss_of(gaze, task, frames) < 0.9 * before


def test_the_policy_loss_is_labels_and_rewards_in_the_given_shares() -> None:
    """Straight from one to the other, and what is earned is some part of what could be."""
    frames, losses = clips(2, 2), {}
    for share in (0.0, 0.5, 0.9):
        gaze = small_gaze().train()
        search = SearchConfig(max_patches=6, disturbance=0.0)
        settings = TrainingConfig(hint_weight=0.0, reward_share=share, search=search)
        outcome = GazeObjective(gaze, MosaicTask(gaze.grid, gaze.processor), settings)(Batch(frames, [0, 1]))
        losses[share] = float(outcome.metrics["policy_loss"])
    earned = {share: ((1 - share) * losses[0.0] - losses[share]) / share for share in (0.5, 0.9)}
    assert earned[0.5] == pytest.approx(earned[0.9], abs=1e-4)
    assert 0.05 < earned[0.9] < 1


def test_rewards_that_nothing_could_be_made_of_are_refused() -> None:
    for changed in ({"algorithm": "grpo"}, {"log_probabilities": "published"}, {"search": SearchConfig(sharpness=0)}):
        with pytest.raises(InputError, match="reward_share"):
            TrainingConfig(reward_share=0.5, **changed)  # type: ignore[arg-type]
    gaze = small_gaze()
    with pytest.raises(InputError, match="labels are given"):
        GazeObjective(gaze, MosaicTask(gaze.grid), TrainingConfig(reward_share=0.5), labels_given=True)
