"""transformers' AutoConfig, AutoModel and AutoImageProcessor find gaze models once this room was imported."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor

from . import gaze

OF_AUTO_CLASSES = ("config", "trust_remote_code", "adapter_kwargs", "_from_auto")  # what they add to a call


class AutoGazeHubConfig(PreTrainedConfig):
    """config.json as it stands there, `scales` as text; what AutoConfig gives."""

    model_type = "autogaze"


class _ForAutoModel:
    config_class = AutoGazeHubConfig

    @classmethod
    def from_pretrained(cls, source: str | Path, *_: Any, **options: Any) -> gaze.AutoGaze:
        """The configuration that AutoModel adds is read again here."""
        return gaze.AutoGaze.from_pretrained(source, **_asked(options))


class AutoGazeImageProcessor(BaseImageProcessor):
    """Of the name that preprocessor_config.json says and of the base class that AutoImageProcessor demands; what it
    loads is the one of this room."""

    @classmethod
    def from_pretrained(cls, source: str | Path, *_: Any, **options: Any) -> gaze.AutoGazeImageProcessor:  # type: ignore[override]
        return gaze.AutoGazeImageProcessor.from_pretrained(source, **_asked(options))


def _asked(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in OF_AUTO_CLASSES}


def register() -> None:
    AutoConfig.register("autogaze", AutoGazeHubConfig, exist_ok=True)
    AutoModel.register(AutoGazeHubConfig, _ForAutoModel, exist_ok=True)
    both: dict[str, type] = dict.fromkeys(("pil", "torchvision"), AutoGazeImageProcessor)  # whichever is asked for
    with contextlib.suppress(
        ImportError
    ):  # older versions of transformers have AutoImageProcessor with torchvision only
        AutoImageProcessor.register(AutoGazeHubConfig, image_processor_classes=both, exist_ok=True)
