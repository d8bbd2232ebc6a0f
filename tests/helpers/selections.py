"""All selectors, and random selections in the interchange form, as ragged as they may be."""

from __future__ import annotations

import torch

from autogaze_mllm.gaze.autogaze.config import AutoGazeConfig, GazeDecoderConfig, GazeEncoderConfig
from autogaze_mllm.gaze.autogaze.model import AutoGaze
from autogaze_mllm.gaze.grid import PatchGrid
from autogaze_mllm.gaze.selectors.base import Selector
from autogaze_mllm.gaze.selectors.baselines import AllSelector, RandomSelector
from autogaze_mllm.gaze.selectors.pixel_diff import PixelDiffSelector, RawPixelDiffSelector

Kept = list[list[list[int]]]  # clip, frame, positions in the order of choice


def random_kept(grid: PatchGrid, clips: int, frames: int, most: int, seed: int = 0) -> Kept:
    """Up to `most` positions per frame, none in some; not sorted."""
    generator = torch.Generator().manual_seed(seed)

    def frame() -> list[int]:
        count = int(torch.randint(-1, most + 1, (), generator=generator))
        return torch.randperm(grid.size, generator=generator)[: max(count, 0)].tolist()

    return [[frame() for _ in range(frames)] for _ in range(clips)]


def as_info(grid: PatchGrid, kept: Kept, more_padding: int = 0) -> dict[str, torch.Tensor]:
    """Frames are filled to the longest clip and `more_padding` beyond; the filling lies anywhere and means nothing."""
    generator = torch.Generator().manual_seed(1)
    frames = len(kept[0])
    counts = [max(len(clip[t]) for clip in kept) + more_padding for t in range(frames)]
    positions = torch.randint(-5, grid.size * frames, (len(kept), sum(counts)), generator=generator)
    padded = torch.ones_like(positions, dtype=torch.bool)
    for row, clip in enumerate(kept):
        for t, frame in enumerate(clip):
            slots = torch.randperm(counts[t], generator=generator)[: len(frame)].sort().values + sum(counts[:t])
            positions[row, slots] = torch.tensor(frame, dtype=torch.long) + t * grid.size
            padded[row, slots] = False
    return {"gazing_pos": positions, "if_padded_gazing": padded, "num_gazing_each_frame": torch.tensor(counts)}


def tiny_autogaze() -> AutoGaze:
    """Random weights; selects on the grid 32+64 by itself and on other grids of two scales by tiles."""
    torch.manual_seed(0)
    config = AutoGazeConfig(
        scales=(32, 64),
        num_vision_tokens_each_frame=20,
        input_img_size=64,
        encoder=GazeEncoderConfig(hidden_dim=16, out_dim=16),
        decoder=GazeDecoderConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_multi_token_pred=3
        ),
    )
    model = AutoGaze(config).eval()
    for weight in model.gazing_model.gaze_decoder.parameters():
        weight.data *= 10 if weight.ndim == 2 else 1  # so that it minds what it sees
    return model


# Without a noise floor, where tests show it clips of noise, and that is what is to be shown.
RAW_PIXEL_DIFF = RawPixelDiffSelector()
SELECTORS: dict[str, Selector] = {
    "pixel-diff": PixelDiffSelector(),
    "pixel-diff-raw": RAW_PIXEL_DIFF,
    "random": RandomSelector(),
    "all": AllSelector(),
    "AutoGaze": tiny_autogaze(),
}
