"""What an index holds, and whether a model finds it: `index.json` in a folder that `autogaze-mllm index` filled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import InputError, listed
from ..common.storage.files import read_fields
from ..common.storage.json_diff import SHOWN, differences
from ..common.storage.json_text import shown
from .cache import INDEX_FILE, is_index

FORMAT = 1


@dataclass(frozen=True)
class IndexInfo:
    """folder: where the videos were. model, gaze: as they were named; None: the default. settings: of the videos, what
    was chosen. facts: all that decides what is stored; an index is only ever gone on with by the same."""

    folder: str
    model: str | None
    gaze: str | None
    settings: dict[str, Any]
    facts: dict[str, Any]


def read_index(folder: str | Path) -> IndexInfo:
    """Raises InputError where there is none."""
    path = Path(folder) / INDEX_FILE
    if not is_index(folder):
        raise InputError(f"{folder}: no index here (there is no {INDEX_FILE}); `autogaze-mllm index` makes one")
    stored = read_fields(path)
    if stored.get("format", Any, None) != FORMAT:
        stored_format = shown(stored.values.get("format"))
        raise InputError(f"{path}: format {stored_format}, this version reads {FORMAT}")
    return IndexInfo(
        stored.get("folder", str),
        stored.get("model", str | None),
        stored.get("gaze", str | None),
        stored.get("settings", dict[str, Any]),
        stored.get("facts", dict[str, dict]),
    )


def check_finds(folder: str | Path, info: IndexInfo, gaze: dict[str, Any] | None) -> None:
    """Raises InputError where a model would find nothing in the index. gaze: what `cache_facts` says of the model."""
    if gaze is None:
        raise InputError(f"{folder}: what this selector keeps is never kept on disk, so there is nothing of it")
    changes = [f"{name}: {old} -> {new}" for name, old, new in differences(info.facts.get("gaze", {}), gaze)]
    if not changes:
        return
    stored_format = listed(changes, SHOWN, "; ")
    named = "the bundled model" if info.model is None else info.model
    raise InputError(
        f"{folder}: was made for {named}, with other settings; take those, or go without the index ({stored_format})"
    )
