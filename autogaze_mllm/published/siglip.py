"""The published `SiglipVisionModel`: our gazed SigLIP tower by its names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..common.errors import InputError
from ..gaze.grid import Side, sides_of
from ..vision.tower import GazedSiglipVisionModel


class SiglipVisionModel(GazedSiglipVisionModel):
    """Loaded and called with the published arguments."""

    @classmethod
    def from_pretrained(cls, source: Any, *args: Any, max_embed_batch_size: int | None = None, **options: Any) -> Self:
        """As `am.GazedSiglipVisionModel.from_pretrained`. max_embed_batch_size: has no effect, since only the kept
        patches are ever embedded."""
        return super().from_pretrained(source, *args, **options)

    @property
    def scales(self) -> list[Side]:
        return sides_of(self.grid)

    @property
    def vision_model(self) -> nn.Module:
        return self.core

    def get_input_embeddings(self) -> nn.Module:
        return self.adapter.embedding

    def forward(  # type: ignore[override]
        self,
        pixel_values: torch.Tensor,
        gazing_info: Mapping[str, Any] | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool = True,
    ) -> BaseModelOutputWithPooling:
        """As `GazedVisionModel.forward`. interpolate_pos_encoding: True, as it always is. Raises InputError where
        attention weights are asked for: they are never made."""
        if output_attentions:
            raise InputError("output_attentions: attention weights are never made; leave it out")
        if not interpolate_pos_encoding:
            raise InputError("interpolate_pos_encoding: positions are always fitted to the scales; leave it True")
        return super().forward(pixel_values, gazing_info, bool(output_hidden_states))
