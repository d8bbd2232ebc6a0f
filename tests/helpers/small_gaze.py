"""Gaze models of two scales, 16 + 32 pixels, whose choices depend on what came before."""

from __future__ import annotations

from typing import Any

import torch

from autogaze_mllm.gaze.autogaze.config import AutoGazeConfig
from autogaze_mllm.gaze.autogaze.model import AutoGaze
from autogaze_mllm.gaze.selection import GazingInfo

DECODER = {
    "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 10,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_scaling": None, "num_multi_token_pred": 3,
}  # fmt: skip
VISION = {"hidden_dim": 12, "out_dim": 24, "depth": 1, "kernel_size": 8}
VISION |= {"temporal_patch_size": 1, "trunk_temporal_kernel_size": 3, "trunk_spatial_kernel_size": 3}


def config_dict(vision: dict | None = None, decoder: dict | None = None, **top: Any) -> dict[str, Any]:
    """Scales 16+32 with patches of 8 pixels (4 + 16 = 20), 16 vision tokens per frame, 3 ids per step."""
    return {
        "model_type": "autogaze", "scales": "16+32", "num_vision_tokens_each_frame": 20,
        "gaze_model_config": {
            "input_img_size": 32,
            "vision_model_config": VISION | (vision or {}),
            "gaze_decoder_config": DECODER | (decoder or {}),
        },
        **top,
    }  # fmt: skip


def make(vision: dict | None = None, decoder: dict | None = None, **top: Any) -> AutoGaze:
    """The same weights for the same shapes, large enough that choices depend on what came before."""
    torch.manual_seed(1)
    model = AutoGaze(AutoGazeConfig.from_dict(config_dict(vision, decoder, **top))).eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=1.5 / weight[0].numel() ** 0.5)
    return model


def clips(batch: int = 3, frames: int = 4, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randn(batch, frames, 3, height, width, generator=torch.Generator().manual_seed(2))


def stopping(model: AutoGaze, video: torch.Tensor, quantile: float = 0.15) -> float:
    """A requirement that stops frames on the way."""
    with torch.no_grad():
        return float(model.score(video, model.generate(video, 1.0))[1].quantile(quantile))


def kept(info: GazingInfo, row: int) -> list[int]:
    return info.gazing_pos[row][~info.if_padded_gazing[row]].tolist()
