"""One small adapter per family of base models, in the room of its kind: `framed/` pictures of one size, `any_size/`
pictures of any size, `llava/` LLaVA and its kin, `native/` models that transformers does not have. Adding a family is
adding a file and naming it here."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from ...common.errors import InputError
from .any_size.gemma4 import Gemma4Family
from .any_size.qwen import Qwen3Family, Qwen3MoeFamily, Qwen25Family, Qwen35Family, Qwen35MoeFamily, QwenFamily
from .any_size.video_llama3 import VideoLlama3Family
from .base import Family
from .framed.aya_vision import AyaVisionFamily
from .framed.gemma3 import Gemma3Family
from .framed.internvl import InternVLFamily
from .framed.paligemma import PaliGemmaFamily
from .framed.smolvlm import Idefics3Family, SmolVLMFamily
from .llava.llava import LlavaFamily
from .llava.llava_next_video import LlavaNextVideoFamily
from .llava.llava_onevision import LlavaOnevisionFamily
from .llava.video_llava import VideoLlavaFamily
from .native.nvila import NvilaFamily
from .native.vila import VilaFamily

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
ENTRY_POINTS = "autogaze_mllm.families"
FAMILIES: dict[str, type[Family]] = {family.model_type: family for family in OWN}


def register_family(family: type[Family]) -> type[Family]:
    """Makes an adapter of your own known, for this process: base models of its model_type are wrapped by it. Usable as
    a decorator. Raises InputError for what is no adapter, or takes the place of another."""
    if not (isinstance(family, type) and issubclass(family, Family)):
        raise InputError(f"{family!r} is no family adapter: a class made from autogaze_mllm.Family")
    missing = [name for name in ("model_type", "title", "example") if not isinstance(getattr(family, name, None), str)]
    if missing:
        raise InputError(f"{family.__name__} does not say its {missing[0]}")
    known = FAMILIES.get(family.model_type)
    if known is not None and known is not family:
        raise InputError(f"model_type {family.model_type} is already that of {known.__name__}")
    FAMILIES[family.model_type] = family
    return family


def family_class(config: Any, source: str) -> type[Family]:
    """The adapter for a base model's configuration; InputError listing the supported families when there is none."""
    return family_of_type(getattr(config, "model_type", None), source)


def family_of_type(kind: str | None, source: str) -> type[Family]:
    """The same, by the model_type alone. One that is not known here may come from an installed package: its entry point
    of the group ENTRY_POINTS, by the name of the model_type, is the adapter."""
    if kind is not None and kind not in FAMILIES:
        for found in entry_points(group=ENTRY_POINTS, name=kind):
            register_family(found.load())
    if kind not in FAMILIES:
        known = ", ".join(f"{family.title} ({name})" for name, family in FAMILIES.items())
        raise InputError(f"{source}: not a supported family (model_type {kind}); supported: {known}")
    return FAMILIES[kind]


__all__ = ["FAMILIES", "Family", "family_class", "family_of_type", "register_family"]
