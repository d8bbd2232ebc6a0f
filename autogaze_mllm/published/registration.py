"""transformers' AutoConfig and AutoModel find gaze models once this room was imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModel, PreTrainedConfig

from .gaze import AutoGaze


class AutoGazeHubConfig(PreTrainedConfig):
    """config.json as it stands there, `scales` as text; what AutoConfig gives."""

    model_type = "autogaze"


class _ForAutoModel:
    config_class = AutoGazeHubConfig

    @classmethod
    def from_pretrained(cls, source: str | Path, *_: Any, **options: Any) -> AutoGaze:
        """AutoModel adds a configuration, which is read again here, and arguments of adapters and code."""
        for name in ("config", "trust_remote_code", "adapter_kwargs", "_from_auto"):
            options.pop(name, None)
        return AutoGaze.from_pretrained(source, **options)


def register() -> None:
    AutoConfig.register("autogaze", AutoGazeHubConfig, exist_ok=True)
    AutoModel.register(AutoGazeHubConfig, _ForAutoModel, exist_ok=True)
