"""Small things to train with: a gaze model that decodes in milliseconds, and clips with one place worth a look."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from autogaze_mllm import AutoGaze, AutoGazeConfig, AutoGazeImageProcessor
from autogaze_mllm.gaze.autogaze.config import GazeDecoderConfig, GazeEncoderConfig
from autogaze_mllm.training.tasks.videomae.model import VideoMAEConfig
from autogaze_mllm.training.tasks.videomae.task import VideoMAETask
from autogaze_mllm.video.writer import write_video


def small_gaze(seed: int = 0) -> AutoGaze:
    """32+64 at patch 16: 20 patches a frame, 4 of them in a step."""
    torch.manual_seed(seed)
    config = AutoGazeConfig(
        scales=(32, 64),
        num_vision_tokens_each_frame=20,
        input_img_size=64,
        encoder=GazeEncoderConfig(hidden_dim=32, out_dim=32),
        decoder=GazeDecoderConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_multi_token_pred=4
        ),
    )
    return AutoGaze(config, AutoGazeImageProcessor(size={"height": 64, "width": 64}))


def busy_clip(seed: int, frames: int = 6, side: int = 64) -> np.ndarray:
    """(frames, side, side, 3) uint8: grey, with one textured square that moves."""
    rng = np.random.default_rng(seed)
    clip = np.full((frames, side, side, 3), 120, dtype=np.uint8)
    square = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    x, y = rng.integers(0, side - 16, 2)
    for frame in clip:
        frame[y : y + 16, x : x + 16] = square
        x, y = (x + 5) % (side - 16), (y + 3) % (side - 16)
    return clip


def write_clips(folder: Path, count: int, frames: int = 6) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03}.mp4" for number in range(count)]
    for number, path in enumerate(paths):
        write_video(path, busy_clip(number, frames), fps=10, options={"crf": "10"})
    return paths


CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 64,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 48,
    "scales": "32+64",
    "max_num_frames": 4,
}


def small_videomae(seed: int = 0) -> VideoMAETask:
    """Random weights on the grid of `small_gaze`, with the pixels alone as its loss."""
    torch.manual_seed(seed)
    return VideoMAETask(VideoMAEConfig.from_dict(CONFIG))
