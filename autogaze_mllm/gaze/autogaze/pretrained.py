"""A gaze model on disk, in the published layout: config.json, preprocessor_config.json, model.safetensors."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import torch

from ...common.errors import InputError
from ...common.storage.files import find_file, output_folder, read_fields, read_json, write_json
from ...common.storage.json_text import shown
from ...common.storage.weights import check_weights, read_weights, shapes, write_weights
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
        stored = read_fields(config_path)
        if stored.get("model_type", Any, None) != "autogaze":
            raise InputError(f"{source}: model_type is {shown(stored.values.get('model_type'))}, not 'autogaze'")
        config = AutoGazeConfig.from_dict(stored.values, config_path)
        processor_path = find_file(source, "preprocessor_config.json", required=False, **hub)
        processor = None
        if processor_path is not None:
            processor = AutoGazeImageProcessor.from_dict(read_json(processor_path), processor_path)
        weights_path = find_file(source, "model.safetensors", **hub)
        assert weights_path is not None
        weights = read_weights(weights_path)
        _check_size(config, len(weights), config_path)
        with torch.device("meta"):  # takes no memory, whatever the configuration says
            expected = shapes(cls(config, processor).state_dict())  # type: ignore[call-arg, attr-defined]
        check_weights(source, expected, shapes(weights))
        model = cls(config, processor)  # type: ignore[call-arg]
        assert isinstance(model, torch.nn.Module)
        model.load_state_dict(weights)
        return model.to(device=device, dtype=dtype).eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the three files; each is replaced only when it is complete."""
        assert isinstance(self, torch.nn.Module)
        target = output_folder(folder)
        write_json(target / "config.json", self.config.to_dict())
        write_json(target / "preprocessor_config.json", self.processor.to_dict())
        write_weights(target / "model.safetensors", self.state_dict())


def _check_size(config: AutoGazeConfig, tensors: int, path: Path) -> None:
    """Layers are objects, whatever memory their weights take; a thousand are built at once."""
    layers = config.encoder.depth + config.decoder.num_hidden_layers
    if layers > max(tensors, 1000):
        raise InputError(f"{path}: the configuration has {layers} layers, model.safetensors {tensors} tensors")
