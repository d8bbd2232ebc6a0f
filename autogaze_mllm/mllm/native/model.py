"""NativeModel: a SigLIP tower, a projector and a Llama or Qwen2 LLM, from a checkpoint of a layout of its own.

It behaves as a transformers model does where this package uses one: config, device, dtype, embeddings, forward,
generate, from_pretrained, save_pretrained. Sizes that the configuration leaves open are read from the weights.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    Qwen2Config,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from ...common.errors import InputError
from ...common.foreign_config import check_generation, check_no_code, check_sizes
from ...common.storage.files import find_file, output_folder, read_json, write_json
from .checkpoint import Wanted, Weights, chosen_dtype, fill, find_weights, save_weights, usable, without_memory
from .projectors import Projector

LLMS: dict[str, Any] = {"llama": LlamaConfig, "qwen2": Qwen2Config}
FEATURE_LAYER = -2  # of the tower's hidden_states, unless config.json says otherwise
ENCODE_BATCH = 32  # dense pictures that the tower takes at a time
# transformers writes the tower's keys with or without vision_model., VILA wraps the tower once more.
TOWER = re.compile(r"^vision_tower\.((vision_tower|vision_model)\.)*")


class NativeConfig:
    """What a checkpoint says about itself.

    text_config, vision_config: as transformers has them. files: the json files of the checkpoint by their path in its
    folder, as they were read; they are written back as they are.
    """

    text_config: Any
    vision_config: Any

    def __init__(self, model_type: str, source: str | Path, files: dict[str, dict[str, Any]], **facts: Any) -> None:
        self.model_type, self.files = model_type, files
        self._name_or_path = str(source)
        self.vision_feature_layer = FEATURE_LAYER
        self.image_token_id: int | None = None
        self.video_token_id: int | None = None
        for name, value in facts.items():
            setattr(self, name, value)

    @property
    def name_or_path(self) -> str:
        """Where it comes from, as transformers' configurations say it."""
        return self._name_or_path

    def to_dict(self) -> dict[str, Any]:
        shown = {name: value for name, value in vars(self).items() if name != "files" and not name.startswith("_")}
        return {name: value.to_dict() if hasattr(value, "to_dict") else value for name, value in shown.items()}


class NativeModel(nn.Module, ABC):
    """A base model of one layout. Sub-classes say which files it has and what they mean."""

    model_type: ClassVar[str]
    base_model_prefix: ClassVar[str] = ""  # transformers has it, and peft asks for it
    CONFIGS: ClassVar[tuple[str, ...]]  # json files that must be there
    GENERATION: ClassVar[str]  # and the one that need not
    # Where each part lies: (part of the model, folder, what its keys there begin with).
    LAYOUT: ClassVar[tuple[tuple[str, str, str], ...]]

    def __init__(self, config: NativeConfig, vision_tower: nn.Module, mm_projector: Projector, llm: Any) -> None:
        super().__init__()
        self.config: Any = config
        self.vision_tower = vision_tower
        self.mm_projector = mm_projector
        self.llm = llm

    # -- what transformers models have ---------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.get_input_embeddings().weight.dtype

    @property
    def generation_config(self) -> Any:
        return self.llm.generation_config

    def get_input_embeddings(self) -> Any:
        return self.llm.get_input_embeddings()

    def forward(self, *inputs: Any, **more: Any) -> Any:
        """As the LLM's own: input_ids or inputs_embeds, attention_mask, position_ids, labels, ... Pictures come in as
        embeddings."""
        return self.llm(*inputs, **more)

    def generate(self, *inputs: Any, **more: Any) -> torch.Tensor:
        return self.llm.generate(*inputs, **more)

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Dense tower features (F, n, C) of normalised pixels (F, 3, H, W), at the layer that the projector takes."""
        other = pixels.shape[-1] != self.config.vision_config.image_size
        parts = []
        for batch in pixels.split(ENCODE_BATCH):
            output = self.vision_tower(
                batch.to(self.device, self.dtype), output_hidden_states=True, interpolate_pos_encoding=other
            )
            parts.append(output.hidden_states[self.config.vision_feature_layer])
        return torch.cat(parts)

    # -- loading -------------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def read_config(cls, source: str | Path, files: dict[str, dict[str, Any]]) -> NativeConfig:
        """From the files of CONFIGS; text_config and vision_config are still plain dictionaries."""

    @classmethod
    @abstractmethod
    def make_projector(cls, config: NativeConfig, shapes: Mapping[str, tuple[int, ...]], source: str) -> Projector:
        """An empty projector for stored tensors of these shapes."""

    @classmethod
    def read_generation(cls, source: str | Path, config: NativeConfig, **hub: Any) -> dict[str, Any]:
        """What generation_config.json says; empty without one."""
        path = find_file(source, cls.GENERATION, required=False, **hub)
        return {} if path is None else read_json(path)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        **hub: Any,
    ) -> Self:
        """From a folder or hub repository, in evaluation mode. dtype None: that of the weights."""
        files = {}
        for name in cls.CONFIGS:
            path = find_file(source, name, **hub)
            assert path is not None
            files[name] = read_json(path)
            check_no_code(files[name], path)
            check_sizes(files[name], path)
        with usable(source):
            return cls._made(source, files, device, dtype, hub)

    @classmethod
    def _made(
        cls,
        source: str | Path,
        files: dict[str, dict[str, Any]],
        device: torch.device | str | None,
        dtype: torch.dtype | str | None,
        hub: dict[str, Any],
    ) -> Self:
        config = cls.read_config(source, files)
        _check_kinds(source, config)
        weights = cls._weights(source, **hub)
        where = str(source)
        config.vision_config = SiglipVisionConfig.from_dict(_vision_sizes(dict(config.vision_config), weights, where))
        text = _text_sizes(dict(config.text_config), weights, where)
        config.text_config = LLMS[text["model_type"]].from_dict(text)
        number = chosen_dtype(dtype, weights, "llm.model.embed_tokens.weight", where)
        shapes = {
            key.removeprefix("mm_projector."): part.shape
            for key, part in weights.items()
            if key.startswith("mm_projector.")
        }
        with without_memory():
            model = cls(
                config,
                SiglipVisionModel(config.vision_config),
                cls.make_projector(config, shapes, where),
                AutoModelForCausalLM.from_config(config.text_config, dtype=number),
            )
        wanted = {}
        for name in model._own_parameters():
            below, key = cls._place(name)
            shown = f"{below}/{key}" if below else key
            # The tower's last norm comes after the layer whose output is used.
            wanted[name] = Wanted(_canonical(name), shown, optional="post_layernorm" in name)
        fill(model, weights, where, wanted, device=device, dtype=number)
        model.llm.tie_weights()
        generation = cls.read_generation(source, config, **hub)
        if generation:
            check_generation(generation, cls.GENERATION)
            config.files[cls.GENERATION] = generation
            kept = {name: value for name, value in generation.items() if name != "_from_model_config"}
            model.llm.generation_config = GenerationConfig.from_dict(kept)  # marked so, transformers would ignore it
        if device is not None:
            model.to(device)  # what is left: buffers
        return model.eval()

    @classmethod
    def _weights(cls, source: str | Path, **hub: Any) -> Weights:
        """All tensors of the checkpoint, by their names in the model."""
        weights: Weights = {}
        for folder in dict.fromkeys(folder for _, folder, _ in cls.LAYOUT):
            part = folder or None  # with folders, a folder is a part and its keys begin below it
            for key, stored in find_weights(source, folder, **hub).items():
                weights[_canonical(f"{part}.{key}" if part else key)] = stored
        return weights

    def _own_parameters(self) -> Iterator[str]:
        """Names of what is stored: all parameters, tied ones once."""
        tied = self.config.text_config.tie_word_embeddings
        return (name for name, _ in self.named_parameters() if not (tied and name == "llm.lm_head.weight"))

    @classmethod
    def _place(cls, name: str) -> tuple[str, str]:
        """Folder and key of a parameter in the published layout."""
        part, _, rest = _canonical(name).partition(".")
        below, prefix = next((below, prefix) for own, below, prefix in cls.LAYOUT if own == part)
        return below, prefix + rest

    # -- saving --------------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the layout that was read."""
        target = output_folder(folder)
        for name, content in self.config.files.items():
            output_folder((target / name).parent)
            write_json(target / name, content)
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for name in self._own_parameters():
            below, key = self._place(name)
            parts.setdefault(below, {})[key] = self.get_parameter(name).detach()
        for below, tensors in parts.items():
            save_weights(tensors, target / below)


def _canonical(name: str) -> str:
    """The name of a parameter whatever the version of transformers calls it."""
    return TOWER.sub("vision_tower.", name)


def _check_kinds(source: str | Path, config: NativeConfig) -> None:
    tower = config.vision_config.get("model_type", "siglip_vision_model")
    if tower != "siglip_vision_model":
        raise InputError(
            f"{source}: the vision tower is a {tower}; gazing needs SigLIP or SigLIP 2 of fixed resolution"
        )
    llm = config.text_config.get("model_type", "qwen2")
    if llm not in LLMS:
        raise InputError(f"{source}: the LLM is a {llm}; supported: {', '.join(LLMS)}")


def _vision_sizes(stored: dict[str, Any], weights: Weights, source: str) -> dict[str, Any]:
    """The tower's configuration, completed by what its weights tell."""
    sizes: dict[str, int] = {}
    patch = _shape(weights, "vision_tower.embeddings.patch_embedding.weight")
    if len(patch) == 4:
        sizes |= {"hidden_size": patch[0], "patch_size": patch[-1]}
    fc1 = _shape(weights, "vision_tower.encoder.layers.0.mlp.fc1.weight")
    if fc1:
        sizes["intermediate_size"] = fc1[0]
    positions = _shape(weights, "vision_tower.embeddings.position_embedding.weight")
    if positions and patch and "image_size" not in stored:
        sizes["image_size"] = round(positions[0] ** 0.5) * patch[-1]
    complete = _settled(stored, sizes, source, "vision tower")
    complete.setdefault("num_hidden_layers", _layers(weights, "vision_tower.encoder.layers."))
    complete["vision_use_head"] = any(name.startswith("vision_tower.head.") for name in weights)
    return complete


def _text_sizes(stored: dict[str, Any], weights: Weights, source: str) -> dict[str, Any]:
    """The LLM's configuration, completed by what its weights tell."""
    sizes: dict[str, int] = {}
    embedding = _shape(weights, "llm.model.embed_tokens.weight")
    if embedding:
        stored["vocab_size"] = embedding[0]
        sizes["hidden_size"] = embedding[1]
    gate = _shape(weights, "llm.model.layers.0.mlp.gate_proj.weight")
    if gate:
        sizes["intermediate_size"] = gate[0]
    complete = _settled(stored, sizes, source, "LLM")
    complete.setdefault("model_type", "qwen2")
    complete.setdefault("num_hidden_layers", _layers(weights, "llm.model.layers."))
    if "llm.lm_head.weight" in weights:
        complete["tie_word_embeddings"] = False
    else:
        complete.setdefault("tie_word_embeddings", True)
    return complete


def _settled(stored: dict[str, Any], sizes: dict[str, int], source: str, part: str) -> dict[str, Any]:
    for name, size in sizes.items():
        said = stored.get(name)
        if said is not None and said != size:
            raise InputError(f"{source}: the configuration of the {part} says {name} {said}, its weights have {size}")
    return {**stored, **sizes}


def _shape(weights: Weights, name: str) -> tuple[int, ...]:
    return weights[name].shape if name in weights else ()


def _layers(weights: Weights, prefix: str) -> int:
    numbers = [int(name.removeprefix(prefix).split(".")[0]) for name in weights if name.startswith(prefix)]
    return max(numbers, default=-1) + 1
