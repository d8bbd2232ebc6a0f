"""One batch of clips to one loss: what NTP and GRPO, with either task, have in common.

It is one module, so that distributed training wraps the models and what is computed with them together.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..common.errors import InputError
from ..gaze.autogaze.model import AutoGaze
from .algorithms import GazeLoss, Total, alone, grpo_loss, ntp_loss
from .config import SearchConfig, TrainingConfig
from .hints import AuxiliaryHead
from .search.greedy import ExplorationNoise, SearchResult, search_mosaic
from .selections import random_selection
from .tasks.base import GazeInput, ReconstructionTask, TaskResult
from .tasks.mosaic_task import MosaicTask


@dataclass(frozen=True)
class Batch:
    """pixels: (B, T, 3, S, S) uint8; seeds: (B,) for what is random about each clip; labels: as `collate_labels` gives
    them, or None where the labels are searched for here; found: those that were searched for already, with gains."""

    pixels: torch.Tensor
    seeds: list[int]
    labels: dict[str, torch.Tensor] | None = None
    found: SearchResult | None = None

    def to(self, device: torch.device) -> Batch:
        labels = self.labels and {name: value.to(device) for name, value in self.labels.items()}
        return Batch(self.pixels.to(device), self.seeds, labels, self.found)


@dataclass(frozen=True)
class Outcome:
    """loss: a number to minimise; metrics: numbers (scalars without gradient) worth a curve."""

    loss: torch.Tensor
    metrics: dict[str, torch.Tensor]


class GazeObjective(nn.Module):
    def __init__(
        self,
        gaze: AutoGaze,
        task: ReconstructionTask,
        settings: TrainingConfig,
        over_all: Total = alone,
        labels_given: bool = False,
    ) -> None:
        super().__init__()
        self.gaze, self.task, self.settings, self.over_all = gaze, task, settings, over_all
        if settings.reward_share and labels_given:
            raise InputError("reward_share is of labels that are searched while training: labels are given")
        self.hints: AuxiliaryHead | None = None
        if settings.hinted and not labels_given and isinstance(task, MosaicTask):
            self.hints = AuxiliaryHead(gaze, task.grid, settings.search.floor)

    def forward(self, batch: Batch, temperature: float = 1.0, hint_weight: float = 0.0) -> Outcome:
        frames = batch.pixels.float() / 255
        if not self.settings.train_gaze:
            return self._task_alone(frames, batch, temperature)
        if self.settings.algorithm == "ntp":
            return self._ntp(frames, batch, hint_weight)
        return self._grpo(frames, temperature)

    def _ntp(self, frames: torch.Tensor, batch: Batch, hint_weight: float) -> Outcome:
        targets: torch.Tensor | None = None
        learnt, rewards = None, None
        found: SearchResult | None = None
        metrics: dict[str, torch.Tensor] = {}
        if batch.labels is not None:
            info, losses = batch.labels, batch.labels["task_losses"]
        else:
            assert isinstance(self.task, MosaicTask)
            search, found = self.settings.search, batch.found
            if found is None:
                with full_precision(frames):
                    found = search_online(self.task, self.task.normalize(frames), batch.seeds, search)
            info, losses = found.info(self.task.grid), found.excess
            targets = soft_targets(found, search) if search.sharpness else None
        padded = info["if_padded_gazing"]
        if targets is not None:  # the least that the policy loss can come down to
            entropy = torch.special.entr(targets).sum(dim=-1)
            metrics["label_entropy"] = entropy[~padded].mean()
            learnt, share = targets, self.settings.reward_share
            if share:
                assert found is not None
                learnt, rewards = (1 - share) * targets, share * relative_gains(found, self.settings.search.floor)
        with self.hints or nullcontext():
            log_probs, predicted = self.gaze.score(
                self.gaze.processor.prepare(frames),
                info,
                match_generation=self.settings.log_probabilities == "matched",
                targets=learnt,
                rewards=rewards,
            )
        # Relative to what is predicted, not to what came of it: that would teach to predict too little.
        least = self.settings.relative_prediction
        unit = predicted.detach().clamp(min=0) + least if least else 1.0
        loss = ntp_loss(
            log_probs,
            predicted / unit,
            padded,
            losses / unit,
            torch.ones_like(losses),
            predict_loss=self.settings.predict_loss,
            over_all=self.over_all,
        )
        outcome = self._outcome(loss, predicted, losses, ~padded, metrics)
        if self.settings.train_task:  # labels are what it rebuilds from
            result = self.task(self.task.normalize(frames), info)
            return Outcome(outcome.loss + result.loss.mean(), outcome.metrics | _measured(result))
        if self.hints is None or found is None or targets is None:
            return outcome
        hints = self.hints.measure(found, targets)
        shown = {"hint_worth": hints.worth.detach(), "hint_attention": hints.attention.detach()}
        return Outcome(outcome.loss + hint_weight * hints.total, outcome.metrics | shown)

    def _grpo(self, frames: torch.Tensor, temperature: float) -> Outcome:
        """Groups of rollouts of each clip; rows are group-major."""
        settings = self.settings
        frames = frames.repeat(settings.group_size, 1, 1, 1, 1)
        video = self.gaze.processor.prepare(frames)
        with full_precision(frames):
            info = self.gaze.generate(video, do_sample=True, temperature=temperature, top_k=settings.top_k)
        measuring = full_precision(frames) if isinstance(self.task, MosaicTask) else nullcontext()
        with torch.set_grad_enabled(settings.train_task), measuring:
            result = self.task(self.task.normalize(frames), info)
        assert info.if_padded_gazing is not None
        log_probs, predicted = self.gaze.score(
            video,
            info,
            match_generation=settings.log_probabilities == "matched",
            temperature=temperature,
            top_k=settings.top_k,
        )
        mask = result.task_losses_mask * ~info.if_padded_gazing
        loss = grpo_loss(
            log_probs,
            predicted,
            info.if_padded_gazing,
            result.reward,
            result.traj_len_each_reward,
            result.task_losses.detach(),
            mask,
            group_size=settings.group_size,
            discount=settings.discount,
            predict_loss=settings.predict_loss,
            over_all=self.over_all,
        )
        outcome = self._outcome(loss, predicted, result.task_losses.detach(), mask.bool(), _measured(result))
        return Outcome(outcome.loss + result.loss.mean(), outcome.metrics) if settings.train_task else outcome

    def _task_alone(self, frames: torch.Tensor, batch: Batch, temperature: float) -> Outcome:
        """Each clip once, rebuilt from its label, else from what the gaze model or chance selects."""
        settings = self.settings
        if batch.labels is not None:
            info: GazeInput = batch.labels
        elif settings.selections == "random":
            budget = self.gaze.config.budget
            info = random_selection(budget, self.task.grid, batch.seeds, frames.shape[1], frames.device)
        else:
            with full_precision(frames):
                video = self.gaze.processor.prepare(frames)
                info = self.gaze.generate(video, do_sample=True, temperature=temperature, top_k=settings.top_k)
        result = self.task(self.task.normalize(frames), info)
        return Outcome(result.loss.mean(), _measured(result))

    def _outcome(
        self,
        loss: GazeLoss,
        predicted: torch.Tensor,
        losses: torch.Tensor,
        known: torch.Tensor,
        metrics: dict[str, torch.Tensor],
    ) -> Outcome:
        total = loss.policy + self.settings.prediction_weight * loss.task_loss_prediction
        off = (predicted - losses).detach().abs()[known]
        metrics = metrics | {
            "policy_loss": loss.policy.detach().mean(),
            "prediction_loss": loss.task_loss_prediction.detach().mean(),
            "prediction_off": (off / losses[known].clamp(min=1e-3)).median() if off.numel() else off.sum(),
        }
        return Outcome(total.mean(), metrics)


def _measured(result: TaskResult) -> dict[str, torch.Tensor]:
    """What a task says of a batch, as metrics."""
    return {
        "reward": result.reward.mean(),
        "task_loss": result.loss.detach().mean(),
        "gazing_ratio": torch.tensor(result.gazing_ratio, device=result.frame_losses.device),
    }


def full_precision(like: torch.Tensor) -> torch.autocast:
    """Without mixed precision: errors are sums over many pixels, and keys are kept for later steps."""
    return torch.autocast(like.device.type, enabled=False)


def search_online(
    task: MosaicTask,
    video: torch.Tensor,
    seeds: list[int],
    settings: SearchConfig,
    reference: torch.Tensor | None = None,
    budgets: torch.Tensor | None = None,
) -> SearchResult:
    """Greedy labels of clips, each to a loss and with a share of random picks that its seed decides. reference: see
    `search_mosaic`; losses to reach are above what noise leaves. budgets: (B, T) patches at most, fewer than the
    settings allow."""
    batch, frames = video.shape[:2]
    low, high = np.log(settings.target)
    targets, shares, draws = [], [], []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        targets.append(float(np.exp(rng.uniform(low, high))))
        shares.append(settings.disturbance * rng.uniform() * (rng.random() < 0.7))  # some clips stay undisturbed
        draws.append(rng.random((frames, task.grid.size, 2), dtype=np.float32))
    device = video.device
    disturbance = ExplorationNoise(
        torch.tensor(shares, dtype=torch.float32, device=device), torch.from_numpy(np.stack(draws)).to(device)
    )
    if budgets is None:
        budgets = torch.full((batch, frames), min(settings.max_patches, task.grid.size), device=device)
    return search_mosaic(
        task,
        video,
        torch.tensor(targets, device=device)[:, None].expand(batch, frames),
        budgets,
        disturbance if settings.disturbance else None,
        with_gains=settings.sharpness > 0,
        reference=reference,
        above_floor=True,
    )


def relative_gains(found: SearchResult, floor: float) -> torch.Tensor:
    """(B, n, N) what each patch would gain over what the best one would, at most 1: the part of an entry that is well
    spent. Where the best one gains less than `floor`, less is at stake."""
    assert found.gains is not None
    gains = found.gains.clamp(min=0)
    return gains / gains.amax(dim=-1, keepdim=True).clamp(min=floor)


def soft_targets(found: SearchResult, settings: SearchConfig) -> torch.Tensor:
    """(B, n, N) a distribution over the patches for each entry; those painted before have no share."""
    assert found.gains is not None
    worth = (found.gains.clamp(min=-settings.floor) + settings.floor).clamp(min=0)
    worth = (worth / worth.amax(dim=-1, keepdim=True).clamp(min=1e-12)) ** settings.sharpness
    return worth / worth.sum(dim=-1, keepdim=True).clamp(min=1e-12)
