"""A gaze model on disk, in the published layout: config.json, preprocessor_config.json, model.safetensors."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import torch

from ...common.errors import InputError
from ...common.files import find_file, output_folder, read_json, write_json
from ...common.weights import check_weights, read_weights, shapes, write_weights
from .config import AutoGazeConfig
from .processor import AutoGazeImageProcessor

BUNDLED = "bundled"
BUNDLED_FOLDER = Path(str(files("autogaze_mllm") / "bundled" / "gaze"))


class GazeCheckpoint:
    """`from_pretrained` and `save_pretrained` of AutoGaze."""

    config: AutoGazeConfig
    processor: AutoGazeImageProcessor

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = BUNDLED,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **hub: Any,
    ) -> Self:
        """From a folder or a hub repository, or "bundled": the model that comes with this package. In evaluation mode.

        hub: revision, cache_dir, token, local_files_only as huggingface_hub takes them. Raises InputError when files
        are missing, or keys or shapes do not fit the configuration (listing them).
        """
        source = BUNDLED_FOLDER if str(source) == BUNDLED else source
        config_path = find_file(source, "config.json", **hub)
        assert config_path is not None
        stored = read_json(config_path)
        if stored.get("model_type") != "autogaze":
            raise InputError(f"{source}: model_type is {stored.get('model_type')!r}, not 'autogaze'")
        processor_path = find_file(source, "preprocessor_config.json", required=False, **hub)
        try:
            config = AutoGazeConfig.from_dict(stored)
            processor = AutoGazeImageProcessor.from_dict(read_json(processor_path)) if processor_path else None
        except (TypeError, ValueError, AttributeError) as error:  # a value of the wrong type, or one that cannot work
            raise InputError(f"{source}: the configuration cannot be used: {error}") from error
        model = cls(config, processor)  # type: ignore[call-arg]
        assert isinstance(model, torch.nn.Module)
        weights_path = find_file(source, "model.safetensors", **hub)
        assert weights_path is not None
        weights = read_weights(weights_path)
        check_weights(source, shapes(model.state_dict()), shapes(weights))
        model.load_state_dict(weights)
        return model.to(device=device, dtype=dtype).eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the three files; each is replaced only when it is complete."""
        assert isinstance(self, torch.nn.Module)
        target = output_folder(folder)
        write_json(target / "config.json", self.config.to_dict())
        write_json(target / "preprocessor_config.json", self.processor.to_dict())
        write_weights(target / "model.safetensors", self.state_dict())
