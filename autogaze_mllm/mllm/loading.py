"""load(): a saved model, read back; and the one place that tells a saved model from a base model."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from ..common.errors import InputError
from ..common.foreign_config import LARGEST_SIDE
from ..common.storage.files import find_file, read_fields
from ..common.storage.json_text import Fields, shown
from ..common.storage.paths import is_folder
from ..gaze.autogaze.pretrained import BUNDLED
from ..gaze.cache import VideoCache
from ..gaze.selector_registry import stored_selector
from ..gaze.selectors.base import AnySelector
from ..gaze.settings import VideoSettings
from ..vision.any_size import CoarsePositions
from ..vision.attention import AttentionType, Backend
from .model import GazedModel
from .saving import SETTINGS_FILE
from .trained_parts import load_parts
from .wrap import DEFAULT_GAZE, wrap

BUNDLED_FOLDER = Path(str(files("autogaze_mllm") / "bundled" / "mllm"))


def is_saved(source: str | Path) -> bool:
    """Whether this is a folder that `save_pretrained` or fine-tuning wrote (or the bundled model), not a base model."""
    return str(source) == BUNDLED or (Path(source) / SETTINGS_FILE).is_file()


def load_or_wrap(
    source: str | Path,
    gaze: AnySelector | str | Path | None = None,
    *,
    settings: VideoSettings | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    cache: VideoCache | str | Path | bool = True,
    **overrides: Any,
) -> GazedModel:
    """A saved model, or a base model with gaze put in front of it: whatever lies there.

    gaze: default: the selector that was saved with the model, or that of `wrap`. settings: default: those that were
    saved, or the family's own; overrides: fields of them.
    """
    if is_saved(source):
        changes = {**(settings.to_dict() if settings else {}), **overrides}
        return load(source, gaze=gaze, device=device, dtype=dtype, cache=cache, **changes)
    selector = DEFAULT_GAZE if gaze is None else gaze
    return wrap(source, selector, settings=settings, device=device, dtype=dtype, cache=cache, **overrides)


def base_source(source: str | Path) -> str:
    """Where the base of such a model comes from: a folder, or the hub id itself. Raises InputError where the saved
    folder holds only what was trained of it."""
    if not is_saved(source):
        return str(source)
    folder = BUNDLED_FOLDER if str(source) == BUNDLED else Path(source)
    stored = read_fields(folder / SETTINGS_FILE)
    if "tuned" in stored.values:
        raise InputError(
            f"{source}: holds only what was trained of another model: `autogaze-mllm merge {source} FOLDER`, then "
            "train that"
        )
    return str(folder / stored.get("base", str, "base"))


def load(
    folder: str | Path = BUNDLED,
    *,
    base: str | Path | None = None,
    gaze: AnySelector | str | Path | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    backend: Backend = "sdpa",
    cache: VideoCache | str | Path | bool = True,
    **overrides: Any,
) -> GazedModel:
    """What `save_pretrained` or fine-tuning wrote; default: the model that is bundled, which reads SignVid's signs and
    nothing else. gaze: another selector than the stored one (needed for one of your own class), which then stops at its
    own default loss unless `loss` is given. base: where the base model is now, if it was fine-tuned from another
    place."""
    source = Path(folder)
    if str(folder) == BUNDLED:
        source, dtype = BUNDLED_FOLDER, dtype or torch.float32  # stored in bf16 for its size alone
    path = find_file(source, SETTINGS_FILE) if is_folder(source) else None
    if path is None:
        raise InputError(f"{folder}: no such folder")
    stored = read_fields(path)
    if stored.get("format", Any, None) != 1:
        stored_format = shown(stored.get("format", Any, None))
        raise InputError(f"{path}: format {stored_format} is not known to this version, which reads format 1")
    settings = stored.made("settings", dict[str, Any], VideoSettings.from_dict)
    named = stored.get("gaze", dict[str, Any])
    if gaze is None:
        gaze = _stored_selector(named, path)
    elif gaze != named.get("name"):
        settings = settings.changed(loss=None)  # what is stored is in the unit of another selector
    settings = settings.changed(**overrides)
    origin = base or _stored_base(stored, source, path)
    tower = _stored_tower(stored.object("tower"))
    model = wrap(origin, gaze, settings=settings, device=device, dtype=dtype, backend=backend, cache=cache, **tower)
    if "tuned" in stored.values:
        load_parts(source, model.family, stored.get("tuned", dict[str, Any]))
    return model


def _stored_tower(stored: Fields) -> dict[str, Any]:
    """What `save_settings` wrote of the tower: these keys, whatever else stands there."""
    scales = stored.get("scales", list[tuple[int, int]] | None)  # None: every video has its own
    if scales is not None and not (scales and all(0 < side <= LARGEST_SIDE for both in scales for side in both)):
        raise InputError(f"{stored.where}: 'scales' are {shown(scales)}")
    return {
        "scales": scales and [tuple(side) for side in scales],
        "attn_type": stored.get("attn_type", AttentionType),
        "frame_independent": stored.get("frame_independent", bool),
        "coarse_positions": stored.get("coarse_positions", CoarsePositions | None, None),
    }


def _stored_selector(named: dict[str, Any], path: Path) -> AnySelector | str | Path:
    try:
        return stored_selector(named, path)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: 'gaze' is no selector: {shown(named)}") from error


def _stored_base(stored: Fields, source: Path, path: Path) -> str | Path:
    named = stored.get("base", str, "base")
    inside = source / named
    if inside.is_dir() or "tuned" not in stored.values:
        return inside
    if Path(named).is_absolute() and not Path(named).is_dir():
        raise InputError(f"{path}: the base model is no longer at {named}: give its place with base=")
    return named
