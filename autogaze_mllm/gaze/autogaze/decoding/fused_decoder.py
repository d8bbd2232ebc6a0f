"""The gaze decoder as generation runs it: the same weights and the same arithmetic, fewer and larger operations.

A step feeds ten tokens, so what an operation costs to start counts as much as what it computes. Projections that read
the same input are joined, rotations are looked up, residuals are added inside the products. Each evaluation is read out
at its last token, so the last layer makes keys and values of all tokens, and everything else of that one.

Shapes: B rows, q new tokens, C channels, H query heads, G key/value heads, d channels per head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..decoder import Attend, DecoderLayer, GazeDecoder, RMSNorm


class _Joined:
    """Weight and bias of one linear layer that gives the outputs of all side by side."""

    def __init__(self, *linears: nn.Linear) -> None:
        self.linears = linears
        self.weight = torch.cat(tuple(linear.weight for linear in linears)).detach()
        biased = linears[0].bias is not None
        self.bias = torch.cat(tuple(linear.bias for linear in linears)).detach() if biased else None

    def refresh(self) -> None:
        """Takes over what the weights are now, in place."""
        self.weight.copy_(torch.cat(tuple(linear.weight for linear in self.linears)))
        if self.bias is not None:
            self.bias.copy_(torch.cat(tuple(linear.bias for linear in self.linears)))


@dataclass(frozen=True)
class _Layer:
    qkv: _Joined
    output: nn.Linear
    gate_up: _Joined
    down: nn.Linear
    first_norm: RMSNorm
    second_norm: RMSNorm

    @classmethod
    def of(cls, layer: DecoderLayer) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        return cls(
            _Joined(attention.q_proj, attention.k_proj, attention.v_proj),
            attention.o_proj,
            _Joined(mlp.gate_proj, mlp.up_proj),
            mlp.down_proj,
            layer.input_layernorm,
            layer.post_attention_layernorm,
        )


def add_linear(x: torch.Tensor, linear: nn.Linear, y: torch.Tensor) -> torch.Tensor:
    """x + linear(y) of (B, q, C)."""
    total = torch.addmm(x.flatten(0, 1), y.flatten(0, 1), linear.weight.T).view_as(x)
    return total if linear.bias is None else total + linear.bias


class FusedDecoder:
    """Inference over a GazeDecoder's weights as they are now; positions below `capacity`."""

    def __init__(self, decoder: GazeDecoder, capacity: int) -> None:
        self.embed, self.norm = decoder.model.embed_tokens, decoder.model.norm
        self.heads, self.lm_head, self.losses = (
            decoder.heads_per_step,
            decoder.lm_head,
            decoder.task_loss_prediction_head,
        )
        modules: list[DecoderLayer] = list(decoder.model.layers)  # type: ignore[arg-type]
        self.layers = [_Layer.of(layer) for layer in modules]
        self.head_size = modules[0].self_attn.head_size
        self.queries = modules[0].self_attn.q_proj.out_features
        like = decoder.model.embed_tokens.weight
        angles = torch.outer(torch.arange(capacity), torch.tensor(decoder.frequencies)).to(like.device)
        cos, sin = angles.cos().to(like.dtype), angles.sin().to(like.dtype)
        self.cos, self.sin = torch.cat([cos, cos], dim=1), torch.cat([-sin, sin], dim=1)  # (capacity, d)

    def refresh(self) -> None:
        """Takes over what the weights are now, without moving anything."""
        for layer in self.layers:
            layer.qkv.refresh()
            layer.gate_up.refresh()

    def next_ids(self, readout: torch.Tensor) -> torch.Tensor:
        """State at a readout (B, C) -> scores of the next K ids (B, K, V), float32."""
        return self.lm_head(readout).float().unflatten(-1, (self.heads, -1))

    def __call__(self, x: torch.Tensor, positions: torch.Tensor, attend: Attend, readout: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, q, C) at positions (B, q) -> final-normed states (B, C) of the tokens `readout` (B,)."""
        rotation = self.cos[positions][:, :, None], self.sin[positions][:, :, None]  # (B, q, 1, d)
        rows = torch.arange(len(x), device=x.device)
        for number, layer in enumerate(self.layers):
            y, heads, last = layer.first_norm(x), self.queries // self.head_size, number == len(self.layers) - 1
            weight, bias = layer.qkv.weight, layer.qkv.bias
            if last:
                split = self.queries
                keys_values = F.linear(y, weight[split:], None if bias is None else bias[split:])
                x, y = x[rows, readout][:, None], y[rows, readout][:, None]
                queries = F.linear(y, weight[:split], None if bias is None else bias[:split])
                keys, values = keys_values.unflatten(2, (-1, self.head_size)).chunk(2, dim=2)
                keys = _rotate(keys, *rotation)
                at_readout = (part[rows, readout][:, None] for part in rotation)
                queries = _rotate(queries.unflatten(2, (-1, self.head_size)), *at_readout)
            else:
                both = F.linear(y, weight, bias).unflatten(2, (-1, self.head_size))
                groups = (both.shape[2] - heads) // 2
                turned = _rotate(both[:, :, : heads + groups], *rotation)
                queries, keys, values = turned[:, :, :heads], turned[:, :, heads:], both[:, :, heads + groups :]
            mixed = attend(number, queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2))
            x = add_linear(x, layer.output, mixed.transpose(1, 2).flatten(2))
            gate, up = F.linear(layer.second_norm(x), layer.gate_up.weight, layer.gate_up.bias).chunk(2, dim=2)
            x = add_linear(x, layer.down, F.silu(gate) * up)
        return self.norm(x[:, 0])


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of x (B, q, heads, d) on the pairs (i, i + d/2); sin with the first half negated."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)
