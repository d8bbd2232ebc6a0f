"""A VideoMAE on disk or on the hub: as published, in our own layout, or a plain ViT-MAE to start from.

- published: `videomae.pt` and `config.yaml`, see `published.py`;
- our own: `config.json`, `preprocessor_config.json` and `model.safetensors`, and a folder for each frozen network that
  its losses measure by;
- a plain ViT-MAE: the same three files, or `pytorch_model.bin`, without embeddings of scale and time.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ....common.errors import InputError
from ....common.storage.files import find_file, read_json
from ....common.storage.weights import check_finite, check_weights, read_pickled_weights, read_weights, shapes
from ....gaze.autogaze.processor import AutoGazeImageProcessor
from ....gaze.grid import DEFAULT_GRID, PatchGrid
from . import published
from .features import DEFAULT_MODELS, NetworkSource, StoredNetwork
from .model import VideoMAE, VideoMAEConfig
from .pixels import published_processor

logger = logging.getLogger(__name__)

# What a plain ViT-MAE does not have; it starts from random values there.
ADDED = ("vit.embeddings.scale_embed", "vit.embeddings.time_embed", "decoder.decoder_scale_embed", "decoder.time_embed")
PREFIX = re.compile(r"^(module\.|_orig_mod\.)*(mae\.|model\.)?")  # of DDP, torch.compile, and the task around it
# Names that transformers 5 gives a ViT-MAE in memory, and its decoder in files that it writes -> the published ones.
RENAMED = (
    ("decoder.decoder_encoder.layer.", "decoder.decoder_layers."),
    ("vit.layers.", "vit.encoder.layer."),
    (".attention.q_proj.", ".attention.attention.query."),
    (".attention.k_proj.", ".attention.attention.key."),
    (".attention.v_proj.", ".attention.attention.value."),
    (".attention.o_proj.", ".attention.output.dense."),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
)
Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class VideoMAECheckpoint:
    """What there is, with its weights still unread.

    against: the file that says what the weights must be; networks: where those that its losses measure by came from, by
    the name of the loss.
    """

    source: str
    config: VideoMAEConfig
    processor: AutoGazeImageProcessor | None
    weights: Path
    against: str
    sample_rate: float
    networks: Mapping[str, str]
    hub: Mapping[str, Any]

    def read(self) -> tuple[Weights, dict[str, Weights]]:
        """The VideoMAE's weights by its own names, and those of frozen networks that lie in the same file. Raises
        InputError where they do not fit."""
        reader = read_weights if self.weights.suffix == ".safetensors" else read_pickled_weights
        own: Weights = {}
        frozen: dict[str, Weights] = {}
        stored = reader(self.weights)
        check_finite(self.weights, stored)
        for name, tensor in stored.items():
            bare = PREFIX.sub("", name)
            network, _, rest = bare.partition(".")
            if network in DEFAULT_MODELS:
                frozen.setdefault(network, {})[rest] = tensor
            else:
                for theirs, published_name in RENAMED:
                    bare = bare.replace(theirs, published_name)
                own[bare] = tensor
        layers = self.config.num_hidden_layers + self.config.decoder_num_hidden_layers
        if layers > max(len(own), 1000):
            raise InputError(f"{self.against}: the configuration has {layers} layers, the weights {len(own)} tensors")
        with torch.device("meta"):  # takes no memory, whatever the configuration says
            check_fit(VideoMAE(self.config), own, str(self.weights), self.against)
        if not own.keys() & set(ADDED) and (self.config.scale_embed or self.config.time_embed):
            logger.warning(
                "%s: a plain ViT-MAE, whose embeddings of scale and time start from random values: its losses say "
                "little before it is trained (train-gaze --only-task)",
                self.source,
            )
        return own, frozen

    def network_sources(
        self, frozen: Mapping[str, Weights], given: Mapping[str, str | Path]
    ) -> dict[str, NetworkSource]:
        """Where each network that the losses need comes from: the one that is given, else the checkpoint's own."""
        sources: dict[str, NetworkSource] = dict(given)
        for name in self.config.loss_type.split("+"):
            if name in given or name not in DEFAULT_MODELS:
                continue
            model = self.networks.get(name, DEFAULT_MODELS[name])
            if name in frozen:
                described = published.describe(model, self.source, **self.hub)
                where = f"{self.weights}: {name}, with {described.where}"
                sources[name] = StoredNetwork(described.config, described.preprocessor, frozen[name], where)
            else:
                sources[name] = published.beside(model, self.source) or model
        return sources


def check_fit(model: VideoMAE, weights: Mapping[str, torch.Tensor], source: str, against: str) -> None:
    """A plain ViT-MAE has none of the embeddings that were added to it; anything else has all of them."""
    optional = () if weights.keys() & set(ADDED) else ADDED
    check_weights(source, shapes(model.state_dict()), shapes(weights), optional=optional, against=against)


def find_checkpoint(
    source: str | Path, changes: Mapping[str, Any] | None = None, grid: PatchGrid | None = None, **hub: Any
) -> VideoMAECheckpoint:
    """Of a folder or a repository. changes: of the configuration (loss_type, scales, ...); grid: the one that a plain
    ViT-MAE gets, by default the published one; hub: revision, cache_dir, ... as huggingface_hub takes them.

    Raises InputError, naming what is missing or wrong.
    """
    found = _any_of(source, [published.WEIGHTS, "config.json"], hub)
    if found.name == published.WEIGHTS:
        return _published(source, found, changes or {}, hub)
    return _own(source, found, changes or {}, grid or DEFAULT_GRID, hub)


def _published(
    source: str | Path, weights: Path, changes: Mapping[str, Any], hub: dict[str, Any]
) -> VideoMAECheckpoint:
    settings = find_file(source, published.CONFIG, **hub)
    assert settings is not None
    task = published.read_published(settings, source, changes, **hub)
    side = task.config.grid.scales[-1][0]
    return VideoMAECheckpoint(
        source=str(source),
        config=task.config,
        processor=published_processor(task.preprocessor, side, f"{source}: preprocessor of its start"),
        weights=weights,
        against=published.CONFIG,
        sample_rate=task.sample_rate,
        networks=task.networks,
        hub=hub,
    )


def _own(
    source: str | Path, settings: Path, changes: Mapping[str, Any], grid: PatchGrid, hub: dict[str, Any]
) -> VideoMAECheckpoint:
    stored = read_json(settings)
    plain = "scales" not in stored
    start = {"scales": "+".join(str(side) for side, _ in grid.scales)} if plain else {}
    config = VideoMAEConfig.from_dict(start | stored | dict(changes), settings)
    weights = _any_of(source, ["model.safetensors", "pytorch_model.bin"], hub)
    pixels = find_file(source, "preprocessor_config.json", required=False, **hub)
    networks = {}
    for name in config.loss_type.split("+") if not plain else ():
        if name in DEFAULT_MODELS and _found(source, [f"{name}/config.json"], hub) is not None:
            for file in ("config.json", "preprocessor_config.json", "model.safetensors"):
                path = find_file(source, f"{name}/{file}", **hub)
            assert path is not None
            networks[name] = str(path.parent)
    return VideoMAECheckpoint(
        source=str(source),
        config=config,
        processor=None if pixels is None else published_processor(read_json(pixels), config.grid.scales[-1][0], pixels),
        weights=weights,
        against="config.json",
        sample_rate=1.0,
        networks=networks,
        hub=hub,
    )


def _any_of(source: str | Path, names: list[str], hub: dict[str, Any]) -> Path:
    """The first of these files that is there. Raises InputError without any."""
    path = _found(source, names, hub)
    if path is None:
        find_file(source, names[-1], required=False, **hub)  # raises, where it is not even known whether it is there
        raise InputError(f"{source}: has neither {' nor '.join(names)}")
    return path


def _found(source: str | Path, names: list[str], hub: dict[str, Any]) -> Path | None:
    """The first of these files that is there. Offline it may be unknown whether a repository has one."""
    for name in names:
        with contextlib.suppress(InputError):
            path = find_file(source, name, required=False, **hub)
            if path is not None:
                return path
    return None
