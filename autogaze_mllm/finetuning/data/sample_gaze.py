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


def gaze_spec_of(content: dict[str, Any]) -> GazeSpec | None:
    """What a sample says. Raises InputError for what cannot be."""
    given = content.get(KEY)
    if given is None:
        return None
    if isinstance(given, str):
        given = {"name": given}
    if not isinstance(given, dict):
        raise InputError(f"{KEY!r} must be a name or an object, got {given!r}")
    name = given.get("name", "")
    known = (BUNDLED, *NAMED)
    if name not in ("", *known):
        raise InputError(f"{KEY!r}: no selector {name!r}; known: {', '.join(known)}")
    settings = {key: value for key, value in given.items() if key != "name"}
    checked = VideoSettings().changed(**settings)
    return GazeSpec(name, tuple((key, getattr(checked, key)) for key in sorted(settings)))


class GazeSpecs:
    """Selector and settings of each look, for a model whose own are those of the training."""

    def __init__(self, model: GazedModel) -> None:
        self._model = model
        self._selectors: dict[str, AnySelector] = {}

    def options(self, spec: GazeSpec | None) -> dict[str, Any]:
        """For `GazedModel.gaze_video` and `gazed_key`."""
        if spec is None:
            return {}
        settings = self._model.settings
        if not spec.name:
            return {"settings": settings.changed(**dict(spec.settings))}
        if spec.name not in self._selectors:
            self._selectors[spec.name] = load_selector(spec.name, device=self._model.device, dtype=self._model.dtype)
        # A loss is in the unit of its selector, so the training's does not hold for another one.
        settings = settings.changed(loss=None).changed(**dict(spec.settings))
        return {"selector": self._selectors[spec.name], "settings": settings}
