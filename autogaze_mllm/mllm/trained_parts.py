"""Fine-tuned parts on disk: what was trained, apart from the base model that it belongs to.

folder/adapter: LoRA in peft's own form. folder/tower, folder/projector, folder/llm: tensors of parts that were trained
whole, by their names in the base. Safetensors and json only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..common.errors import InputError, first_line
from ..common.storage.files import output_folder, read_fields
from ..common.storage.json_text import Fields
from ..common.storage.weights import read_weights, write_weights
from .families import Family
from .native.checkpoint import find_weights, save_weights

ADAPTER = "adapter"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."  # peft's own wrapper, in the names of its files; there is none around injected LoRA


def save_parts(folder: Path, family: Family, tensors: Mapping[str, torch.Tensor], lora: Any | None) -> dict[str, Any]:
    """Writes trained tensors, given by their names in the base. -> what the settings file says of them."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    adapter: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if ".lora_" in name:
            adapter[name] = tensor
        else:
            parts.setdefault(family.part_of(name), {})[name] = tensor
    for part, members in parts.items():
        save_weights(members, folder / part)
    if adapter:
        from peft import get_peft_model_state_dict

        assert lora is not None
        stored = get_peft_model_state_dict(family.base, adapter, save_embedding_layers=False)
        target = output_folder(folder / ADAPTER)
        lora.save_pretrained(target)
        write_weights(target / ADAPTER_WEIGHTS, {PEFT_PREFIX + name: tensor for name, tensor in stored.items()})
    return {"parts": sorted(parts), "adapter": bool(adapter)}


def load_parts(folder: Path, family: Family, stored: Mapping[str, Any]) -> None:
    """Puts what `save_parts` wrote into the family's base. Raises InputError for what does not fit it."""
    base = family.base
    fields = Fields(stored, folder / "autogaze_mllm.json: tuned")
    for part in fields.get("parts", list[str], []):
        own = dict(base.named_parameters())
        weights = find_weights(folder, part)
        wrong = sorted(name for name, found in weights.items() if name not in own or own[name].shape != found.shape)
        if wrong:
            raise InputError(f"{folder / part}: {wrong[0]} does not fit the base model {base.config.name_or_path!r}")
        for path in sorted({found.path for found in weights.values()}):
            for name, tensor in read_weights(path).items():
                own[name].data.copy_(tensor)
    if fields.get("adapter", bool, False):
        _load_adapter(folder / ADAPTER, base)


def _load_adapter(folder: Path, base: nn.Module) -> None:
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    stored = read_weights(folder / ADAPTER_WEIGHTS)
    try:
        if not any(".lora_" in name for name, _ in base.named_parameters()):
            inject_adapter_in_model(LoraConfig(**_adapter_config(folder, stored)), base)
            base.eval().requires_grad_(False)
        found: Any = set_peft_model_state_dict(base, {name.removeprefix(PEFT_PREFIX): stored[name] for name in stored})
    except InputError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:  # names and shapes
        raise InputError(f"{folder}: does not fit the base model: {first_line(error)}") from error
    odd = sorted([*found.unexpected_keys, *(name for name in found.missing_keys if ".lora_" in name)])
    if odd:
        raise InputError(f"{folder}: {odd[0]} does not fit the base model")


def _adapter_config(folder: Path, weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What decides how the weights of an adapter are used; which modules have it is told by their names. Nothing else
    of the file is taken: some of peft's settings name modules to import."""
    stored = read_fields(folder / "adapter_config.json")
    targets = sorted({name.removeprefix(PEFT_PREFIX).rpartition(".lora_")[0] for name in weights} - {""})
    if not targets:
        raise InputError(f"{folder / ADAPTER_WEIGHTS}: holds no LoRA")
    rank, ranks = stored.get("r", int), stored.get("rank_pattern", dict[str, int] | None, None) or {}
    room = max(min(tensor.shape, default=0) for tensor in weights.values())
    if not all(0 < one <= room for one in (rank, *ranks.values())):
        raise InputError(f"{stored.where}: a rank does not fit {ADAPTER_WEIGHTS}, which has at most {room}")
    return {
        "target_modules": targets,
        "r": rank,
        "rank_pattern": ranks,
        "lora_alpha": stored.get("lora_alpha", float),
        "alpha_pattern": stored.get("alpha_pattern", dict[str, float] | None, None) or {},
        "lora_dropout": stored.get("lora_dropout", float, 0.0),
        "use_rslora": stored.get("use_rslora", bool, False),
    }


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
