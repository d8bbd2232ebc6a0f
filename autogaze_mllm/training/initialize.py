"""A better start for a new gaze model than random numbers: the published architecture, other initial values.

- The patch convolution sees the principal components of real patches, partly whitened, so that detail counts beside
  brightness. The first trunk block passes them on rectified, as they are and as what changed since the frame before:
  the two things that a patch is kept for.
- In the upper half of the decoder values are copied as they are and keys differ clearly, so that attention to a place
  shows in the output at once: the gradient says where to look before anything else is learned.
- The embedding of an id, the position table and the output rows of an id start from one code of the place where the
  patch lies, so that pointing at a place need not be learned for every id and head on its own.
"""

from __future__ import annotations

import math

import torch

from ..gaze.autogaze.decoder import DecoderLayer
from ..gaze.autogaze.encoder import TrunkBlock
from ..gaze.autogaze.model import AutoGaze
from ..gaze.grid import PatchGrid

BANDWIDTH = 1.1  # codes of places this many finest patches apart are still alike (correlation exp(-1/2))
TOKENS = 0.5  # spread of what vision tokens show, and of their places
KEYS = 3.0  # queries and keys of the upper layers are this much stronger than elsewhere
WHITENING = 0.4  # 0.5 makes all components equally strong, 0 leaves them as they are


@torch.no_grad()
def initialize(gaze: AutoGaze, frames: torch.Tensor, seed: int = 0) -> None:
    """frames: (n, 3, S, S) preprocessed, S the model's input size; a few dozen from different videos."""
    generator = torch.Generator().manual_seed(seed)
    _initialize_encoder(gaze, frames)
    _center_tokens(gaze, frames)
    _initialize_places(gaze, generator)
    _initialize_attention(gaze, generator)


def _initialize_encoder(gaze: AutoGaze, frames: torch.Tensor) -> None:
    encoder = gaze.gazing_model.vision_model
    convolution = encoder.temporal_conv
    width, _, steps, patch, _ = convolution.weight.shape
    patches = frames.unfold(2, patch, patch).unfold(3, patch, patch).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
    mean = patches.mean(dim=0)
    centred = (patches - mean).double()
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    count = min(width // 2, len(values))
    strength = values.flip(0)[:count].clamp(min=1e-6)
    filters = vectors.flip(1)[:, :count].T * (strength**-WHITENING * strength[count // 4] ** (WHITENING - 0.5))[:, None]
    # Each component twice, with both signs: after the rectification nothing is lost.
    filters = torch.cat([filters, -filters])[:width].float()
    convolution.weight[: len(filters)] = filters.view(-1, 3, 1, patch, patch) / steps
    assert convolution.bias is not None
    convolution.bias[: len(filters)] = -filters @ mean
    if not encoder.blocks:
        return
    first = encoder.blocks[0]
    assert isinstance(first, TrunkBlock)
    block = first.conv3d
    middle, now = block.weight.shape[3] // 2, block.weight.shape[2] - 1
    half = width // 2
    channels = torch.arange(width)
    block.weight.mul_(0.3)
    block.weight[channels, channels, now, middle, middle] += 1.0
    if now:
        # A quarter of the components, in both signs, is compared with the frame before.
        for channel in (*range(half // 2, half), *range(half + half // 2, 2 * half)):
            block.weight[channel, channel - half // 2, now, middle, middle] += 1.0
            block.weight[channel, channel - half // 2, now - 1, middle, middle] -= 1.0
            block.weight[channel, channel, now, middle, middle] -= 1.0


def _center_tokens(gaze: AutoGaze, frames: torch.Tensor) -> None:
    """What all tokens have in common would drown what tells them apart: their mean becomes 0, their spread that of the
    position table."""
    encoder = gaze.gazing_model.vision_model
    steps = encoder.temporal_conv.weight.shape[2]
    tokens, _ = encoder(frames[:, None].expand(-1, 2 * steps, -1, -1, -1))
    spread = TOKENS / tokens.std(dim=(0, 1, 2)).mean()
    assert encoder.out_proj.bias is not None
    encoder.out_proj.bias.sub_(tokens.mean(dim=(0, 1, 2))).mul_(spread)
    encoder.out_proj.weight.mul_(spread)


def _initialize_places(gaze: AutoGaze, generator: torch.Generator) -> None:
    decoder, grid, config = gaze.gazing_model.gaze_decoder, gaze.grid, gaze.config
    width = config.decoder.hidden_size
    side = config.input_img_size // config.encoder.kernel_size
    frequencies = torch.randn(2, width // 2, generator=generator) / BANDWIDTH

    def code(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Random Fourier features (Rahimi and Recht 2007) of places in units of prompt tokens, (n, width)."""
        angles = torch.stack([rows, columns], dim=1) @ frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1) * math.sqrt(2)

    line = torch.arange(side) + 0.5
    prompt = code(line.repeat_interleave(side), line.repeat(side))
    gaze.gazing_model.connector.pos_embed.copy_(TOKENS * prompt)
    rows, columns, scale = _centres(grid, side)
    positions = code(rows, columns)
    kinds = torch.randn(len(grid.scales), width, generator=generator)[scale]
    mixed = (positions + kinds) / math.sqrt(2)
    decoder.model.embed_tokens.weight[: grid.size] = 0.5 * mixed
    head = decoder.lm_head.weight.view(config.heads_per_step, -1, width)
    head[:, : grid.size] += 0.03 * mixed


def _initialize_attention(gaze: AutoGaze, generator: torch.Generator) -> None:
    """Keys and values may be shared by several heads; then the copy is partial."""
    layers = gaze.gazing_model.gaze_decoder.model.layers
    for layer in layers[len(layers) // 2 :]:
        assert isinstance(layer, DecoderLayer)
        attention = layer.self_attn
        values, output = attention.v_proj.weight, attention.o_proj.weight
        basis, _ = torch.linalg.qr(torch.randn(values.shape[1], values.shape[1], generator=generator))
        rows = basis[torch.arange(values.shape[0]) % len(basis)]
        values.copy_(rows)
        heads = output.shape[1] // values.shape[0]
        per_head = rows.unflatten(0, (-1, attention.head_size)).repeat_interleave(heads, dim=0).flatten(0, 1)
        output.copy_(per_head.T / heads)
        attention.q_proj.weight.mul_(KEYS)
        attention.k_proj.weight.mul_(KEYS)


def _centres(grid: PatchGrid, side: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row and column of the centre of every patch, in units of prompt tokens, and its scale; each (N,)."""
    scale, row, column = grid.locate(torch.arange(grid.size))
    heights, widths = (torch.tensor([s[axis] for s in grid.scales], dtype=torch.float32)[scale] for axis in (0, 1))
    return (row + 0.5) * grid.patch * side / heights, (column + 0.5) * grid.patch * side / widths, scale
