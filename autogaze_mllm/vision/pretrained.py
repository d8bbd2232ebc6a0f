"""SigLIP towers on disk: alone or inside a model of pictures and texts, with what a gazed tower was made with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Siglip2VisionModel, SiglipVisionModel
from transformers.utils import logging as transformers_logging

from ..common.errors import InputError, first_line, listed
from ..common.foreign_config import check_no_code, check_sizes
from ..common.storage.files import find_file, output_folder, read_fields, read_json, write_json, written_by_others
from ..common.storage.json_text import Fields, shown

CLASSES: dict[str, type[Any]] = {
    "siglip": SiglipVisionModel,
    "siglip_vision_model": SiglipVisionModel,
    "siglip2": Siglip2VisionModel,
    "siglip2_vision_model": Siglip2VisionModel,
}
SHAPE = ("scales", "attn_type", "frame_independent_encoding")  # keys that the published code adds to config.json


def load_siglip(source: str | Path, dtype: torch.dtype | str | None, **hub: Any) -> tuple[nn.Module, dict[str, Any]]:
    """The vision tower of a folder or repository, in evaluation mode, and what config.json says of SHAPE.

    dtype: None is float32, "auto" the stored one. Raises InputError for another kind of model and missing weights.
    """
    path = find_file(source, "config.json", **hub)
    assert path is not None
    stored = read_fields(path)
    kind = stored.get("model_type", Any, None)
    if kind not in CLASSES:
        raise InputError(f"{source}: model_type is {shown(kind)}, not one of {', '.join(CLASSES)}")
    check_no_code(stored.values, path)
    check_sizes(stored.values, path)
    try:
        with _quiet():  # the weights of a text tower are none of ours, and a missing one is said below
            tower, found = CLASSES[kind].from_pretrained(
                source, dtype=dtype or torch.float32, output_loading_info=True, trust_remote_code=False, **hub
            )
    except Exception as error:  # damaged files and wrong shapes come as errors of many types
        raise InputError(f"{source}: weights cannot be loaded: {first_line(error)}") from error
    if missing := sorted(found["missing_keys"]):  # transformers would go on with random values in their place
        raise InputError(f"{source}: the checkpoint lacks {listed(missing, 5)}")
    return tower.eval(), _shape(stored if "vision_config" not in stored.values else stored.object("vision_config"))


def save_siglip(tower: Any, folder: str | Path, shape: dict[str, Any]) -> None:
    """Tower and shape, in the layout of the published code."""
    target = output_folder(folder)
    with _quiet(), written_by_others(target):
        tower.save_pretrained(target)
    write_json(target / "config.json", read_json(target / "config.json") | shape)


def _shape(stored: Fields) -> dict[str, Any]:
    kinds: dict[str, Any] = {"scales": str | int | None, "attn_type": str | None}
    found = {name: stored.get(name, kinds.get(name, bool | None), None) for name in SHAPE}
    return {name: value for name, value in found.items() if value is not None}


@contextmanager
def _quiet() -> Iterator[None]:
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
