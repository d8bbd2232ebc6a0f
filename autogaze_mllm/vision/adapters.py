"""How the vision towers of transformers are taken apart: one short adapter per kind of vision transformer.

An adapter reads a tower and calls its own modules; it never changes it, and it holds no weights. What it answers is
what must be right so that a gazed tower which keeps everything equals its base: embeddings, tokens before the patches,
norms, the rule that fits the position table to another size, and how one layer runs on packed tokens.

Shapes: N packed tokens, C channels, H heads, d channels per head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from ..common.errors import InputError, listed
from ..common.pixels import resize_bicubic

Mix = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class TowerAdapter:
    """SigLIP and SigLIP 2 of fixed resolution; the others say where they differ.

    prefix: tokens that stand before the patches of every frame (a class token, registers).
    """

    kinds: ClassVar[tuple[str, ...]] = ("siglip_vision_model",)
    prefix: int = 0

    def __init__(self, core: Any) -> None:
        self.core = core

    @property
    def config(self) -> Any:
        return self.core.config

    @property
    def patch_size(self) -> int:
        return square(self.config.patch_size, "patches")

    @property
    def image_size(self) -> int:
        """Pixels along one side of the pictures that the position table was made for."""
        return square(self.config.image_size, "pictures")

    @property
    def layers(self) -> Sequence[Any]:
        return self.core.encoder.layers

    @property
    def final_norm(self) -> Any:
        return self.core.post_layernorm

    @property
    def reference(self) -> torch.Tensor:
        """A parameter that is on the tower's device and in its dtype."""
        return self.core.embeddings.position_embedding.weight

    @property
    def attention_dropout(self) -> float:
        return self.config.attention_dropout

    def embed(self, patches: torch.Tensor) -> torch.Tensor:
        """Normalised patches (n, 3 * patch * patch) -> (n, C), without positions."""
        convolution = self.core.embeddings.patch_embedding
        return F.linear(patches, convolution.weight.flatten(1), convolution.bias)

    def positions(self) -> torch.Tensor:
        """The table of the patches (side * side, C)."""
        return self.core.embeddings.position_embedding.weight

    def resize(self, table: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """table (1, C, side, side) fp32 -> (1, C, rows, columns), by the tower's own rule."""
        return resize_bicubic(table, rows, columns)

    def position_table(self, rows: int, columns: int) -> torch.Tensor:
        """Position embeddings of a scale of rows x columns patches (rows * columns, C)."""
        table = self.positions()
        side = round(len(table) ** 0.5)
        if (rows, columns) == (side, side):
            return table
        square_table = table.float().T.reshape(1, -1, side, side)
        return self.resize(square_table, rows, columns).flatten(2)[0].T.to(table.dtype)

    def prefix_tokens(self) -> torch.Tensor:
        """(prefix, C), their positions added."""
        raise NotImplementedError

    def first_norm(self, x: torch.Tensor) -> torch.Tensor:
        """What comes between the embeddings and the first layer, class token included."""
        return x

    def before_attention(self, layer: Any, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Packed tokens (N, C) -> queries, keys and values (N, H, d)."""
        block, y = layer.self_attn, layer.layer_norm1(x)
        parts = (proj(y) for proj in (block.q_proj, block.k_proj, block.v_proj))
        return tuple(part.unflatten(-1, (block.num_heads, -1)) for part in parts)

    def after_attention(self, layer: Any, x: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        """mixed (N, H, d) -> the layer's output (N, C)."""
        x = x + layer.self_attn.out_proj(mixed.flatten(1))
        return x + layer.mlp(layer.layer_norm2(x))


class NearestTableAdapter(TowerAdapter):
    """SmolVLM and Idefics3: SigLIP's layers, and a position table whose nearest entry is taken for other sizes."""

    kinds = ("smolvlm_vision", "idefics3_vision")

    def resize(self, table: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        side = table.shape[-1]
        down = torch.arange(rows, device=table.device) * side // rows
        across = torch.arange(columns, device=table.device) * side // columns
        return table[:, :, down[:, None], across[None]]


class ClipAdapter(TowerAdapter):
    """CLIP: a class token, and a norm before the first layer."""

    kinds = ("clip_vision_model",)
    prefix = 1

    def positions(self) -> torch.Tensor:
        return self.core.embeddings.position_embedding.weight[1:]

    def prefix_tokens(self) -> torch.Tensor:
        embeddings = self.core.embeddings
        return (embeddings.class_embedding + embeddings.position_embedding.weight[0])[None]

    def first_norm(self, x: torch.Tensor) -> torch.Tensor:
        return self.core.pre_layrnorm(x)  # spelt so in transformers


class InternVLAdapter(TowerAdapter):
    """InternVL: a class token, layers that are scaled, and norms of queries and keys over the whole width."""

    kinds = ("internvl_vision",)
    prefix = 1

    @property
    def layers(self) -> Sequence[Any]:
        return self.core.encoder.layer

    @property
    def final_norm(self) -> Any:
        return self.core.layernorm

    @property
    def reference(self) -> torch.Tensor:
        return self.core.embeddings.cls_token

    def embed(self, patches: torch.Tensor) -> torch.Tensor:
        convolution = self.core.embeddings.patch_embeddings.projection
        return F.linear(patches, convolution.weight.flatten(1), convolution.bias)

    def _table(self) -> torch.Tensor:
        table = self.core.embeddings.position_embeddings
        if table is None:
            raise InputError("an InternVL tower without absolute position embeddings cannot be gazed")
        return table[0]

    def positions(self) -> torch.Tensor:
        return self._table()[1:]

    def prefix_tokens(self) -> torch.Tensor:
        return self.core.embeddings.cls_token[0] + self._table()[:1]

    def before_attention(self, layer: Any, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        block, y = layer.attention, layer.layernorm_before(x)
        q, k, v = block.q_norm(block.q_proj(y)), block.k_norm(block.k_proj(y)), block.v_proj(y)
        return tuple(part.unflatten(-1, (block.num_heads, -1)) for part in (q, k, v))

    def after_attention(self, layer: Any, x: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        block = layer.attention
        x = x + layer.lambda_1 * block.projection_dropout(block.projection_layer(mixed.flatten(1)))
        return x + layer.lambda_2 * layer.dropout(layer.mlp(layer.layernorm_after(x)))


ADAPTERS: tuple[type[TowerAdapter], ...] = (TowerAdapter, NearestTableAdapter, ClipAdapter, InternVLAdapter)


def square(side: int | Sequence[int], what: str) -> int:
    """A side that configurations give as one number or as two; InputError for two that differ."""
    sides = [side] if isinstance(side, int) else list(side)
    if len(set(sides)) != 1:
        raise InputError(f"a tower whose {what} are {' x '.join(map(str, sides))} pixels cannot be gazed: not square")
    return int(sides[0])


def tower_kinds() -> list[str]:
    """The model_type of every vision tower that can be gazed."""
    return [kind for adapter in ADAPTERS for kind in adapter.kinds]


def adapter_of(tower: nn.Module) -> TowerAdapter:
    """InputError naming the kinds that can be gazed when this is none of them."""
    core = getattr(tower, "vision_model", tower)
    config = getattr(core, "config", None)
    kind = getattr(config, "model_type", None)
    for adapter in ADAPTERS:
        if kind in adapter.kinds and hasattr(core, "encoder"):
            return adapter(core)
    raise InputError(
        f"the vision tower is a {kind or type(tower).__name__}; those that can be gazed: {listed(tower_kinds(), 12)}"
    )
