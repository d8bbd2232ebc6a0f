"""Folders in the layouts of the published repositories: small random weights, and golden models written as such."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from autogaze_mllm.gaze.autogaze.config import AutoGazeConfig, BudgetConfig, GazeDecoderConfig, GazeEncoderConfig
from autogaze_mllm.gaze.autogaze.model import AutoGaze

from ..golden_data import load, weights

TEXT = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}


def small_gaze(**budget: Any) -> AutoGaze:
    """Random weights on the grid of the released model: 32+64+112+224, 265 patches of a frame, 16 frames."""
    torch.manual_seed(0)
    config = AutoGazeConfig(
        max_num_frames=16,
        encoder=GazeEncoderConfig(hidden_dim=16, out_dim=16),
        decoder=GazeDecoderConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_multi_token_pred=10
        ),
        budget=BudgetConfig(**budget),
    )
    return AutoGaze(config).eval()


def write_siglip(folder: Path, image_size: int, patch_size: int) -> Path:
    """A model of pictures and texts, as google/siglip2-... are, with its image processor."""
    torch.manual_seed(1)
    vision = {**TEXT, "num_hidden_layers": 2, "image_size": image_size, "patch_size": patch_size}
    model = SiglipModel(SiglipConfig(text_config=TEXT, vision_config=vision))
    model.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": image_size, "width": image_size}).save_pretrained(folder)
    return folder


def write_golden(folder: Path, name: str, **config: Any) -> Path:
    """The model of a golden file as the published code stores it; config: further keys of config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**load(name)[0]["config"], **config}))
    save_file({key: value.clone() for key, value in weights(name).items()}, folder / "model.safetensors")
    return folder
