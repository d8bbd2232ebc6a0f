"""A SigLIP tower that encodes only the gazed patches.

Notable design decisions:
- built *around* a transformers SigLIP vision model: layers, norms, embeddings and pooling head are the base model's own
  modules, so weights are shared, training one trains the other, and LoRA layers put into the base are used;
- patches are cut out before they are embedded, and only kept patches are computed: the packed form has no padding;
- SigLIP 2 checkpoints of fixed resolution use the same transformers class and work the same way.

Shapes: N packed tokens of all clips, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..common.compiling import Compiled
from ..common.errors import InputError
from ..common.pixels import resize_bicubic
from ..gaze.gazed_video import GazedVideo
from ..gaze.grid import PatchGrid, Side
from .attention import AttentionType, Backend, PackedAttention

ENCODE_PATCHES = 1 << 15  # patches that are encoded at a time


def siglip_core(tower: nn.Module) -> Any:
    """The module that holds embeddings, encoder and post_layernorm; InputError when it is no SigLIP vision model."""
    core = getattr(tower, "vision_model", tower)
    config = getattr(core, "config", None)
    if getattr(config, "model_type", None) != "siglip_vision_model" or not hasattr(core, "post_layernorm"):
        kind = getattr(config, "model_type", type(tower).__name__)
        raise InputError(f"the vision tower is a {kind}; gazing needs SigLIP or SigLIP 2 of fixed resolution")
    return core


class GazedSiglipVisionModel(nn.Module):
    """siglip: transformers' SiglipVisionModel, shared and not copied.

    scales: sides in pixels joined by "+" (default: the tower's own image size, one scale).
    attn_type: block_causal (a patch sees its frame and earlier ones), causal (what precedes it) or bidirectional (its
    clip). frame_independent: a patch sees only its own frame. backend: sdpa, eager, flex_attention, flash_attention_2.
    compile: what lies between one attention and the next goes through torch.compile, once for packs of all sizes.
    """

    def __init__(
        self,
        siglip: nn.Module,
        scales: str | int | list[Side] | None = None,
        attn_type: AttentionType = "block_causal",
        frame_independent: bool = False,
        backend: Backend = "sdpa",
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.siglip = siglip
        self.compiled = compile
        self._before: Callable[..., Any] = Compiled(_before_attention) if compile else _before_attention
        self._after: Callable[..., Any] = Compiled(_after_attention) if compile else _after_attention
        config = self.core.config
        self.grid = PatchGrid.of(config.image_size if scales is None else scales, config.patch_size)
        self.attn_type, self.frame_independent, self.backend = attn_type, frame_independent, backend
        PackedAttention([], attn_type, frame_independent, backend, torch.device("cpu"))  # refuses bad settings here

    @property
    def core(self) -> Any:
        return siglip_core(self.siglip)

    @property
    def config(self) -> Any:
        return self.core.config

    @property
    def device(self) -> torch.device:
        return self.core.post_layernorm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.core.post_layernorm.weight.dtype

    def position_table(self) -> torch.Tensor:
        """Position embeddings (positions of the grid, C); the base table is resized where sizes differ."""
        table = self.core.embeddings.position_embedding.weight
        side = round(len(table) ** 0.5)
        parts = []
        for rows, columns in self.grid.cells:
            if (rows, columns) == (side, side):
                parts.append(table)
                continue
            square = table.float().T.reshape(1, -1, side, side)
            parts.append(resize_bicubic(square, rows, columns).flatten(2)[0].T.to(table.dtype))
        return torch.cat(parts)

    def embed(self, gazed: GazedVideo) -> torch.Tensor:
        """Patch embedding plus position (N, C)."""
        convolution = self.core.embeddings.patch_embedding
        patches = gazed.patches.to(self.device, self.dtype)
        embedded = F.linear(patches, convolution.weight.flatten(1), convolution.bias)
        return embedded + self.position_table()[gazed.positions.to(self.device)]

    def encode(self, gazed: GazedVideo, layer: int | None = None) -> torch.Tensor:
        """Features of the kept patches (N, C), in the order of `gazed`. Clips never see each other, so they are run in
        groups of at most ENCODE_PATCHES, which bounds the memory of long videos.

        layer None: after the final norm. Otherwise an index into hidden_states (0: embeddings, -1: last layer without
        the norm); layers after it are not computed.
        """
        if layer is None:
            return torch.cat(
                [self.core.post_layernorm(self._run(part)[-1]) for part in gazed.clip_groups(ENCODE_PATCHES)]
            )
        count = len(self.core.encoder.layers)
        wanted = layer if layer >= 0 else count + 1 + layer
        if not 0 <= wanted <= count:
            raise InputError(f"hidden layer {layer} does not exist: the tower has {count} layers")
        return torch.cat([self._run(part, stop=wanted)[-1] for part in gazed.clip_groups(ENCODE_PATCHES)])

    def forward(
        self, pixel_values: torch.Tensor, gazing_info: Mapping[str, Any], output_hidden_states: bool = False
    ) -> BaseModelOutputWithPooling:
        """Interchange form: pixel_values (B, T, 3, H, W) of any size, gazing_info as `AutoGaze.generate` returns it.

        -> last_hidden_state (B, n, C) in the order of gazing_pos, zeros where padded; pooler_output (B, C) over the
        real entries; hidden_states: the embeddings and the output of every layer.
        """
        gazed = GazedVideo.from_info(pixel_values.to(self.device), gazing_info, self.grid)
        states = self._run(gazed, keep_all=output_hidden_states)
        features = self.core.post_layernorm(states[-1])
        real = ~gazing_info["if_padded_gazing"].bool().to(self.device)

        def unpack(packed: torch.Tensor) -> torch.Tensor:
            padded = packed.new_zeros(*real.shape, packed.shape[-1])
            return padded.index_put((real,), packed)

        pooled = None
        head = getattr(self.core, "head", None)
        if head is not None:
            clips = features.split(real.sum(dim=1).tolist())
            pooled = torch.cat([head(clip[None]) if len(clip) else clip.new_zeros(1, clip.shape[-1]) for clip in clips])
        return BaseModelOutputWithPooling(
            last_hidden_state=unpack(features),
            pooler_output=pooled,
            hidden_states=tuple(unpack(state) for state in states) if output_hidden_states else None,
        )

    def _run(self, gazed: GazedVideo, stop: int | None = None, keep_all: bool = False) -> list[torch.Tensor]:
        """States after the embeddings and each of the first `stop` layers; only the last one unless keep_all."""
        self.grid.check_same(gazed.grid, "the tower", "the gazed video")
        counts = gazed.frame_counts.tolist()
        clips, start = [], 0
        for frames in gazed.clip_frames.tolist():
            clips.append(counts[start : start + frames])
            start += frames
        dropout = self.config.attention_dropout if self.core.training else 0.0
        attention = PackedAttention(clips, self.attn_type, self.frame_independent, self.backend, self.device, dropout)
        x = self.embed(gazed)
        states = [x]
        if self.compiled:
            torch._dynamo.maybe_mark_dynamic(x, 0)
        for layer in self.core.encoder.layers[:stop]:
            if self.core.training and getattr(layer, "gradient_checkpointing", False):
                x = checkpoint(self._layer, layer, x, attention, use_reentrant=False)
            else:
                x = self._layer(layer, x, attention)
            states = [*states, x] if keep_all else [x]
        return states

    def _layer(self, layer: Any, x: torch.Tensor, attention: PackedAttention) -> torch.Tensor:
        """One pre-norm encoder layer on packed tokens (N, C)."""
        return self._after(layer, x, attention(*self._before(layer, x)))


def _before_attention(layer: Any, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Packed tokens (N, C) -> queries, keys and values (N, H, d)."""
    block, y = layer.self_attn, layer.layer_norm1(x)
    return tuple(proj(y).unflatten(-1, (block.num_heads, -1)) for proj in (block.q_proj, block.k_proj, block.v_proj))


def _after_attention(layer: Any, x: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
    x = x + layer.self_attn.out_proj(mixed.flatten(1))
    return x + layer.mlp(layer.layer_norm2(x))
