"""Convolutional encoder of the gaze model: video -> vision tokens of every frame.

Shapes: B batch, T frames, T' gaze steps (frames / temporal patch), D channels, g cells per side, P = g * g.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .config import GazeEncoderConfig

ConvState = tuple[torch.Tensor, ...]


class TrunkBlock(nn.Module):
    """3-D convolution, causal in time (only earlier frames), then ReLU. No residual."""

    def __init__(self, config: GazeEncoderConfig) -> None:
        super().__init__()
        time, space = config.trunk_temporal_kernel_size, config.trunk_spatial_kernel_size
        self.history = time - 1
        self.conv3d = nn.Conv3d(
            config.hidden_dim, config.hidden_dim, (time, space, space), padding=(0, space // 2, space // 2)
        )

    def forward(self, x: torch.Tensor, past: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """x: (B, D, T', g, g); past: the last `history` input frames, zeros if None. -> (output, new past)."""
        before = x.new_zeros(x.shape[0], x.shape[1], self.history, *x.shape[3:]) if past is None else past
        seen = torch.cat([before, x], dim=2)
        y = self._begin(x) if past is None else self.conv3d(seen)
        return F.relu(y), seen[:, :, seen.shape[2] - self.history :]

    def _begin(self, x: torch.Tensor) -> torch.Tensor:
        """The convolution of a clip from its start. What lies before is zero and is not computed with, which saves half
        the work of a clip of two frames and little of a long one."""
        weight, bias, padding = self.conv3d.weight, self.conv3d.bias, self.conv3d.padding
        steps = min(self.history, x.shape[2])
        parts = [
            F.conv3d(x[:, :, : step + 1], weight[:, :, self.history - step :], bias, padding=padding)
            for step in range(steps)
        ]
        if x.shape[2] > self.history:
            parts.append(self.conv3d(x))
        return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]

    def channels_last(self, x: torch.Tensor, past: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """As `forward`, with x (B, T', g, g, D) in and out; the state keeps its shape."""
        batch, steps, side = x.shape[:3]
        if past is None:
            before = x.new_zeros(batch, self.history, *x.shape[2:])
        else:
            before = past.permute(0, 2, 3, 4, 1).to(x.dtype)
        seen = torch.cat([before, x], dim=1)
        taps = torch.cat([seen[:, tap : tap + steps] for tap in range(self.history + 1)], dim=-1)
        weight = self.conv3d.weight.transpose(1, 2).flatten(1, 2)  # (D, taps * D, k, k)
        images = taps.flatten(0, 1).permute(0, 3, 1, 2)  # channels last in memory
        weight = weight.contiguous(memory_format=torch.channels_last)
        y = F.conv2d(images, weight, self.conv3d.bias, padding=self.conv3d.padding[1:])
        y = F.relu(y).permute(0, 2, 3, 1).reshape(batch, steps, side, side, -1)
        return y, seen[:, seen.shape[1] - self.history :].permute(0, 4, 1, 2, 3)


class GazeVisionEncoder(nn.Module):
    def __init__(self, config: GazeEncoderConfig) -> None:
        super().__init__()
        patch = (config.temporal_patch_size, config.kernel_size, config.kernel_size)
        self.temporal_conv = nn.Conv3d(3, config.hidden_dim, patch, stride=patch)
        self.norm = nn.LayerNorm(config.hidden_dim)
        self.blocks = nn.ModuleList(TrunkBlock(config) for _ in range(config.depth))
        self.out_proj = nn.Conv3d(config.hidden_dim, config.out_dim, 1)

    def forward(self, video: torch.Tensor, past: ConvState | None = None) -> tuple[torch.Tensor, ConvState]:
        """(B, T, 3, S, S) already at the input size -> tokens (B, T', P, C) and the state of every trunk block."""
        if video.device.type != "cpu":
            return self.channels_last(video, past)
        x = self.temporal_conv(video.transpose(1, 2))
        x = self.norm(x.movedim(1, -1)).movedim(-1, 1)
        states = []
        for number, block in enumerate(self.blocks):
            x, state = block(x, None if past is None else past[number])
            states.append(state)
        return self.out_proj(x).flatten(3).permute(0, 2, 3, 1), tuple(states)

    def channels_last(self, video: torch.Tensor, past: ConvState | None) -> tuple[torch.Tensor, ConvState]:
        """The same as products and one two-dimensional convolution a block, which is what accelerators are fast at:
        the channels of the frames that a frame sees stand side by side."""
        patch, size, _ = self.temporal_conv.kernel_size
        steps, side = video.shape[1] // patch, video.shape[-1] // size
        cells = video[:, : steps * patch, :, : side * size, : side * size]
        cells = cells.reshape(len(video), steps, patch, 3, side, size, side, size).permute(0, 1, 4, 6, 3, 2, 5, 7)
        x = F.linear(cells.flatten(4), self.temporal_conv.weight.flatten(1), self.temporal_conv.bias)
        x = self.norm(x)  # (B, T', g, g, D)
        states = []
        for number, block in enumerate(self.blocks):
            assert isinstance(block, TrunkBlock)
            x, state = block.channels_last(x, None if past is None else past[number])
            states.append(state)
        tokens = F.linear(x, self.out_proj.weight.flatten(1), self.out_proj.bias)
        return tokens.flatten(2, 3), tuple(states)


class Connector(nn.Module):
    """Adds the position table, the same for every frame."""

    def __init__(self, num_tokens: int, hidden_size: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(num_tokens, hidden_size))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens + self.pos_embed
