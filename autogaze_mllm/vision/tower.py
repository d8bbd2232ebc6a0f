"""A vision tower that encodes only the gazed patches.

Notable design decisions:
- built *around* a vision model of transformers (SigLIP, CLIP and kin: `adapters.py`): layers, norms, embeddings and
  pooling head are the base model's own modules, so weights are shared, training one trains the other, and LoRA layers
  put into the base are used;
- patches are cut out before they are embedded, and only kept patches are computed: the packed form has no padding;
- a model whose projector makes one token of r x r patches is gazed at the grain of these groups: what the grid calls a
  patch is then a group, which the tower cuts into its own patches.

Shapes: N packed patches of all clips, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..common.compute.cancelling import check_cancelled
from ..common.compute.compiling import Compiled, may_vary
from ..common.compute.offloading import execution_device, followed
from ..common.errors import InputError
from ..common.storage.loading import loading_arguments
from ..gaze.gazed_video import GazedVideo
from ..gaze.grid import PatchGrid, Side
from ..gaze.selectors.baselines import AllSelector
from .adapters import TowerAdapter, adapter_of
from .attention import AttentionType, Backend, PackedAttention
from .pretrained import load_siglip, save_siglip

ENCODE_PATCHES = 1 << 15  # patches that are encoded at a time


class GazedVisionModel(nn.Module):
    """base_tower: a vision model of transformers, shared and not copied.

    scales: sides in pixels joined by "+" (default: the tower's own image size, one scale).
    attn_type: block_causal (a patch sees its frame and earlier ones), causal (what precedes it) or bidirectional (its
    clip). frame_independent: a patch sees only its own frame. backend: sdpa, eager, flex_attention, flash_attention_2.
    compile: what lies between one attention and the next goes through torch.compile, once for packs of all sizes.
    group: patches per side of what is gazed as one; the patches of `grid` are that many times as large as the tower's.
    keep_prefix: class tokens are passed on, each before the patches of its frame.
    """

    def __init__(
        self,
        base_tower: nn.Module,
        scales: str | int | list[Side] | None = None,
        attn_type: AttentionType = "block_causal",
        frame_independent: bool = False,
        backend: Backend = "sdpa",
        compile: bool = False,
        group: int = 1,
        keep_prefix: bool = False,
    ) -> None:
        super().__init__()
        self.base_tower = base_tower
        self.compiled = compile
        adapter = self.adapter
        before, after = type(adapter).before_attention, type(adapter).after_attention
        self._before: Callable[..., Any] = Compiled(before) if compile else before
        self._after: Callable[..., Any] = Compiled(after) if compile else after
        self.group, self.keep_prefix = group, keep_prefix and adapter.prefix > 0
        if self.keep_prefix and group > 1:
            raise InputError("class tokens cannot be kept where patches are gazed in groups")
        self.grid = PatchGrid.of(adapter.image_size if scales is None else scales, adapter.patch_size * group)
        self.attn_type, self.frame_independent, self.backend = attn_type, frame_independent, backend
        where = execution_device(adapter.embedding)  # an adapter that is wrong about its tower fails here
        PackedAttention([], attn_type, frame_independent, backend, where)  # refuses bad settings

    @property
    def adapter(self) -> TowerAdapter:
        return adapter_of(self.base_tower)

    @property
    def core(self) -> Any:
        """The module that holds embeddings, encoder and final norm."""
        return self.adapter.core

    @property
    def config(self) -> Any:
        return self.core.config

    @property
    def device(self) -> torch.device:
        return execution_device(self.adapter.embedding)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.adapter.embedding.parameters()).dtype

    def position_table(self) -> torch.Tensor:
        """Position embeddings of the tower's own patches, group after group (positions of the grid * group^2, C); the
        base table is resized where sizes differ."""
        r, parts = self.group, []
        for rows, columns in self.grid.cells:
            table = self.adapter.position_table(rows * r, columns * r)
            if r > 1:
                table = table.view(rows, r, columns, r, -1).transpose(1, 2).flatten(0, 3)
            parts.append(table)
        return torch.cat(parts)

    def embed(self, gazed: GazedVideo) -> torch.Tensor:
        """Patch embedding plus position (N * group^2, C): groups in the order of `gazed`, each row by row."""
        r, patches = self.group, gazed.patches.to(self.device, self.dtype)
        index = gazed.positions.to(self.device)
        if r > 1:
            p = self.grid.patch // r
            patches = patches.view(-1, 3, r, p, r, p).permute(0, 2, 4, 1, 3, 5).reshape(-1, 3 * p * p)
            index = (index[:, None] * (r * r) + torch.arange(r * r, device=index.device)).flatten()
        return self.adapter.embed(patches) + self.position_table()[index]

    tubelet = 1  # frames that a patch reaches over
    thumbnail_cells = None  # thumbnails are pictures of their own
    fixed = True  # the same grid for every video

    def facts(self) -> dict[str, Any]:
        """Json values besides the grid that decide which patches are kept."""
        return {}

    def check_video(self, gazed: GazedVideo) -> None:
        """Raises InputError for a video that was gazed for another tower."""
        self.grid.check_same(gazed.grid, "the tower", "the gazed video")
        if gazed.tubelet != 1:
            raise InputError(f"the video was gazed in steps of {gazed.tubelet} frames, the tower takes single frames")

    def rows(self, gazed: GazedVideo) -> torch.Tensor:
        """(F,) rows that `encode` gives for each clip frame: its kept patches, and a class token where that is kept."""
        counts = gazed.frame_counts
        return counts + (counts > 0).long() * self.adapter.prefix if self.keep_prefix else counts

    def token_order(self, gazed: GazedVideo, raster: bool) -> torch.Tensor:
        """Rows of `encode` in the order of the visual tokens (`GazedVideo.token_order`), a kept class token before the
        patches of its frame."""
        order = gazed.token_order(raster)
        if not self.keep_prefix:
            return order
        rows, counts = self.rows(gazed), gazed.frame_counts
        frame = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        patches = torch.arange(len(gazed), device=counts.device) + (rows - counts).cumsum(0)[frame]
        prefixes = (rows.cumsum(0) - rows)[rows > 0]
        shown = torch.cat([prefixes, patches[order]])
        frames = torch.cat([(rows > 0).nonzero().flatten(), frame[order]])
        return shown[gazed.pictures[frames].argsort(stable=True)]

    def encode(self, gazed: GazedVideo, layer: int | None = None) -> torch.Tensor:
        """Features of the kept patches (N, C), in the order of `gazed`; of groups (N, group^2, C), each row by row.
        Clips never see each other, so they are run in groups of at most ENCODE_PATCHES, which bounds the memory of long
        videos.

        layer None: after the final norm. Otherwise an index into hidden_states (0: embeddings, -1: last layer without
        the norm); layers after it are not computed.
        """
        count = len(self.adapter.layers)
        wanted = count if layer is None else layer if layer >= 0 else count + 1 + layer
        if not 0 <= wanted <= count:
            raise InputError(f"hidden layer {layer} does not exist: the tower has {count} layers")
        most = max(ENCODE_PATCHES // self.group**2, 1)
        found = [self._run(part, stop=wanted)[-1] for part in gazed.clip_groups(most)]
        features = torch.cat([self.adapter.final_norm(x) for x in found] if layer is None else found).to(self.device)
        return features.unflatten(0, (-1, self.group**2)) if self.group > 1 else features

    def forward(
        self,
        pixel_values: torch.Tensor,
        gazing_info: Mapping[str, Any] | None = None,
        output_hidden_states: bool = False,
    ) -> BaseModelOutputWithPooling:
        """Interchange form: pixel_values (B, T, 3, H, W) of any size, gazing_info as `AutoGaze.generate` returns it;
        None keeps every patch of every scale.

        -> last_hidden_state (B, n, C) in the order of gazing_pos, zeros where padded (the channels of a group's patches
        joined); pooler_output (B, C) over the real entries, for towers with a pooling head; hidden_states: the
        embeddings and the output of every layer.
        """
        if self.keep_prefix:
            raise InputError("the interchange form has no place for class tokens: use encode()")
        if pixel_values.ndim != 5:
            raise InputError(f"pixel_values must be (clips, frames, 3, height, width), got {tuple(pixel_values.shape)}")
        if gazing_info is None:
            gazing_info = AllSelector().select(pixel_values, self.grid, 1.0, None)
        gazed = GazedVideo.from_info(pixel_values.to(self.device), gazing_info, self.grid)
        states = self._run(gazed, keep_all=output_hidden_states)
        features = self.adapter.final_norm(states[-1])
        real = ~gazing_info["if_padded_gazing"].bool().to(self.device)

        def unpack(packed: torch.Tensor) -> torch.Tensor:
            packed = packed.reshape(len(gazed), packed.shape[-1] * self.group**2)
            padded = packed.new_zeros(*real.shape, packed.shape[-1])
            return padded.index_put((real,), packed)

        pooled = None
        head = getattr(self.core, "head", None)
        if head is not None and self.group == 1:
            clips = features.split(real.sum(dim=1).tolist())
            pooled = torch.cat([head(clip[None]) if len(clip) else clip.new_zeros(1, clip.shape[-1]) for clip in clips])
        return BaseModelOutputWithPooling(
            last_hidden_state=unpack(features),
            pooler_output=pooled,
            hidden_states=tuple(unpack(state) for state in states) if output_hidden_states else None,
        )

    def _run(self, gazed: GazedVideo, stop: int | None = None, keep_all: bool = False) -> list[torch.Tensor]:
        """States after the embeddings and each of the first `stop` layers; only the last one unless keep_all. Class
        tokens are left out unless they are kept."""
        self.check_video(gazed)
        adapter = self.adapter
        x, patches, counts = self._with_prefix(self.embed(gazed), gazed.frame_counts.to(self.device))
        attention = self._attention(gazed.clip_frames.tolist(), counts.tolist())
        x = adapter.first_norm(x)
        states = [x]
        if self.compiled:
            may_vary(x, 0)
        for layer in adapter.layers[:stop]:
            check_cancelled()
            x = followed(x, layer)
            if self.core.training and getattr(layer, "gradient_checkpointing", False):
                x = checkpoint(self._layer, adapter, layer, x, attention, use_reentrant=False)
            else:
                x = self._layer(adapter, layer, x, attention)
            states = [*states, x] if keep_all else [x]
        return states if patches is None or self.keep_prefix else [state[patches] for state in states]

    def _attention(self, clip_frames: list[int], counts: list[int]) -> PackedAttention:
        """counts: tokens of each frame of all clips."""
        clips, start = [], 0
        for frames in clip_frames:
            clips.append(counts[start : start + frames])
            start += frames
        dropout = self.adapter.attention_dropout if self.core.training else 0.0
        return PackedAttention(clips, self.attn_type, self.frame_independent, self.backend, self.device, dropout)

    def _with_prefix(
        self, x: torch.Tensor, kept: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Embedded patches -> the same with the prefix tokens of each frame that keeps anything before its patches,
        which of the rows are patches (None: all), and the tokens of each frame. kept: (F,) groups of each frame."""
        counts, prefix = kept * self.group**2, self.adapter.prefix
        if not prefix:
            return x, None, counts
        seen = counts > 0
        counts = counts + seen.long() * prefix
        starts = (counts.cumsum(0) - counts)[seen]
        patches = torch.ones(int(counts.sum()), dtype=torch.bool, device=x.device)
        patches[(starts[:, None] + torch.arange(prefix, device=x.device)).flatten()] = False
        source = torch.empty(len(patches), dtype=torch.long, device=x.device)
        source[patches] = torch.arange(len(x), device=x.device)
        source[~patches] = len(x) + torch.arange(prefix, device=x.device).repeat(int(seen.sum()))
        return torch.cat([x, self.adapter.prefix_tokens().to(x.dtype)])[source], patches, counts

    def _layer(self, adapter: TowerAdapter, layer: Any, x: torch.Tensor, attention: PackedAttention) -> torch.Tensor:
        """One pre-norm encoder layer on packed tokens."""
        return self._after(adapter, layer, x, attention(*self._before(adapter, layer, x)))


class GazedSiglipVisionModel(GazedVisionModel):
    """The name of a gazed tower that is SigLIP, as in the published code."""

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        scales: str | int | list[Side] | None = None,
        *,
        attn_implementation: Backend = "sdpa",
        attn_type: AttentionType | None = None,
        frame_independent_encoding: bool | None = None,
        compile: bool = False,
        **options: Any,
    ) -> Self:
        """The SigLIP or SigLIP 2 tower of a folder or a hub repository, alone or of a model of pictures and texts, in
        evaluation mode.

        scales, attn_type, frame_independent_encoding: default: what was saved with it, else the image size,
        block_causal, no. attn_implementation: the backend. options: as in `AutoGaze.from_pretrained`. Raises InputError
        for another kind of model, missing weights and unknown arguments.
        """
        own = ("scales", "attn_implementation", "attn_type", "frame_independent_encoding", "compile")
        device, dtype, hub = loading_arguments(f"{cls.__name__}.from_pretrained", options, own)
        tower, stored = load_siglip(source, dtype, **hub)
        shape = {"attn_type": attn_type, "frame_independent_encoding": frame_independent_encoding, "scales": scales}
        stored |= {name: value for name, value in shape.items() if value is not None}
        model = cls(
            tower,
            stored.get("scales"),
            stored.get("attn_type", "block_causal"),
            stored.get("frame_independent_encoding", False),
            attn_implementation,
            compile,
        )
        return model.to(device).eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Tower, scales and attention, in the layout of the published code; `from_pretrained` reads it."""
        if any(height != width for height, width in self.grid.scales):
            raise InputError(f"{folder}: the layout has no place for scales that are not square ({self.grid})")
        scales = "+".join(str(height) for height, _ in self.grid.scales)
        shape = {"attn_type": self.attn_type, "frame_independent_encoding": self.frame_independent}
        save_siglip(self.base_tower, folder, {"scales": scales, **shape})
