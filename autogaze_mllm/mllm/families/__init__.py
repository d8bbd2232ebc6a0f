"""One small adapter per family of base models. Adding a family is adding a file and naming it here."""

from __future__ import annotations

from typing import Any

from ...common.errors import InputError
from .aya_vision import AyaVisionFamily
from .base import Family
from .gemma3 import Gemma3Family
from .gemma4 import Gemma4Family
from .internvl import InternVLFamily
from .llava import LlavaFamily
from .llava_next_video import LlavaNextVideoFamily
from .llava_onevision import LlavaOnevisionFamily
from .nvila import NvilaFamily
from .paligemma import PaliGemmaFamily
from .qwen import Qwen3Family, Qwen3MoeFamily, Qwen25Family, Qwen35Family, Qwen35MoeFamily, QwenFamily
from .smolvlm import Idefics3Family, SmolVLMFamily
from .video_llama3 import VideoLlama3Family
from .video_llava import VideoLlavaFamily
from .vila import VilaFamily

OWN: tuple[type[Family], ...] = (
    LlavaFamily,
    LlavaOnevisionFamily,
    LlavaNextVideoFamily,
    VideoLlavaFamily,
    SmolVLMFamily,
    Idefics3Family,
    InternVLFamily,
    AyaVisionFamily,
    Gemma3Family,
    Gemma4Family,
    PaliGemmaFamily,
    QwenFamily,
    Qwen25Family,
    Qwen3Family,
    Qwen3MoeFamily,
    Qwen35Family,
    Qwen35MoeFamily,
    VideoLlama3Family,
    NvilaFamily,
    VilaFamily,
)
FAMILIES: dict[str, type[Family]] = {family.model_type: family for family in OWN}


def family_class(config: Any, source: str) -> type[Family]:
    """The adapter for a base model's configuration; InputError listing the supported families when there is none."""
    return family_of_type(getattr(config, "model_type", None), source)


def family_of_type(kind: str | None, source: str) -> type[Family]:
    """The same, by the model_type alone."""
    if kind not in FAMILIES:
        known = ", ".join(f"{family.title} ({name})" for name, family in FAMILIES.items())
        raise InputError(f"{source}: not a supported family (model_type {kind}); supported: {known}")
    return FAMILIES[kind]


__all__ = ["FAMILIES", "Family", "family_class", "family_of_type"]
