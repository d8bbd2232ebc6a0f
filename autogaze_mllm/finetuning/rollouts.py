"""Gaze that is trained along, by policy gradient: which patches are kept is a choice, and choices have no gradient.

A sample's videos are gazed several times with chance (rollouts). The LLM's loss on the sample's answers says how good
each rollout was: its reward is minus that loss, its advantage the reward over the mean of the sample's rollouts, as in
GRPO. The term has the gradient of the expected training loss, and the value 0: what is logged stays the LLM's loss.

Notable design decisions:
- rewards are in the unit of the training loss and not divided by their spread, as in gaze training (`train-gaze`):
  where all rollouts are about as good, there is little to learn;
- a rollout's log-probability is divided by the entries that a rollout of the sample has, so that long videos do not
  use up the norm at which all gradients are clipped;
- the head that predicts losses for the stop rule is left as it is: no reconstruction is made here to teach it.

What it costs: a video is decoded and gazed anew at every step, in the training process itself (the cache is no help);
the LLM and the tower see every sample once per rollout; all its clips stay in memory as pixels (12 bytes a pixel), and
the gaze model's activations for all clips and rollouts until the backward pass. It is for short videos and few tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..gaze.autogaze.model import AutoGaze
from ..gaze.gazed_video import GazedVideo
from ..gaze.grid import PatchGrid
from ..gaze.pipeline import gaze_variants
from ..gaze.ratio import Ratio
from ..gaze.selection import GazingInfo
from ..gaze.selectors.base import AnySelector, stop_rule
from ..mllm.media import Media
from ..mllm.model import GazedModel
from ..video.sources import Video
from .config import RolloutConfig
from .opaque_function import OneNode


@dataclass(frozen=True)
class VideoRef:
    """A video that is gazed anew whenever it is shown. tokens: visual tokens as it was gazed before the training."""

    video: Video
    tokens: int


@dataclass
class _Drawing:
    """Selects as the gaze model does, but draws, and remembers what it drew. clips: where frames are kept, if they are;
    the rollouts of a video see the same ones."""

    gaze: AutoGaze
    temperature: float
    default_loss: float | None
    clips: list[torch.Tensor] | None
    infos: list[GazingInfo] = field(default_factory=list)

    def select(self, frames: torch.Tensor, grid: PatchGrid, ratio: Ratio, loss: float | None) -> GazingInfo:
        pixels = self.gaze.processor.prepare(frames.to(self.gaze.device))
        info = self.gaze.generate(
            pixels,
            ratio,
            loss,
            target_scales=list(grid.scales),
            target_patch_size=grid.patch,
            do_sample=True,
            temperature=self.temperature,
        )
        if self.clips is not None:
            self.clips.append(frames)
        self.infos.append(info)
        return info


@dataclass(frozen=True)
class SampleRollouts:
    """The ways in which the samples of a batch are seen. media: of each sample, per way, in the order of its tags;
    a sample without videos has one way. scores: (n,) log-probability of each way of the samples with videos, over
    the mean number of entries of a way of its sample, and a last value 0; None where nothing is to be learnt.
    """

    media: list[list[list[Media]]]
    scores: torch.Tensor | None


class GazePolicy(nn.Module):
    """Shows the samples of a batch through the gaze model: with chance where it learns, greedily otherwise."""

    _gazed: GazedModel  # outside the module tree

    def __init__(self, gazed: GazedModel, plan: RolloutConfig) -> None:
        super().__init__()
        assert isinstance(gazed.gaze, AutoGaze)
        self.gaze, self.plan = gazed.gaze, plan
        object.__setattr__(self, "_gazed", gazed)

    def train(self, mode: bool = True) -> GazePolicy:
        """The gaze model stays as it gazes: with dropout, its scores would not be those that it drew by."""
        super().train(mode)
        self.gaze.eval()
        return self

    def forward(
        self,
        anchor: torch.Tensor,
        media: Sequence[Sequence[Media | VideoRef]],
    ) -> SampleRollouts:
        """anchor: as the embedder's."""
        learns = torch.is_grad_enabled() and self.training
        with torch.no_grad(), self._full_precision():
            variants = {ref: self._gaze(ref, learns) for ref in dict.fromkeys(_refs(media))}
        shown, seen = [], self._gazed.gazed_media
        for items in media:
            count = self.plan.rollouts if learns and any(isinstance(item, VideoRef) for item in items) else 1
            shown.append(
                [
                    [seen(variants[item][0][number]) if isinstance(item, VideoRef) else item for item in items]
                    for number in range(count)
                ]
            )
        if not learns:
            return SampleRollouts(shown, None)
        scored = [list(_refs([items])) for items in media]

        def run() -> torch.Tensor:
            with self._full_precision():
                parts = [self._score([variants[ref][1] for ref in refs]) for refs in scored if refs]
            return torch.cat([*parts, anchor.new_zeros(1)])

        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return SampleRollouts(shown, OneNode.apply(run, anchor.clone(), *trainable))

    def _gaze(self, ref: VideoRef, learns: bool) -> tuple[list[GazedVideo], list[_Drawing]]:
        """The video in every way, and what was drawn. The film is decoded once."""
        gazed, clips = self._gazed, list[torch.Tensor]()
        rule = stop_rule(None, self.gaze, gazed.settings)
        drawings = [
            _Drawing(self.gaze, self.plan.temperature, rule, None if number else clips)
            for number in range(self.plan.rollouts if learns else 0)
        ]
        selectors: list[AnySelector] = [*drawings] or [self.gaze]
        made = gaze_variants(
            ref.video,
            [(selector, gazed.settings) for selector in selectors],
            **gazed.video_form,
        )
        return made, drawings

    def _score(self, drawings_of_videos: Sequence[Sequence[_Drawing]]) -> torch.Tensor:
        """Log-probability of each rollout of a sample with these videos, over the entries of a rollout: (rollouts,)."""
        totals: list[Any] = [0.0] * self.plan.rollouts
        entries = 0
        for drawings in drawings_of_videos:
            clips = drawings[0].clips
            assert clips is not None
            for number, drawing in enumerate(drawings):
                for frames, info in zip(clips, drawing.infos, strict=True):
                    log_probs, _ = self.gaze.score(
                        self.gaze.processor.prepare(frames.to(self.gaze.device)),
                        info,
                        match_generation=True,
                        temperature=self.plan.temperature,
                    )
                    assert info.if_padded_gazing is not None
                    totals[number] = totals[number] + log_probs.sum()
                    entries += int((~info.if_padded_gazing).sum())
        return torch.stack(totals) * (self.plan.rollouts / max(entries, 1))

    def _full_precision(self) -> torch.autocast:
        """What was drawn is scored as nearly as the weights' own precision allows."""
        return torch.autocast(self.gaze.device.type, enabled=False)


def _refs(media: Sequence[Sequence[Media | VideoRef]]) -> list[VideoRef]:
    return [item for items in media for item in items if isinstance(item, VideoRef)]


def policy_term(scores: torch.Tensor, losses: Sequence[torch.Tensor]) -> torch.Tensor:
    """The policy's part of the training loss: value 0, and as gradient the policy gradient of the mean of the losses.

    losses: of each sample, its loss (summed over its answers) in each of its ways (rollouts,). Samples that were seen
    in one way only have nothing to compare. scores: as in `SampleRollouts`.
    """
    advantages = [(loss - loss.mean()) / len(loss) for loss in losses if len(loss) > 1]
    weights = torch.cat([*advantages, scores.new_zeros(1)]).detach().to(scores.dtype)
    return (weights * (scores - scores.detach())).sum()
