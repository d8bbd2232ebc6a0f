"""The losses: next-token prediction on labels, and GRPO on the model's own selections.

docs/specification.md, "Losses of the gaze model", says what is minimised.

Shapes: B rows, n entries over all frames, R rewards of a row, G rows of a group. Rows are group-major: row g * B' + b.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Total = Callable[[torch.Tensor], torch.Tensor]  # sums a number over all processes


@dataclass(frozen=True)
class GazeLoss:
    """All (B,). total is the sum of the other two; what is minimised is its mean."""

    policy: torch.Tensor
    task_loss_prediction: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        return self.policy + self.task_loss_prediction


def alone(value: torch.Tensor) -> torch.Tensor:
    """The sum over the processes when there is one."""
    return value


def _length(mask: torch.Tensor, over_all: Total) -> torch.Tensor:
    """Mean number of entries of a row, over the rows of all processes."""
    rows = mask.new_tensor(float(len(mask)))
    return over_all(mask.sum()) / over_all(rows) + 1e-6


def prediction_loss(
    predicted: torch.Tensor, losses: torch.Tensor, mask: torch.Tensor, over_all: Total = alone
) -> torch.Tensor:
    """Squared error of the predicted losses where they are known; predicted, losses, mask (B, n) -> (B,)."""
    mask = mask.float()
    return (mask * (predicted - losses).square()).sum(dim=1) / _length(mask, over_all)


def ntp_loss(
    log_probs: torch.Tensor,
    predicted: torch.Tensor,
    padded: torch.Tensor,
    losses: torch.Tensor,
    losses_mask: torch.Tensor,
    *,
    predict_loss: bool = True,
    over_all: Total = alone,
) -> GazeLoss:
    """Negative log-likelihood of the labels; all arguments (B, n). Without predict_loss the heads get no gradient."""
    real = (~padded.bool()).float()
    policy = -(real * log_probs).sum(dim=1) / _length(real, over_all)
    return GazeLoss(policy, _heads(predicted, losses, losses_mask * real, predict_loss, over_all))


def grpo_loss(
    log_probs: torch.Tensor,
    predicted: torch.Tensor,
    padded: torch.Tensor,
    reward: torch.Tensor,
    trajectory: torch.Tensor,
    losses: torch.Tensor,
    losses_mask: torch.Tensor,
    *,
    group_size: int,
    discount: float,
    predict_loss: bool = True,
    over_all: Total = alone,
) -> GazeLoss:
    """Policy gradient with the advantage over the group's mean; reward (B, R), trajectory (R,) entries it is about.

    The value of the policy term is minus the summed advantage, its gradient minus the advantage of each entry.
    """
    real = (~padded.bool()).float()
    advantage = entry_advantages(reward, trajectory, padded, group_size, discount)
    policy = -((log_probs - log_probs.detach()).exp() * advantage).sum(dim=1)
    return GazeLoss(policy, _heads(predicted, losses, losses_mask * real, predict_loss, over_all))


def entry_advantages(
    reward: torch.Tensor, trajectory: torch.Tensor, padded: torch.Tensor, group_size: int, discount: float
) -> torch.Tensor:
    """(B, n): each reward minus the mean of its group, discounted by the real entries that follow up to its frame's
    end, summed over rewards; 0 where padded and after the frame."""
    real = (~padded.bool()).float()
    grouped = reward.unflatten(0, (group_size, -1))
    advantage = (grouped - grouped.mean(dim=0, keepdim=True)).flatten(0, 1)
    result = torch.zeros_like(real)
    slots = torch.arange(real.shape[1], device=real.device)
    for number, length in enumerate(trajectory.tolist()):
        inside = real * (slots < length)
        following = inside.flip(1).cumsum(1).flip(1) - 1  # real entries in [j, length), itself not counted
        result = result + advantage[:, number, None] * discount ** following.clamp(min=0) * inside
    return result


def _heads(
    predicted: torch.Tensor, losses: torch.Tensor, mask: torch.Tensor, wanted: bool, over_all: Total
) -> torch.Tensor:
    # Without the term the heads still stand in the graph, so that distributed training finds every parameter used.
    return prediction_loss(predicted, losses, mask, over_all) if wanted else 0.0 * predicted.mean(dim=1)
