"""The published layout of NVILA-HD-Video: one folder, config.json with model_type nvila, sharded safetensors.

Keys: vision_tower.vision_model.*, mm_projector.layers.*, llm.*. Public pages tell these and the stack of the projector
(joining, LayerNorm, Linear, GELU, LayerNorm, Linear, GELU, Linear: PROJECTOR). The sizes, how many tokens are joined,
and whether the LLM's head is tied come from the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...common.errors import InputError
from .model import FEATURE_LAYER, NativeConfig, NativeModel
from .projectors import KINDS, Projector, build_projector

# Ids of the published tokenizer, used where config.json names none.
IMAGE_TOKEN_ID, VIDEO_TOKEN_ID = 151649, 151650
PROJECTOR = KINDS["mlp_downsample_3x3_fix"]


class NvilaModel(NativeModel):
    """NVILA-8B-HD-Video and its relatives. The projector joins tokens in the order that they come in, dense too."""

    model_type = "nvila"
    CONFIGS = ("config.json",)
    GENERATION = "generation_config.json"
    LAYOUT = (
        ("vision_tower", "", "vision_tower.vision_model."),
        ("mm_projector", "", "mm_projector."),
        ("llm", "", "llm."),
    )

    @classmethod
    def read_config(cls, source: str | Path, files: dict[str, dict[str, Any]]) -> NativeConfig:
        stored = files["config.json"]
        parts = {}
        for name in ("vision_config", "text_config"):
            if not isinstance(stored.get(name), dict):
                raise InputError(f"{source}: config.json has no {name}")
            parts[name] = dict(stored[name])
        return NativeConfig(
            cls.model_type,
            source,
            files,
            **parts,
            vision_feature_layer=stored.get("mm_vision_select_layer", FEATURE_LAYER),
            image_token_id=stored.get("image_token_id", IMAGE_TOKEN_ID),
            video_token_id=stored.get("video_token_id", VIDEO_TOKEN_ID),
        )

    @classmethod
    def make_projector(cls, config: NativeConfig, shapes: Mapping[str, tuple[int, ...]], source: str) -> Projector:
        channels, width = config.vision_config.hidden_size, config.text_config.hidden_size
        return build_projector(PROJECTOR, shapes, channels, width, source)
