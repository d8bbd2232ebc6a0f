"""How a sample's videos are looked at, where it says so itself: `"gaze": "pixel-diff"`, or with settings,
`"gaze": {"name": "all", "max_tiles": 4}`. Trained on several ways of looking, a model reads through any of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...common.errors import InputError
from ...gaze.autogaze.pretrained import BUNDLED
from ...gaze.selector_registry import NAMED, load_selector
from ...gaze.selectors.base import AnySelector
from ...gaze.settings import VideoSettings
from ...mllm.model import GazedModel

KEY = "gaze"


@dataclass(frozen=True)
class GazeSpec:
    """name: of the selector ("": that of the training). settings: names and values that differ from the training's."""

    name: str = ""
    settings: tuple[tuple[str, Any], ...] = ()


def look_of(content: dict[str, Any]) -> GazeSpec | None:
    """What a sample says. Raises InputError for what cannot be."""
    told = content.get(KEY)
    if told is None:
        return None
    if isinstance(told, str):
        told = {"name": told}
    if not isinstance(told, dict):
        raise InputError(f"{KEY!r} must be a name or an object, got {told!r}")
    name = told.get("name", "")
    known = (BUNDLED, *NAMED)
    if name not in ("", *known):
        raise InputError(f"{KEY!r}: no selector {name!r}; known: {', '.join(known)}")
    settings = {key: value for key, value in told.items() if key != "name"}
    checked = VideoSettings().changed(**settings)
    return GazeSpec(name, tuple((key, getattr(checked, key)) for key in sorted(settings)))


class GazeSpecs:
    """Selector and settings of each look, for a model whose own are those of the training."""

    def __init__(self, model: GazedModel) -> None:
        self._model = model
        self._selectors: dict[str, AnySelector] = {}

    def options(self, look: GazeSpec | None) -> dict[str, Any]:
        """For `GazedModel.gaze_video` and `gazed_key`."""
        if look is None:
            return {}
        settings = self._model.settings
        if not look.name:
            return {"settings": settings.changed(**dict(look.settings))}
        if look.name not in self._selectors:
            self._selectors[look.name] = load_selector(look.name, device=self._model.device, dtype=self._model.dtype)
        # A loss is in the unit of its selector, so the training's does not hold for another one.
        settings = settings.changed(loss=None).changed(**dict(look.settings))
        return {"selector": self._selectors[look.name], "settings": settings}
