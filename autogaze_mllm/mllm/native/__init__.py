"""Base models that transformers does not have: the published NVILA-HD-Video layout and VILA-style folders.

Plain modules around transformers' own SigLIP, Llama and Qwen2; no code from a checkpoint is ever run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...common.foreign_config import check_generation, check_no_code, check_sizes
from ...common.storage.files import find_file, read_fields, read_json
from .model import NativeConfig, NativeModel
from .nvila import NvilaModel
from .vila import VilaModel


def native_class(source: str | Path, **hub: Any) -> type[NativeModel] | None:
    """The native model for a folder or hub repository, or None when transformers is to load it."""
    path = find_file(source, "config.json", **hub)
    assert path is not None
    stored = read_fields(path)
    check_no_code(stored.values, path)  # of any base model: this is where each is looked at first
    check_sizes(stored.values, path)
    generation = Path(source) / "generation_config.json"
    if generation.is_file():
        check_generation(read_json(generation), generation)
    if VilaModel.recognises(source, dict(stored.values)):
        return VilaModel
    return NvilaModel if stored.get("model_type", Any, None) == NvilaModel.model_type else None


__all__ = ["NativeConfig", "NativeModel", "NvilaModel", "VilaModel", "native_class"]
