"""A VideoMAE in the published layout: `videomae.pt`, the weights of the whole task, and `config.yaml`, the training's.

`config.yaml` names the models that the VideoMAE and its losses were made from. Their weights are in `videomae.pt`; of
the named models only configuration and preprocessor are needed, and of the published ones these are known here, so
that nothing is fetched.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....common.errors import InputError
from ....common.storage.files import find_file, read_bytes, read_json
from ....common.storage.json_text import Fields
from ....common.storage.yaml_text import parse_yaml
from .model import VideoMAEConfig

CONFIG, WEIGHTS = "config.yaml", "videomae.pt"
LOSS_NETWORKS = ("dinov2_reg", "siglip2")
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


@dataclass(frozen=True)
class Description:
    """What a model's `config.json` and `preprocessor_config.json` say, and where they are from."""

    config: dict[str, Any]
    preprocessor: dict[str, Any]
    where: str


def _known(config: dict[str, Any], preprocessor: dict[str, Any]) -> Description:
    return Description(config, preprocessor, "as published")


def _vit_mae(width: int, layers: int, heads: int, patch: int = 16) -> Description:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return _known({**sizes, "intermediate_size": 4 * width, "patch_size": patch}, {**IMAGENET, "size": 224})


KNOWN = {
    "facebook/vit-mae-base": _vit_mae(768, 12, 12),
    "facebook/vit-mae-large": _vit_mae(1024, 24, 16),
    "facebook/vit-mae-huge": _vit_mae(1280, 32, 16, patch=14),
    "facebook/dinov2-with-registers-base": _known(
        {"model_type": "dinov2_with_registers", "image_size": 518, "patch_size": 14, "num_register_tokens": 4}, IMAGENET
    ),
    "google/siglip2-base-patch16-224": _known({"model_type": "siglip_vision_model"}, HALVES),
}


@dataclass(frozen=True)
class PublishedTask:
    """config: of the VideoMAE; preprocessor: of the model that it was made from; sample_rate: the share of frames that
    were rebuilt in its training; networks: where the networks of the losses were from, by the name of the loss."""

    config: VideoMAEConfig
    preprocessor: dict[str, Any]
    sample_rate: float
    networks: dict[str, str]


def read_published(path: Path, source: str | Path, changes: Mapping[str, Any], **hub: Any) -> PublishedTask:
    """path: the `config.yaml` of the folder or repository `source`; changes: of the configuration."""
    root = parse_yaml(read_bytes(path), path)
    if not isinstance(root, dict) or not isinstance(root.get("task"), dict):
        raise InputError(f"{path}: has no 'task', expected the configuration of a published training")
    task = Fields(_without_references(root["task"], root, path), f"{path}: task")
    if task.get("attn_mode", str | None, None) == "eager":
        raise InputError(f"{path}: attn_mode 'eager' masks attention in another way; only 'sdpa' is supported")
    start = describe(task.get("recon_model", str), source, **hub)
    own = _without_references(task.object("recon_model_config").values, root, path)
    networks: dict[str, str] = {}
    for name in LOSS_NETWORKS:
        part = Fields(own, f"{path}: task: recon_model_config").object(f"{name}_loss_config")
        model = Fields(_without_references(part.values, root, path), part.where).get("model", str | None, None)
        networks |= {} if model is None else {name: model}
    chosen = {key: value for key, value in own.items() if value is not None}
    scales = task.get("scales", str | int, VideoMAEConfig.scales)
    rate = task.get("recon_sample_rate", float | None, None)
    return PublishedTask(
        config=VideoMAEConfig.from_dict(
            start.config | chosen | {"scales": scales} | dict(changes), f"{path}, with {start.where}"
        ),
        preprocessor=start.preprocessor,
        sample_rate=1.0 if rate is None else float(rate),
        networks=networks,
    )


def describe(name: str, source: str | Path, **hub: Any) -> Description:
    """Configuration and preprocessor of the model that the `config.yaml` of `source` names: a folder in that of
    `source` or beside it, a published model, a folder or a repository. hub: of repositories, but for the revision,
    which is that of `source`."""
    nearby = beside(name, source)
    if nearby is not None:
        return _described(nearby)
    known = KNOWN.get(name)
    if known is not None and not Path(name).is_dir():
        return dataclasses.replace(known, where=name)
    try:
        return _described(name, **{key: value for key, value in hub.items() if key != "revision"})
    except InputError as error:
        raise InputError(f"{source}: its {CONFIG} names the model {name!r}, whose files are needed: {error}") from error


def beside(name: str, source: str | Path) -> Path | None:
    """The folder of that name in the folder `source`, or beside it."""
    folder = Path(source)
    candidates = (folder / name, folder.absolute().parent / name) if folder.is_dir() else ()
    return next((nearby for nearby in candidates if (nearby / "config.json").is_file()), None)


def _described(source: str | Path, **hub: Any) -> Description:
    config, preprocessor = (find_file(source, f"{name}config.json", **hub) for name in ("", "preprocessor_"))
    assert config is not None and preprocessor is not None
    return Description(read_json(config), read_json(preprocessor), str(config))


def _without_references(values: Mapping[str, Any], root: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The same keys, with a value `${model.scales}`, as such trainings write them, replaced by that of the key that it
    names. Raises InputError for a key that is not there."""
    return {key: _referred(value, root, path) for key, value in values.items()}


def _referred(value: Any, root: Mapping[str, Any], path: Path) -> Any:
    for _ in range(10):
        found = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
        if found is None:
            return value
        target: Any = root
        for key in found[1].split("."):
            if not isinstance(target, Mapping) or key not in target:
                raise InputError(f"{path}: {value} refers to a key that is not there")
            target = target[key]
        value = target
    raise InputError(f"{path}: {value} refers to itself")
