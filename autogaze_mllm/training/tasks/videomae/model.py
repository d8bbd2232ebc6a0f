"""VideoMAE: a masked autoencoder that rebuilds frames from the kept patches of all scales.

docs/specification.md, "VideoMAE", says what is computed.

A ViT-MAE under its published key names, with embeddings of scale and time, block-causal attention over frames, and a
choice of the frames that are rebuilt.

Shapes: B clips, T frames, n kept entries over all frames (padding included), N patches of a frame, R rebuilt frames.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ....common.errors import InputError
from ....common.pixels import resize_bicubic
from ....common.storage.json_text import Fields, shown
from ....gaze.grid import PatchGrid, parse_scales
from ....gaze.selection import Selection

LARGEST = 1 << 16  # of any size or count: refused before memory is taken for it


@dataclass(frozen=True)
class VideoMAEConfig:
    """The fields of `config.json` that have a meaning; the defaults are those of ViT-MAE base."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    layer_norm_eps: float = 1e-12
    image_size: int = 224
    patch_size: int = 16
    qkv_bias: bool = True
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int = 2048
    initializer_range: float = 0.02
    scales: str = "32+64+112+224"
    scale_embed: bool = True
    time_embed: bool = True
    max_num_frames: int = 256
    loss_type: str = "l1"
    loss_weights: str = "1"

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            if isinstance(value, int) and not isinstance(value, bool) and not 0 < value <= LARGEST:
                raise InputError(f"VideoMAE: {one.name} must lie in [1, {LARGEST}], got {value}")
        for width, heads in (
            (self.hidden_size, self.num_attention_heads),
            (self.decoder_hidden_size, self.decoder_num_attention_heads),
        ):
            if width % heads or width % 4:
                raise InputError(f"VideoMAE: width {width} must be a multiple of 4 and of its {heads} heads")
        _ = self.grid

    @property
    def grid(self) -> PatchGrid:
        return PatchGrid.of(parse_scales(self.scales), self.patch_size)

    @classmethod
    def from_dict(cls, source: Mapping[str, Any], where: object = "VideoMAE") -> VideoMAEConfig:
        if source.get("model_type", "vit_mae") != "vit_mae":
            raise InputError(f"{where}: model_type is {shown(source['model_type'])}, not 'vit_mae'")
        if source.get("hidden_act", "gelu") != "gelu" or source.get("causal", True) is not True:
            raise InputError(f"{where}: only hidden_act 'gelu' and causal attention are supported")
        values = dict(source)
        for key in ("scales", "loss_weights"):  # one of them is a number, in yaml
            if isinstance(values.get(key), (int, float)) and not isinstance(values[key], bool):
                values[key] = str(values[key])
        known = Fields(values, where).known(cls)
        try:
            return cls(**known)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"model_type": "vit_mae", "hidden_act": "gelu", "causal": True}


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.attention = nn.ModuleDict({name: nn.Linear(width, width, bias=bias) for name in ("query", "key", "value")})
        self.output = nn.ModuleDict({"dense": nn.Linear(width, width)})

    def forward(self, x: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """x: (B, S, C); visible: (B, S, S) True where a query (second) may look at a key (third)."""
        query, key, value = (
            self.attention[name](x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=visible[:, None])
        return self.output["dense"](mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Pre-norm transformer layer with exact GELU."""

    def __init__(self, width: int, heads: int, inner: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads, bias)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = nn.ModuleDict({"dense": nn.Linear(inner, width)})
        self.layernorm_before = nn.LayerNorm(width, eps=eps)
        self.layernorm_after = nn.LayerNorm(width, eps=eps)

    def forward(self, x: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.layernorm_before(x), visible)
        return x + self.output["dense"](F.gelu(self.intermediate["dense"](self.layernorm_after(x))))


class Embeddings(nn.Module):
    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.grid = config.grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = nn.Parameter(position_table(width, config), requires_grad=False)
        self.patch_embeddings = nn.ModuleDict({"projection": nn.Conv2d(3, width, patch, stride=patch)})
        if config.scale_embed:
            self.scale_embed = nn.Parameter(torch.zeros(len(self.grid.scales), width))
        if config.time_embed:
            self.time_embed = nn.Parameter(torch.zeros(config.max_num_frames, width))

    def forward(self, video: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """video: (B, T, 3, H, W); index: (B, n) into the T * N patches of a clip -> (B, 1 + n, C), cls first."""
        table = self.position_embeddings[:, 1:]
        scales = []
        for number, (side, _) in enumerate(self.grid.scales):
            small = resize_bicubic(video.flatten(0, 1), side, side)
            tokens = self.patch_embeddings["projection"](small).flatten(2).transpose(1, 2) + self._positions(
                table, number
            )
            scales.append(tokens + self.scale_embed[number] if hasattr(self, "scale_embed") else tokens)
        tokens = torch.cat(scales, dim=1).unflatten(0, video.shape[:2])  # (B, T, N, C)
        if hasattr(self, "time_embed"):
            tokens = tokens + self.time_embed[: video.shape[1], None]
        tokens = tokens.flatten(1, 2)
        kept = tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))
        first = (self.cls_token + self.position_embeddings[:, :1]).expand(len(video), -1, -1)
        return torch.cat([first, kept], dim=1)

    def _positions(self, table: torch.Tensor, scale: int) -> torch.Tensor:
        """(1, n_s, C): the square table, resized in two dimensions where the scale has another number of patches."""
        if table.shape[1] == self.grid.counts[scale]:
            return table
        side = round(table.shape[1] ** 0.5)
        square = table.transpose(1, 2).unflatten(2, (side, side))
        return resize_bicubic(square, *self.grid.cells[scale]).flatten(2).transpose(1, 2)


class Layers(nn.Module):
    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        for layer in self.layer:
            x = layer(x, visible)
        return x


class Encoder(nn.Module):
    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        layers = [
            Layer(
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size,
                config.layer_norm_eps,
                config.qkv_bias,
            )
            for _ in range(config.num_hidden_layers)
        ]
        self.encoder = Layers(layers)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class Decoder(nn.Module):
    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__()
        width = config.decoder_hidden_size
        self.grid = config.grid
        self.decoder_embed = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(position_table(width, config), requires_grad=False)
        if config.scale_embed:
            self.decoder_scale_embed = nn.Parameter(torch.zeros(len(self.grid.scales), width))
        if config.time_embed:
            self.time_embed = nn.Parameter(torch.zeros(config.max_num_frames, width))
        self.decoder_layers = nn.ModuleList(
            Layer(
                width,
                config.decoder_num_attention_heads,
                config.decoder_intermediate_size,
                config.layer_norm_eps,
                config.qkv_bias,
            )
            for _ in range(config.decoder_num_hidden_layers)
        )
        self.decoder_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.decoder_pred = nn.Linear(width, 3 * config.patch_size**2)

    def frame_embedding(self) -> torch.Tensor:
        """(N, D) position and scale of every patch of a frame. As published the table is stretched as a sequence."""
        table = self.decoder_pos_embed[:, 1:].transpose(1, 2)[:, :, None]  # (1, D, 1, rows)
        parts = []
        for number, count in enumerate(self.grid.counts):
            part = resize_bicubic(table, 1, count)[0, :, 0].T
            parts.append(part + self.decoder_scale_embed[number] if hasattr(self, "decoder_scale_embed") else part)
        return torch.cat(parts)


class VideoMAE(nn.Module):
    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__()
        self.config = config
        self.grid = config.grid
        self.vit = Encoder(config)
        self.decoder = Decoder(config)
        for name, parameter in self.named_parameters():
            if name.endswith(("position_embeddings", "decoder_pos_embed")) or "norm" in name:
                continue
            nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.normal_(
                parameter, std=config.initializer_range
            )

    def encode(self, video: torch.Tensor, selection: Selection) -> torch.Tensor:
        """video: (B, T, 3, H, W) normalised -> latent (B, 1 + n, C)."""
        if video.shape[1] > self.config.max_num_frames and self.config.time_embed:
            raise InputError(f"VideoMAE takes at most {self.config.max_num_frames} frames, got {video.shape[1]}")
        index = (selection.index + selection.frame * self.grid.size).masked_fill(~selection.keep, 0)
        x = self.vit.embeddings(video, index)
        visible = visible_slots(selection.frame, selection.keep)
        return self.vit.layernorm(self.vit.encoder(x, visible))

    def decode(self, latent: torch.Tensor, selection: Selection, frames: list[int]) -> torch.Tensor:
        """latent (B, 1 + n, C) -> the frames asked for, in that order, (B, R, 3, S, S) at the largest scale."""
        decoder, size, steps = self.decoder, self.grid.size, len(selection.counts)
        y = decoder.decoder_embed(latent)
        batch, _, width = y.shape
        # One slot more than there are patches takes what is padded.
        slots = decoder.mask_token.to(y.dtype).expand(batch, steps * size + 1, width)
        column = torch.where(selection.keep, selection.index + selection.frame * size, steps * size)
        slots = slots.scatter(1, column[..., None].expand(-1, -1, width), y[:, 1:])[:, :-1].unflatten(1, (steps, size))
        slots = slots + decoder.frame_embedding()
        if hasattr(decoder, "time_embed"):
            slots = slots + decoder.time_embed[:steps, None]
        slots = slots.flatten(1, 2)
        columns, keep, numbers = [], [], []
        starts = torch.tensor([0, *selection.counts[:-1]]).cumsum(0).tolist()
        for t, (start, count) in enumerate(zip(starts, selection.counts, strict=True)):
            if t in frames:
                column = torch.arange(t * size, (t + 1) * size, device=y.device).expand(batch, -1)
                real = torch.ones_like(column, dtype=torch.bool)
            else:
                real = selection.keep[:, start : start + count]
                column = (selection.index[:, start : start + count] + t * size).masked_fill(~real, 0)
            columns.append(column)
            keep.append(real)
            numbers.append(torch.full((column.shape[1],), t, device=y.device))
        order, real, frame = torch.cat(columns, dim=1), torch.cat(keep, dim=1), torch.cat(numbers)
        x = slots.gather(1, order[..., None].expand(-1, -1, width))
        first = y[:, :1] + decoder.decoder_pos_embed[:, :1]
        x = torch.cat([first, x], dim=1)
        visible = visible_slots(frame, real)
        for layer in decoder.decoder_layers:
            x = layer(x, visible)
        offset = self.grid.offsets[-2]
        ends = torch.tensor([column.shape[1] for column in columns]).cumsum(0).tolist()
        wanted = [x[:, 1 + ends[t] - size + offset : 1 + ends[t]] for t in frames]  # the largest scale alone
        patches = decoder.decoder_pred(decoder.decoder_norm(torch.stack(wanted, dim=1)))
        return self._picture(patches)

    def _picture(self, patches: torch.Tensor) -> torch.Tensor:
        """(B, R, n_last, p * p * 3), each patch in the order row, column, channel -> (B, R, 3, S, S)."""
        patch, (rows, columns) = self.grid.patch, self.grid.cells[-1]
        cells = patches.unflatten(-1, (patch, patch, 3)).unflatten(2, (rows, columns))  # (B, R, r, c, y, x, 3)
        return cells.permute(0, 1, 6, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)


def visible_slots(frame: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """frame: (n,) number of each slot after cls; keep: (B, n) -> (B, 1 + n, 1 + n), True where a query may look.

    Everyone sees cls, cls only itself; a slot sees the real ones of its frame and of earlier ones, and itself. As
    published the last slot is exempt from seeing itself (it matters only where it is padded).
    """
    batch, count = keep.shape
    visible = torch.zeros(batch, count + 1, count + 1, dtype=torch.bool, device=keep.device)
    visible[:, 1:, 1:] = (frame[None] <= frame[:, None]) & keep[:, None]
    visible[:, :, 0] = True
    diagonal = torch.arange(count, device=keep.device)
    visible[:, diagonal, diagonal] = True
    return visible


def position_table(width: int, config: VideoMAEConfig) -> torch.Tensor:
    """(1, 1 + (image / patch)^2, width) sines and cosines of the column, then of the row (He et al. 2022); cls is 0."""
    side = config.image_size // config.patch_size
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, width / 2)
    rows, columns = line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)
    table = torch.cat([columns, rows], dim=2).flatten(0, 1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), table])[None].float()
