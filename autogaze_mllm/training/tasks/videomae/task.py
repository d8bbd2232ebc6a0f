"""The published reconstruction task: a VideoMAE rebuilds frames from the kept patches.

docs/specification.md, "VideoMAE", says what is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ....common.errors import InputError
from ....common.pixels import resize_bicubic
from ....common.storage.files import output_folder, write_json
from ....common.storage.weights import write_weights
from ....gaze.autogaze.processor import AutoGazeImageProcessor
from ....gaze.grid import PatchGrid
from ....gaze.selection import read_selection
from ...config import VIDEOMAE_LOSS
from ..base import GazeInput, TaskResult, kept_in_frames, trajectory_lengths
from .checkpoint import check_fit, find_checkpoint
from .features import FeatureLoss, NetworkSource, PixelStatistics, WeightedLosses
from .model import VideoMAE, VideoMAEConfig

# Tables that do not learn.
FIXED = ("position_embeddings", "decoder_pos_embed")


class VideoMAETask(nn.Module):
    """sample_rate: share of a clip's frames that are rebuilt in training, drawn at random; otherwise all are.

    feature_models: where `dinov2_reg` and `siglip2` come from, ids or folders.
    """

    name = "videomae"
    usual_loss = VIDEOMAE_LOSS

    def __init__(
        self,
        config: VideoMAEConfig,
        processor: AutoGazeImageProcessor | None = None,
        *,
        sample_rate: float = 1.0,
        feature_models: Mapping[str, NetworkSource] | None = None,
    ) -> None:
        super().__init__()
        if not 0 < sample_rate <= 1:
            raise InputError(f"the share of frames to rebuild must lie in (0, 1], got {sample_rate}")
        self.model = VideoMAE(config)
        self.grid, self.sample_rate = config.grid, sample_rate
        self.processor = processor or AutoGazeImageProcessor()
        statistics = PixelStatistics.from_dict(self.processor.to_dict())
        self.losses = WeightedLosses(config.loss_type, config.loss_weights, statistics, feature_models)

    def requires_grad_(self, requires_grad: bool = True) -> VideoMAETask:
        """Whether it learns. What never does stays as it is: position tables, and the networks behind the losses."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(requires_grad and not name.endswith(FIXED))
        return self

    def normalize(self, frames: torch.Tensor) -> torch.Tensor:
        return self.processor.normalize(frames)

    def denormalize(self, frames: torch.Tensor) -> torch.Tensor:
        zero, one = (self.normalize(frames.new_full((3, 1, 1), value)) for value in (0.0, 1.0))
        return (frames - zero) / (one - zero)

    def forward(self, video: torch.Tensor, info: GazeInput, frames: list[int] | None = None) -> TaskResult:
        """video: (B, T, 3, H, W) normalised, of any size. The loss is known after a frame's last real entry."""
        selection = read_selection(info, self.grid, "VideoMAE")
        steps = video.shape[1]
        if len(selection.counts) != steps:
            raise InputError(f"selection of {len(selection.counts)} frames does not fit a video of {steps}")
        chosen = self._sample(steps) if frames is None else frames
        if not chosen or min(chosen) < 0 or max(chosen) >= steps:
            raise InputError(f"VideoMAE: frames {chosen} to rebuild are not among the {steps} of the clip")
        latent = self.model.encode(video, selection)
        rebuilt = self.model.decode(latent, selection, chosen)
        target = resize_bicubic(video[:, chosen], *self.grid.scales[-1])
        losses = self.losses(rebuilt.flatten(0, 1), target.flatten(0, 1)).unflatten(0, rebuilt.shape[:2])
        mask, values = _known_losses(selection.keep, selection.counts, chosen, losses.detach())
        return TaskResult(
            frame_losses=losses,
            frames=chosen,
            reconstruction=rebuilt,
            task_losses=values,
            task_losses_mask=mask,
            traj_len_each_reward=trajectory_lengths(selection.counts, chosen, video.device),
            kept=kept_in_frames(selection, chosen),
            gazing_ratio=float(selection.keep.sum()) / (len(video) * steps * self.grid.size),
        )

    def _sample(self, steps: int) -> list[int]:
        if not self.training or self.sample_rate == 1:
            return list(range(steps))
        return torch.randperm(steps)[: max(int(steps * self.sample_rate), 1)].tolist()

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        device: torch.device | str | None = None,
        sample_rate: float | None = None,
        feature_models: Mapping[str, str] | None = None,
        changes: Mapping[str, Any] | None = None,
        grid: PatchGrid | None = None,
        **hub: Any,
    ) -> VideoMAETask:
        """From a folder or a hub repository: as published (`videomae.pt` and `config.yaml`), as `save_pretrained`
        writes it, or a plain ViT-MAE, whose embeddings of scale and time start anew. In evaluation mode.

        sample_rate: None for the one that the checkpoint was trained with. feature_models: to be used in place of those
        that it names or holds. changes: of the configuration (loss_type, scales, ...). grid: the one that a plain
        ViT-MAE gets. hub: revision, ... Raises InputError, naming what is missing or does not fit.
        """
        found = find_checkpoint(source, changes, grid, **hub)
        weights, frozen = found.read()
        networks = found.network_sources(frozen, feature_models or {})
        rate = found.sample_rate if sample_rate is None else sample_rate
        try:
            task = cls(found.config, found.processor, sample_rate=rate, feature_models=networks)
        except InputError as error:
            raise InputError(f"{source}: {error}") from error
        task.load_weights(weights, str(source))
        return task.to(device).eval()

    def load_weights(self, weights: Mapping[str, torch.Tensor], source: str) -> None:
        """Weights of the VideoMAE by their published keys. Raises InputError naming `source` when they do not fit."""
        check_fit(self.model, weights, source, "config.json")
        self.model.load_state_dict(weights, strict=False)

    def save_pretrained(self, folder: str | Path, *, frozen: bool = True) -> None:
        """config.json, preprocessor_config.json and model.safetensors, under the published keys; frozen: and a folder
        with each network that the losses measure by, so that nothing else is needed."""
        target = output_folder(folder)
        write_json(target / "config.json", self.model.config.to_dict())
        write_json(target / "preprocessor_config.json", self.processor.to_dict())
        write_weights(target / "model.safetensors", self.model.state_dict())
        for name, part in zip(self.losses.names, self.losses.parts, strict=True):
            if frozen and isinstance(part, FeatureLoss):
                part.save_pretrained(target / name)


def _known_losses(
    keep: torch.Tensor, counts: list[int], frames: list[int], losses: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """keep: (B, n); losses: (B, R) of `frames` -> mask and values (B, n): a rebuilt frame's loss stands at every slot
    that is its last, or that a padded one follows."""
    masks, values = [], []
    for t, part in enumerate(keep.split(counts, dim=1)):
        ends = torch.ones_like(part)
        ends[:, :-1] = ~part[:, 1:]
        wanted = ends.float() if t in frames else torch.zeros_like(part, dtype=torch.float32)
        loss = losses[:, frames.index(t), None] if t in frames else losses.new_zeros(len(part), 1)
        masks.append(wanted)
        values.append(wanted * loss)
    return torch.cat(masks, dim=1), torch.cat(values, dim=1)
