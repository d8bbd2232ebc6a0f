"""A gaze model on disk, in the published layout: config.json, preprocessor_config.json, model.safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch

from ...common.errors import InputError
from ...common.storage.files import find_file, output_folder, read_fields, write_json
from ...common.storage.json_text import shown
from ...common.storage.loading import loading_arguments
from ...common.storage.weights import check_weights, read_weights, shapes, write_weights
from .bundled import BUNDLED, BUNDLED_FOLDER, gaze_folder
from .config import AutoGazeConfig
from .hub import model_card, upload
from .processor import AutoGazeImageProcessor

__all__ = ["BUNDLED", "BUNDLED_FOLDER", "GazeCheckpoint"]

AS_IT_IS = {"use_flash_attn": False, "attn_implementation": "sdpa", "use_safetensors": True}  # of the published code


class GazeCheckpoint:
    """`from_pretrained`, `save_pretrained` and `push_to_hub` of AutoGaze."""

    config: AutoGazeConfig
    processor: AutoGazeImageProcessor

    def forward(self, *_: Any, **__: Any) -> Any:
        raise InputError(
            "call generate(video, ...); the published way of calling is autogaze_mllm.published.AutoGaze's"
        )

    @classmethod
    def from_pretrained(cls, source: str | Path = BUNDLED, **options: Any) -> Self:
        """From a folder or a hub repository, or "bundled": the model that comes with this package. In evaluation mode.

        options: device (or device_map): where to, such as "cuda" or "auto". dtype (or torch_dtype): default float32,
        "auto": that of the weights. revision, subfolder, cache_dir, token, local_files_only: as huggingface_hub takes
        them. use_flash_attn=False and use_safetensors=True, which are so anyway. Raises InputError for anything else,
        when files are missing, and when keys or shapes do not fit the configuration (listing them).
        """
        device, dtype, hub = loading_arguments(f"{cls.__name__}.from_pretrained", options, as_it_is=AS_IT_IS)
        source = gaze_folder(source)
        config_path = find_file(source, "config.json", **hub)
        assert config_path is not None
        stored = read_fields(config_path)
        if stored.get("model_type", Any, None) != "autogaze":
            raise InputError(f"{source}: model_type is {shown(stored.values.get('model_type'))}, not 'autogaze'")
        config = AutoGazeConfig.from_dict(stored.values, config_path)
        processor = AutoGazeImageProcessor.find(source, **hub)
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
        kind = next(iter(weights.values())).dtype if isinstance(dtype, str) else dtype
        return model.to(device=device, dtype=kind).eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the three files; each is replaced only when it is complete."""
        assert isinstance(self, torch.nn.Module)
        target = output_folder(folder)
        write_json(target / "config.json", self.config.to_dict())
        self.processor.save_pretrained(target)
        write_weights(target / "model.safetensors", self.state_dict())

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "A gaze model",
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
    ) -> str:
        """Uploads what `save_pretrained` writes and a model card, in one commit; the repository is made where there is
        none. -> the address of the commit. Arguments are those of huggingface_hub's mixin. Raises InputError where the
        hub refuses or is not reached."""
        assert isinstance(self, torch.nn.Module)
        card = model_card(self.config, sum(weight.numel() for weight in self.parameters()), repo_id)
        where: dict[str, Any] = {"token": token, "branch": branch, "create_pr": create_pr, "private": private}
        return upload(self.save_pretrained, card, repo_id, commit_message=commit_message, **where)


def _check_size(config: AutoGazeConfig, tensors: int, path: Path) -> None:
    """Layers are objects, whatever memory their weights take; a thousand are built at once."""
    layers = config.encoder.depth + config.decoder.num_hidden_layers
    if layers > max(tensors, 1000):
        raise InputError(f"{path}: the configuration has {layers} layers, model.safetensors {tensors} tensors")
