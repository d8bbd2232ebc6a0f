"""Fine-tuned parts on disk: what was trained, apart from the base model that it belongs to.

folder/adapter: LoRA in peft's own form. folder/tower, folder/projector, folder/llm: tensors of parts that were trained
whole, by their names in the base. Safetensors and json only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..common.errors import InputError
from ..common.files import atomic_write, output_folder
from .families import Family
from .native.checkpoint import find_weights, save_weights

ADAPTER = "adapter"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."  # peft's own wrapper, in the names of its files


def save_parts(folder: Path, family: Family, tensors: Mapping[str, torch.Tensor], lora: Any | None) -> dict[str, Any]:
    """Writes trained tensors, given by their names in the base. -> what the settings file says of them."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    adapter: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if ".lora_" in name:
            adapter[PEFT_PREFIX + name.replace(".default.", ".")] = tensor.contiguous()
        else:
            parts.setdefault(family.part_of(name), {})[name] = tensor
    for part, members in parts.items():
        save_weights(members, folder / part)
    if adapter:
        assert lora is not None
        target = output_folder(folder / ADAPTER)
        lora.save_pretrained(target)
        with atomic_write(target / ADAPTER_WEIGHTS) as temporary:
            save_file(adapter, temporary, metadata={"format": "pt"})
    return {"parts": sorted(parts), "adapter": bool(adapter)}


def load_parts(folder: Path, family: Family, stored: Mapping[str, Any]) -> None:
    """Puts what `save_parts` wrote into the family's base. Raises InputError for what does not fit it."""
    base = family.base
    for part in stored.get("parts", []):
        own = dict(base.named_parameters())
        weights = find_weights(folder, part)
        wrong = sorted(name for name, found in weights.items() if name not in own or own[name].shape != found.shape)
        if wrong:
            raise InputError(f"{folder / part}: {wrong[0]} does not fit the base model {base.config._name_or_path!r}")
        for path in sorted({found.path for found in weights.values()}):
            for name, tensor in _read(path).items():
                own[name].data.copy_(tensor)
    if stored.get("adapter"):
        _load_adapter(folder / ADAPTER, base)


def _load_adapter(folder: Path, base: nn.Module) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    weights = {
        name.removeprefix(PEFT_PREFIX).replace(".weight", ".default.weight"): tensor
        for name, tensor in _read(folder / ADAPTER_WEIGHTS).items()
    }
    if not any(".lora_" in name for name, _ in base.named_parameters()):
        inject_adapter_in_model(LoraConfig.from_pretrained(str(folder)), base)
        base.eval().requires_grad_(False)
    own = {name: parameter for name, parameter in base.named_parameters() if ".lora_" in name}
    if own.keys() != weights.keys():
        odd = sorted(own.keys() ^ weights.keys())[0]
        raise InputError(f"{folder}: {odd} does not fit the base model")
    for name, parameter in own.items():
        parameter.data.copy_(weights[name])


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged or not a safetensors file ({error})") from error


def merge_adapter(base: nn.Module) -> None:
    """LoRA becomes part of the weights that it adds to; the base is again of its own class all through."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(base.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            owner, _, leaf = name.rpartition(".")
            setattr(base.get_submodule(owner), leaf, module.get_base_layer())
    if hasattr(base, "peft_config"):
        del base.peft_config
