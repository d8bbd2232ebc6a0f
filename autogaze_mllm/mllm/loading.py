"""load(): a saved model, read back."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from ..common.errors import InputError
from ..common.files import find_file, read_json
from ..gaze.autogaze.pretrained import BUNDLED
from ..gaze.cache import VideoCache
from ..gaze.selectors.base import Selector
from ..gaze.selectors.baselines import RandomSelector
from ..gaze.selectors.registry import NAMED
from ..gaze.settings import VideoSettings
from ..vision.attention import Backend
from .model import GazedModel
from .saving import SETTINGS_FILE
from .trained_parts import load_parts
from .wrap import wrap

BUNDLED_FOLDER = Path(str(files("autogaze_mllm") / "bundled" / "mllm"))


def load(
    folder: str | Path = BUNDLED,
    *,
    base: str | Path | None = None,
    gaze: Selector | str | Path | None = None,
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
    path = find_file(source, SETTINGS_FILE) if source.is_dir() else None
    if path is None:
        raise InputError(f"{folder}: no such folder")
    stored = read_json(path)
    if stored.get("format") != 1:
        raise InputError(f"{path}: format {stored.get('format')!r} is not known to this version, which reads format 1")
    settings = VideoSettings.from_dict(stored["settings"])
    if gaze is None:
        gaze = _stored_selector(stored["gaze"], source, path)
    elif gaze != stored["gaze"].get("name"):
        settings = settings.changed(loss=None)  # what is stored is in the unit of another selector
    tower = dict(stored["tower"])
    tower["scales"] = [tuple(side) for side in tower["scales"]]
    settings = settings.changed(**overrides)
    place = base or _stored_base(stored, source, path)
    model = wrap(place, gaze, settings=settings, device=device, dtype=dtype, backend=backend, cache=cache, **tower)
    if "tuned" in stored:
        load_parts(source, model.family, stored["tuned"])
    return model


def _stored_base(stored: dict[str, Any], source: Path, path: Path) -> str | Path:
    told = stored.get("base", "base")
    inside = source / told
    if inside.is_dir() or "tuned" not in stored:
        return inside
    if Path(told).is_absolute() and not Path(told).is_dir():
        raise InputError(f"{path}: the base model is no longer at {told}: give its place with base=")
    return told


def _stored_selector(stored: dict[str, Any], source: Path, path: Path) -> Selector | str | Path:
    if "folder" in stored:
        return source / stored["folder"]
    if stored["name"] == "random":
        return RandomSelector(stored["seed"])
    if stored["name"] not in (BUNDLED, *NAMED):
        raise InputError(
            f"{path}: saved with a selector of your own ({stored['name']}): load it with gaze=<that selector>"
        )
    return stored["name"]
