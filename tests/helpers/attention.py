"""Packed sequences of ragged lengths, and the plain masked softmax over them."""

from __future__ import annotations

import torch

CPU = torch.device("cpu")
HEADS, CHANNELS = 2, 16
Clips = list[list[int]]
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

# Tokens of each frame of each clip: lengths far apart, frames and whole clips with nothing in them.
RAGGED: dict[str, Clips] = {
    "ragged": [[3, 0, 5, 1], [7], [0, 0], [], [2, 2, 2], [0, 4], [30, 1], [1]],
    "one token": [[0, 1]],
    "alike": [[4, 4, 4], [4, 4, 4], [4, 4, 4]],
}


def inputs(clips: Clips, seed: int = 0, device: torch.device = CPU) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    shape = (3, sum(map(sum, clips)), HEADS, CHANNELS)
    q, k, v = torch.randn(shape, generator=generator).to(device)
    return q, k, v


def plain(
    clips: Clips, attn_type: str, frame_independent: bool, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    """Who sees whom, token by token, then one softmax over everything."""
    frames = [(clip, frame, count) for clip, counts in enumerate(clips) for frame, count in enumerate(counts)]
    tokens = [(clip, frame) for clip, frame, count in frames for _ in range(count)]
    visible = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
    for i, (clip, frame) in enumerate(tokens):
        for j, (other_clip, other_frame) in enumerate(tokens):
            near = other_frame == frame if frame_independent else True
            before = {"block_causal": other_frame <= frame, "causal": j <= i, "bidirectional": True}[attn_type]
            visible[i, j] = clip == other_clip and near and before
    scores = torch.einsum("qhd,khd->hqk", q.double(), k.double()) / CHANNELS**0.5
    weights = scores.masked_fill(~visible.to(q.device), -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v.double()).float()
