"""Random gaze models beside their reference, and what must be the same of two results."""

from __future__ import annotations

import random
from typing import Any

import torch

from autogaze_mllm.gaze.autogaze.config import AutoGazeConfig
from autogaze_mllm.gaze.autogaze.decoding.generation import GazeState
from autogaze_mllm.gaze.autogaze.model import AutoGaze
from autogaze_mllm.gaze.selection import GazingInfo
from reference_decoder import Reference, Result


def same_info(one: GazingInfo, other: GazingInfo) -> None:
    for name in ("gazing_pos", "if_padded_gazing", "num_gazing_each_frame", "num_gazing_each_row", "drawn"):
        assert torch.equal(one[name], other[name]), name


def same_state(one: GazeState, other: GazeState, tolerance: float = 1e-5) -> None:
    """What a row has in use; the room behind it may hold anything."""
    for name in ("lengths", "unfed_counts"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    for row, length in enumerate(one.lengths.tolist()):
        for mine, theirs in zip(one.keys + one.values, other.keys + other.values, strict=True):
            torch.testing.assert_close(mine[row, :, :length], theirs[row, :, :length], rtol=tolerance, atol=tolerance)
        waiting = int(one.unfed_counts[row])
        assert torch.equal(one.unfed[row, :waiting], other.unfed[row, :waiting])
    for mine, theirs in zip(one.conv, other.conv, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def config_dict(rng: random.Random, **decoder: Any) -> dict[str, Any]:
    """A small random configuration in the published layout; `decoder` fixes entries of the decoder's."""
    patch, side = 8, rng.choice([2, 3, 4])
    scales = sorted(rng.sample([8, 16, 24, 32], rng.randint(1, 3)))
    heads = rng.choice([1, 2, 4])
    return {
        "model_type": "autogaze",
        "scales": "+".join(map(str, scales)),
        "num_vision_tokens_each_frame": sum((scale // patch) ** 2 for scale in scales),
        "repeat_step_positions": rng.random() < 0.8,
        "gaze_model_config": {
            "input_img_size": side * patch + rng.choice([0, 3]),
            "vision_model_config": {
                "hidden_dim": 12,
                "out_dim": 24,
                "depth": rng.randint(0, 2),
                "kernel_size": patch,
                "temporal_patch_size": rng.randint(1, 3),
                "trunk_temporal_kernel_size": rng.randint(1, 3),
                "trunk_spatial_kernel_size": rng.choice([1, 3]),
            },
            "gaze_decoder_config": {
                "hidden_size": 24,
                "intermediate_size": 20,
                "num_hidden_layers": rng.randint(1, 3),
                "num_attention_heads": heads,
                "num_key_value_heads": rng.choice([None, *(n for n in (1, 2) if heads % n == 0)]),
                "head_dim": rng.choice([None if heads < 4 else 6, 4, 10]),
                "rms_norm_eps": rng.choice([1e-6, 1e-5]),
                "rope_theta": rng.choice([100.0, 10000.0]),
                "rope_scaling": rng.choice([None, LLAMA3]),
                "num_multi_token_pred": rng.randint(1, min(10, side**2)),
                **decoder,
            },
        },
    }


def make(config: dict[str, Any], seed: int) -> tuple[AutoGaze, Reference]:
    """Model and reference with the same random weights, large enough that choices depend on what came before."""
    torch.manual_seed(seed)
    model = AutoGaze(AutoGazeConfig.from_dict(config)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(std=1.5 / weight[0].numel() ** 0.5)
            elif "norm" in name:
                weight.normal_(1.0, 0.2)
    return model, Reference(config, model.state_dict())


def clip(config: dict[str, Any], batch: int, steps: int, extra: int = 0) -> torch.Tensor:
    frames = steps * config["gaze_model_config"]["vision_model_config"]["temporal_patch_size"] + extra
    return torch.randn(batch, frames, 3, *random.Random(frames).choices([16, 20, 24, 33], k=2))


def stopping_requirement(reference: Reference, video: torch.Tensor, rng: random.Random, shape: tuple) -> torch.Tensor:
    """Requirements taken from what the model predicts on the way, so that frames really stop, early and late."""
    free = reference.generate(video[:1], [reference.size] * video.shape[1])
    predicted = torch.cat([run.losses.flatten() for run in free.evaluations])
    quantiles = torch.tensor([rng.choice([0.02, 0.1, 0.3]) for _ in range(torch.Size(shape).numel())])
    return predicted.quantile(quantiles).view(shape)


def rows_alone(
    reference: Reference,
    video: torch.Tensor,
    ratio: Any,
    need: torch.Tensor | None,
    steps: int,
    states: list[Any] | None = None,
) -> list[Result]:
    ratios = torch.as_tensor(ratio, dtype=torch.float32).expand(steps)
    budgets = (ratios * reference.size).long().clamp(min=1).tolist()
    need = None if need is None else need.expand(len(video), steps)
    return [
        reference.generate(video[[row]], budgets, None if need is None else need[[row]], states and states[row])
        for row in range(len(video))
    ]
