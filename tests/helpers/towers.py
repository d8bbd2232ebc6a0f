"""Tiny SigLIP towers, and gazed clips for them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from autogaze_mllm.gaze.gazed_video import GazedVideo
from autogaze_mllm.vision.tower import GazedSiglipVisionModel

from .selections import as_info, random_kept

SCALES = "32+48+96"
LAYERS = 3


def siglip(**settings: Any) -> SiglipVisionModel:
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        **{
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 16,
        }
        | settings
    )
    model = SiglipVisionModel(config).eval()
    for weight in model.parameters():  # far from the initial values, so that every part matters
        weight.data += 0.1 * torch.randn_like(weight)
    return model


def pixels(clips: int, frames: int, height: int = 96, width: int = 96, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(clips, frames, 3, height, width, generator=generator)


def gazed(tower: GazedSiglipVisionModel, clips: int = 1, frames: int = 3, seed: int = 0) -> GazedVideo:
    info = as_info(tower.grid, random_kept(tower.grid, clips, frames, 12, seed))
    return GazedVideo.from_info(pixels(clips, frames, seed=seed), info, tower.grid)
