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

from ..common.compute.offloading import execution_device, present
from ..common.errors import InputError, listed
from ..common.pixels import resize_bicubic

Mix = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class TowerAdapter:
    """SigLIP and SigLIP 2 of fixed resolution; the others say where they differ.

    kinds: the model_type of configurations that it is for. prefix: tokens that stand before the patches of every frame
    (a class token, registers). in_models: base models of the families can have such a tower.
    """

    kinds: ClassVar[tuple[str, ...]] = ("siglip_vision_model",)
    in_models: ClassVar[bool] = True
    prefix: int = 0

    def __init__(self, core: Any) -> None:
        self.core = core

    @classmethod
    def fits(cls, core: Any) -> bool:
        """Whether a module of one of the kinds is the tower itself, and not a model around it."""
        return hasattr(core, "encoder")

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
    def embedding(self) -> Any:
        """What embeds patches, a convolution for most; it is on the tower's device and in its dtype."""
        return self.core.embeddings.patch_embedding

    @property
    def attention_dropout(self) -> float:
        return self.config.attention_dropout

    def embed(self, patches: torch.Tensor) -> torch.Tensor:
        """Normalised patches (n, 3 * patch * patch) -> (n, C), without positions."""
        convolution = self.embedding
        if type(convolution) is not nn.Conv2d:  # with LoRA, or quantised
            return convolution(patches.unflatten(1, (3, self.patch_size, self.patch_size))).flatten(1)
        with present(convolution):
            return F.linear(patches, convolution.weight.flatten(1), convolution.bias)

    def positions(self) -> torch.Tensor:
        """The table of the patches (side * side, C)."""
        table = self.core.embeddings.position_embedding
        return table(torch.arange(self.prefix, len(table.weight), device=execution_device(table)))

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

    def prefix_tokens(self) -> torch.Tensor:
        embeddings = self.core.embeddings
        first = torch.zeros(1, dtype=torch.long, device=execution_device(embeddings.position_embedding))
        with present(embeddings):
            return embeddings.class_embedding + embeddings.position_embedding(first)

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
    def embedding(self) -> Any:
        return self.core.embeddings.patch_embeddings.projection

    def _table(self) -> torch.Tensor:
        with present(self.core.embeddings):
            table = self.core.embeddings.position_embeddings
        if table is None:
            raise InputError("an InternVL tower without absolute position embeddings cannot be gazed")
        return table[0]

    def positions(self) -> torch.Tensor:
        return self._table()[1:]

    def prefix_tokens(self) -> torch.Tensor:
        with present(self.core.embeddings):
            return self.core.embeddings.cls_token[0] + self._table()[:1]

    def before_attention(self, layer: Any, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        block, y = layer.attention, layer.layernorm_before(x)
        q, k, v = block.q_norm(block.q_proj(y)), block.k_norm(block.k_proj(y)), block.v_proj(y)
        return tuple(part.unflatten(-1, (block.num_heads, -1)) for part in (q, k, v))

    def after_attention(self, layer: Any, x: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        block = layer.attention
        with present(layer):
            first, second = layer.lambda_1, layer.lambda_2
        x = x + first * block.projection_dropout(block.projection_layer(mixed.flatten(1)))
        return x + second * layer.dropout(layer.mlp(layer.layernorm_after(x)))


class NaFlexAdapter(TowerAdapter):
    """SigLIP 2 of any resolution (NaFlex): patches come cut, channels last, and the position table is read between its
    entries with antialiasing. It takes their mask and sizes beside pictures, and base models of the families have
    none to give it."""

    kinds = ("siglip2_vision_model",)
    in_models = False

    @property
    def image_size(self) -> int:
        return round(self.config.num_patches**0.5) * self.patch_size

    def embed(self, patches: torch.Tensor) -> torch.Tensor:
        return self.core.embeddings.patch_embedding(patches.unflatten(1, (3, -1)).transpose(1, 2).flatten(1))

    def resize(self, table: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        return F.interpolate(table, (rows, columns), mode="bilinear", align_corners=False, antialias=True)


class Dinov2Adapter(TowerAdapter):
    """DINOv2: a class token, and layers that are scaled. Its stochastic depth, of training alone, is not applied."""

    kinds: ClassVar[tuple[str, ...]] = ("dinov2",)
    prefix = 1

    @property
    def layers(self) -> Sequence[Any]:
        return self.core.encoder.layer

    @property
    def final_norm(self) -> Any:
        return self.core.layernorm

    @property
    def embedding(self) -> Any:
        return self.core.embeddings.patch_embeddings.projection

    @property
    def attention_dropout(self) -> float:
        return self.config.attention_probs_dropout_prob

    def positions(self) -> torch.Tensor:
        with present(self.core.embeddings):
            return self.core.embeddings.position_embeddings[0, 1:]

    def prefix_tokens(self) -> torch.Tensor:
        embeddings = self.core.embeddings
        with present(embeddings):
            return embeddings.cls_token[0] + embeddings.position_embeddings[0, :1]

    def before_attention(self, layer: Any, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        block, y = layer.attention, layer.norm1(x)
        if hasattr(block, "attention"):  # as earlier transformers have it
            block = block.attention
            parts = (block.query(y), block.key(y), block.value(y))
        else:
            parts = (block.q_proj(y), block.k_proj(y), block.v_proj(y))
        return tuple(part.unflatten(-1, (block.num_attention_heads, -1)) for part in parts)

    def after_attention(self, layer: Any, x: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        block, y = layer.attention, mixed.flatten(1)
        x = x + layer.layer_scale1(block.output(y, x) if hasattr(block, "output") else block.o_proj(y))
        return x + layer.layer_scale2(layer.mlp(layer.norm2(x)))


class RegistersAdapter(Dinov2Adapter):
    """DINOv2 with registers, which stand between the class token and the patches and have no positions."""

    kinds = ("dinov2_with_registers",)
    in_models = False  # the families' bases would take registers for patches

    def __init__(self, core: Any) -> None:
        super().__init__(core)
        self.prefix = 1 + self.config.num_register_tokens

    def prefix_tokens(self) -> torch.Tensor:
        with present(self.core.embeddings):
            registers = self.core.embeddings.register_tokens[0]
        return torch.cat([super().prefix_tokens(), registers])

    def resize(self, table: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        return F.interpolate(table, (rows, columns), mode="bicubic", align_corners=False, antialias=True)


ADAPTERS: list[type[TowerAdapter]] = [
    TowerAdapter,
    NearestTableAdapter,
    ClipAdapter,
    InternVLAdapter,
    NaFlexAdapter,
    Dinov2Adapter,
    RegistersAdapter,
]


def register_tower(adapter: type[TowerAdapter]) -> type[TowerAdapter]:
    """Makes an adapter of your own known, for this process: towers of its kinds are gazed by it. Usable as a decorator.
    Raises InputError for what is no adapter, or takes the place of another."""
    if not (isinstance(adapter, type) and issubclass(adapter, TowerAdapter)):
        raise InputError(f"{adapter!r} is no tower adapter: a class made from autogaze_mllm.TowerAdapter")
    if adapter not in ADAPTERS:
        if "kinds" not in vars(adapter) or isinstance(adapter.kinds, str) or not adapter.kinds:
            raise InputError(f"{adapter.__name__} does not say its kinds: a tuple of model types")
        taken = [kind for kind in adapter.kinds if kind in tower_kinds()]
        if taken:
            raise InputError(f"towers of model_type {taken[0]} have an adapter already")
        ADAPTERS.append(adapter)
    return adapter


def square(side: int | Sequence[int], what: str) -> int:
    """A side that configurations give as one number or as two; InputError for two that differ."""
    sides = [side] if isinstance(side, int) else list(side)
    if len(set(sides)) != 1:
        raise InputError(f"a tower whose {what} are {' x '.join(map(str, sides))} pixels cannot be gazed: not square")
    return int(sides[0])


def tower_kinds(in_models: bool = False) -> list[str]:
    """The model_type of every vision tower that can be gazed. in_models: of those that base models can have."""
    return [kind for adapter in ADAPTERS if adapter.in_models or not in_models for kind in adapter.kinds]


def adapter_of(tower: nn.Module) -> TowerAdapter:
    """InputError naming the kinds that can be gazed when this is none of them."""
    core = getattr(tower, "vision_model", tower)
    config = getattr(core, "config", None)
    kind = getattr(config, "model_type", None)
    for adapter in ADAPTERS:
        if kind in adapter.kinds and adapter.fits(core):
            return adapter(core)
    raise InputError(
        f"the vision tower is a {kind or type(tower).__name__}; those that can be gazed: {listed(tower_kinds(), 12)}"
    )
