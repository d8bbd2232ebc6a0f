"""A tiny gaze model, and tiny multimodal LLMs that are wrapped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import autogaze_mllm as am
from autogaze_mllm.mllm.tiny import tiny_model

FAMILIES = ["llava", "llava_onevision"]
QUESTION = "<video>\nWhat moves?"
GAZE = {"scales": (32, 64), "num_vision_tokens_each_frame": 20, "input_img_size": 64}


def tiny_gaze() -> am.AutoGaze:
    """A random gaze model on the grid 32+64, which has the cells of a 64-pixel tower."""
    from autogaze_mllm.gaze.autogaze.config import GazeDecoderConfig, GazeEncoderConfig

    torch.manual_seed(0)
    encoder = GazeEncoderConfig(hidden_dim=32, out_dim=32)
    decoder = GazeDecoderConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_multi_token_pred=3
    )
    return am.AutoGaze(am.AutoGazeConfig(**GAZE, encoder=encoder, decoder=decoder)).eval()


def make(family: str, gaze="pixel-diff", **settings):
    base, processor = tiny_model(family, image_size=64)
    return base, am.wrap(base, gaze, processor=processor, **{"frames": 8, "cache": False, **settings})


def logits(model: Any, clip: Path) -> torch.Tensor:
    with torch.no_grad():
        return model(**model.prepare(QUESTION, [clip])).logits
