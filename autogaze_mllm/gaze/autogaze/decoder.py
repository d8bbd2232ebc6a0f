"""Llama decoder with multi-token heads.

Notable design decisions:
- these modules hold the weights under their published names and run the differentiable pass over whole sequences
  (scoring, training). Generation runs the same weights through `fused_decoder.FusedDecoder`;
- the layers do not know how keys and values are kept: they hand q, k, v to an `attend` callable.

Shapes: B rows, q new tokens, H query heads, G key/value heads, d channels per head, K heads per step, V ids.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from .config import AutoGazeConfig, GazeDecoderConfig, rope_frequencies

WIDER = 8  # channels that a mask takes: kernels want multiples of this number
HIDDEN = -1e4  # of a score, before it is scaled

# (layer number, queries (B, H, q, d), keys (B, G, q, d), values (B, G, q, d)) -> (B, H, q, d)
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of x (B, heads, q, d) on the pairs (i, i + d/2); cos, sin: (B, 1, q, d/2)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Attention(nn.Module):
    def __init__(self, config: GazeDecoderConfig) -> None:
        super().__init__()
        size, heads, kv_heads, dim = config.hidden_size, config.num_attention_heads, config.kv_heads, config.head_size
        self.head_size = dim
        self.q_proj = nn.Linear(size, heads * dim, bias=config.attention_bias)
        self.k_proj = nn.Linear(size, kv_heads * dim, bias=config.attention_bias)
        self.v_proj = nn.Linear(size, kv_heads * dim, bias=config.attention_bias)
        self.o_proj = nn.Linear(heads * dim, size, bias=config.attention_bias)

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, layer: int, attend: Attend
    ) -> torch.Tensor:
        def split(y: torch.Tensor) -> torch.Tensor:
            return y.unflatten(-1, (-1, self.head_size)).transpose(1, 2)

        queries = rotate(split(self.q_proj(x)), cos, sin)
        keys = rotate(split(self.k_proj(x)), cos, sin)
        mixed = attend(layer, queries, keys, split(self.v_proj(x)))
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class GatedMLP(nn.Module):
    def __init__(self, config: GazeDecoderConfig) -> None:
        super().__init__()
        size, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(size, inner, bias=config.mlp_bias)
        self.up_proj = nn.Linear(size, inner, bias=config.mlp_bias)
        self.down_proj = nn.Linear(inner, size, bias=config.mlp_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, config: GazeDecoderConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = GatedMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, layer: int, attend: Attend
    ) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, layer, attend)
        return x + self.mlp(self.post_attention_layernorm(x))


class DecoderStack(nn.Module):
    """Embedding, layers and final norm (the `model` of the published key names)."""

    def __init__(self, config: GazeDecoderConfig, vocab_size: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class GazeDecoder(nn.Module):
    def __init__(self, config: AutoGazeConfig) -> None:
        super().__init__()
        decoder = config.decoder
        vocab_size = config.num_vision_tokens_each_frame + 1
        self.heads_per_step = config.heads_per_step
        self.frequencies = rope_frequencies(decoder)  # not a buffer: never saved, never cast to half precision
        self.model = DecoderStack(decoder, vocab_size)
        self.lm_head = nn.Linear(decoder.hidden_size, self.heads_per_step * vocab_size, bias=False)
        self.task_loss_prediction_head = nn.Linear(decoder.hidden_size, self.heads_per_step, bias=False)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model.embed_tokens(ids)

    def forward(self, x: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        """Embeddings (B, q, C) at positions (B or 1, q) -> final-normed states (B, q, C)."""
        frequencies = torch.tensor(self.frequencies, device=x.device, dtype=torch.float32)
        angles = positions[:, None, :, None].float() * frequencies
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for number, layer in enumerate(self.model.layers):
            x = layer(x, cos, sin, number, attend)
        return self.model.norm(x)

    def head_logits(self, states: torch.Tensor, head: int) -> torch.Tensor:
        """Logits of one head only, (..., C) -> (..., V): scoring never holds the logits of all K heads at once."""
        weight = self.lm_head.weight.view(self.heads_per_step, -1, self.lm_head.in_features)[head]
        return F.linear(states, weight)


def causal_attention(key_mask: torch.Tensor, dropout: float = 0.0) -> Attend:
    """Attention over a whole sequence at once, differentiable, for scoring. key_mask: (B, S), False where a key is
    hidden.

    No mask of the whole square is ever made, which accelerators would be ten times slower with: hidden keys differ in
    one more channel, in which every query asks for the others.
    """
    hidden = None if bool(key_mask.all()) else ~key_mask[:, None, :, None]

    def attend(layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        size = queries.shape[-1]
        if hidden is not None:
            queries = F.pad(queries, (0, WIDER), value=1.0)
            keys = torch.cat([keys, (hidden * HIDDEN).to(keys.dtype).expand(-1, keys.shape[1], -1, WIDER)], dim=-1)
            values = F.pad(values, (0, WIDER))
        mixed = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            dropout_p=dropout,
            is_causal=True,
            scale=size**-0.5,
            enable_gqa=queries.shape[1] != keys.shape[1],
        )
        return mixed[..., :size]

    return attend
